"""Methods: what is learnt from image-text pairs. Every file of this folder is imported: a new method is one file."""

from importlib import import_module
from pkgutil import iter_modules

from clim.errors import UserError

from .base import METHOD_REGISTRY, Method, Regions, Texts

__all__ = ["METHOD_REGISTRY", "Method", "Regions", "Texts", "build_method"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def build_method(cfg, *, pools: str = "boxes") -> Method | None:
    """The method named by ``cfg.MODEL.METHOD.NAME``; None for "" (boxes only).

    UserError where it pools something else than the model offers, "boxes" or "cells".
    """
    name = cfg.MODEL.METHOD.NAME
    if not name:
        return None
    wanted = METHOD_REGISTRY.get(name).pools
    if wanted != pools:
        raise UserError(
            f"MODEL.METHOD.NAME {name} pools {wanted}, but MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} "
            f"{pools}: GridTextModel is for methods that pool cells, the others for those that pool boxes."
        )
    return METHOD_REGISTRY.get(name)(cfg)
