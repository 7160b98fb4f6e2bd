"""CLIP's contrast of whole images and tiles of mosaics in one InfoNCE (CLIM paper §3.3, clip_fvlm §2)."""

import math

import torch
from detectron2.config import configurable
from torch import nn
from torch.nn import functional as F

from clim.losses import symmetric_info_nce

from .base import METHOD_REGISTRY, Method, Regions, arguments
from .memory import gather_rows


@METHOD_REGISTRY.register()
class ClipContrast(Method):
    """Loss ``loss_contrast``: every tile against all captions, every caption against all tiles, of all processes.

    ``scale`` is the first value of the learned factor of the cosines, which stays in [1, ``max_scale``].
    """

    needs_proposals = False

    @configurable
    def __init__(self, *, scale: float, max_scale: float):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.max_log = math.log(max_scale)

    @classmethod
    def from_config(cls, cfg):
        return arguments(cfg.MODEL.METHOD.CLIP)

    def select(self, tiles, proposals):
        """tile: every tile; a whole image is the only tile of its canvas."""
        return {"tile": Regions.of_tiles(tiles.boxes, tiles)}

    def losses(self, embeddings, regions, texts):
        images, captions = F.normalize(embeddings["tile"].float(), dim=-1), texts.drawn.float()
        (all_images, start), (all_captions, _) = gather_rows(images), gather_rows(captions)
        scale = self.logit_scale.exp()
        loss = symmetric_info_nce(images, captions, all_images, all_captions, scale=scale, start=start)
        return {"loss_contrast": loss}

    def after_update(self):
        with torch.no_grad():
            self.logit_scale.clamp_(0.0, self.max_log)
