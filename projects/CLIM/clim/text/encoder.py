"""From the config to what the model asks for embeddings: a tower, behind a cache where one is configured."""

from clim.paths import resolve
from clim.text.cache import CaptionCache, LazyTower


class HasTextEncoder:
    """Mixin of modules with a frozen ``text_encoder``: assigning it, a module or not, makes it no part of the module.

    So it is neither stored in checkpoints nor moved nor trained. Name the mixin before ``nn.Module``.
    """

    def __setattr__(self, name, value):
        if name == "text_encoder":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


def build_text_encoder(cfg) -> CaptionCache | LazyTower:
    """The text encoder of ``cfg.MODEL.TEXT``; the tower is loaded when the first unknown text comes.

    So a detector whose class embeddings come from a file or a checkpoint needs no tower to be evaluated.
    """
    text = cfg.MODEL.TEXT
    folder = resolve(text.CACHE) if text.CACHE else None
    tower = LazyTower(name=text.NAME, pretrained=text.PRETRAINED, directory=folder, device=cfg.MODEL.DEVICE)
    return CaptionCache(tower, folder) if folder else tower
