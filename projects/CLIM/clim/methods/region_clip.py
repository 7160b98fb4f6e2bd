"""RegionCLIP as CLIM and CLIPSelf compare with it: boxes with pseudo-labels, no captions (clip_fvlm §5).

The loss is a sigmoid BCE of regions and embeddings of nouns. The official RegionCLIP also distils a teacher and
contrasts captions. Shapes as in base.py; S sampled classes.
"""

import torch
from detectron2.config import configurable
from torch import Tensor

from clim.errors import UserError
from clim.losses import sampled_class_bce
from clim.text.classes import load_nouns, require_rows

from .base import METHOD_REGISTRY, Method, Regions


@METHOD_REGISTRY.register()
class RegionClip(Method):
    """Loss ``loss_region_clip``. Every tile is a region; its only tag is the noun of its pseudo-label."""

    needs_proposals = False
    sources = ("regions",)

    @configurable
    def __init__(self, *, nouns: Tensor, scale: float, classes: int):
        """``nouns``: (K, D) unit rows; ``scale``: of the cosines; ``classes``: S, at most K."""
        super().__init__()
        self.scale, self.classes = scale, classes
        self.register_buffer("nouns", nouns, persistent=False)

    @classmethod
    def from_config(cls, cfg):
        region_clip, key = cfg.MODEL.METHOD.REGION_CLIP, "MODEL.METHOD.REGION_CLIP.EMBEDDINGS"
        if not region_clip.EMBEDDINGS:
            raise UserError(f"{key} is empty: name the .npy of the nouns of the pseudo-labels.")
        nouns = load_nouns(region_clip.EMBEDDINGS, cfg, key=key)
        return {"nouns": nouns, "scale": region_clip.SCALE, "classes": region_clip.CLASSES}

    @property
    def logit_scale(self) -> Tensor:
        """log(scale), as CLIP files store it."""
        return torch.tensor(self.scale).log()

    def select(self, tiles, proposals):
        return {"region": Regions.of_tiles(tiles.boxes, tiles)}

    def losses(self, embeddings, regions, texts):
        labels = self.labels(texts.tiles.tags)
        sampled = sample_classes(labels, num_classes=len(self.nouns), count=self.classes)
        labels, sampled = labels.to(self.nouns.device), sampled.to(self.nouns.device)
        loss = sampled_class_bce(embeddings["region"], labels, self.nouns, sampled, scale=self.scale)
        return {"loss_region_clip": loss}

    def labels(self, tags: list[list[int]]) -> Tensor:
        """(R,) the noun of each tile; UserError for a noun without an embedding."""
        labels = torch.tensor([noun for (noun,) in tags], dtype=torch.int64)
        key = "MODEL.METHOD.REGION_CLIP.EMBEDDINGS"
        require_rows(self.nouns, max(labels.tolist(), default=-1), key=key, what="A box")
        return labels


def sample_classes(labels: Tensor, *, num_classes: int, count: int) -> Tensor:
    """(S,) the classes of ``labels`` (R,), then others, drawn uniformly, until there are ``count`` or none is left."""
    present = labels.unique()
    absent = torch.ones(num_classes, dtype=torch.bool)
    absent[present] = False
    others = absent.nonzero()[:, 0]
    drawn = others[torch.randperm(len(others))[: max(0, count - len(present))]]
    return torch.cat([present, drawn])
