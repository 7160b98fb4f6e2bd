"""Methods: what is learnt from image-text pairs. Every file of this folder is imported: a new method is one file."""

from importlib import import_module
from pkgutil import iter_modules

from .base import METHOD_REGISTRY, Method, Regions, Texts

__all__ = ["METHOD_REGISTRY", "Method", "Regions", "Texts", "build_method"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def build_method(cfg) -> Method | None:
    """The method named by ``cfg.MODEL.METHOD.NAME``; None for "" (boxes only)."""
    name = cfg.MODEL.METHOD.NAME
    return METHOD_REGISTRY.get(name)(cfg) if name else None
