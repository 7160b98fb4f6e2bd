"""Methods: what is learnt from image-text pairs. A new method is one file here, imported by this table."""

from .base import METHOD_REGISTRY, Method, Regions, Texts
from .detic import Detic
from .permuted import PermutedDetic

__all__ = ["METHOD_REGISTRY", "Detic", "Method", "Regions", "Texts", "build_method"]


def build_method(cfg) -> Method | None:
    """The method named by ``cfg.MODEL.METHOD.NAME``; None for "" (boxes only)."""
    name = cfg.MODEL.METHOD.NAME
    return METHOD_REGISTRY.get(name)(cfg) if name else None
