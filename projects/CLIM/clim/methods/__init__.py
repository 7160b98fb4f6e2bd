"""Methods: how a model learns from image-text pairs. Every file here is imported, so that a new method is one file."""

from importlib import import_module
from pkgutil import iter_modules

from clim.errors import UserError

from .base import METHOD_REGISTRY, Method, Regions, Texts

__all__ = ["METHOD_REGISTRY", "Method", "Regions", "Texts", "build_method"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def build_method(cfg, *, pools: str = "boxes") -> Method | None:
    """The method named by ``cfg.MODEL.METHOD.NAME``; None for "" (boxes only).

    UserError where the method needs other ``pools`` ("boxes" or "locations") than the model's, or another classifier.
    """
    name = cfg.MODEL.METHOD.NAME
    if not name:
        return None
    method = METHOD_REGISTRY.get(name)
    if method.pools != pools:
        raise UserError(
            f"MODEL.METHOD.NAME {name} pools {method.pools}, but MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} "
            f"pools {pools}: use GridTextModel for locations, another one for boxes."
        )
    if method.classifier != cfg.MODEL.OPEN_VOCAB.CLASSIFIER:
        raise UserError(f'MODEL.METHOD.NAME {name} needs MODEL.OPEN_VOCAB.CLASSIFIER "{method.classifier}".')
    return method(cfg)
