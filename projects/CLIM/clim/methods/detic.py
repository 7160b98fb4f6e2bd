"""Detic's two losses on pseudo regions: captions on the tile, tags on its largest proposal.

With 1 x 1 canvases the tile is the image and this is Detic; with mosaics it is Detic + CLIM (CLIM paper §3.3).
There are two presets: the CLIM release (cosine x 25 - 20, queue, composition groups, multi-hot tags) and official
Detic (cosine x 50, gathered captions, one-hot tags). Under a cascade, :class:`Detic` is the CLIM release, and official
Detic is :class:`OfficialDetic`. Shapes as in base.py; G composition groups.
"""

import math
from dataclasses import replace

import torch
from detectron2.config import configurable
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from clim.data.tiles import Tiles
from clim.losses import cosine_logits, matched_bce, multi_hot_bce, one_hot_per_tag_bce, positives_by_id

from .base import METHOD_REGISTRY, Method, Regions, Texts, arguments
from .memory import TextQueue, gather_rows
from .tile_assignment import boxes_of_images, last_and_largest, max_size_boxes


@METHOD_REGISTRY.register()
class Detic(Method):
    """Losses ``loss_caption`` and ``loss_tag``. Arguments: ``dim`` D and the keys of MODEL.METHOD.DETIC (config.py)."""

    redraws_captions = True
    needs_proposals = property(lambda self: "tag" in self.roles)

    @configurable
    def __init__(
        self, *, dim: int, temperature: float, bias: list[float], caption_weight: float, caption_base_regions: int,
        caption_negatives: str, negative_weight: float, queue_length: int, tag_weight: float, tag_target: str,
        tag_min_iof: float, tag_topk: int, groups: int,
    ):  # fmt: skip
        super().__init__()
        self.temperature, self.negative_weight = temperature, negative_weight
        self.caption_weight, self.caption_base_regions = caption_weight, caption_base_regions
        self.tag_weight, self.tag_target, self.num_groups = tag_weight, tag_target, groups
        self.tag_min_iof, self.tag_topk = tag_min_iof, tag_topk
        self.roles = [r for r, w in (("caption", caption_weight), ("tag", tag_weight)) if w > 0]
        self.bias = nn.ParameterDict({r: nn.Parameter(torch.tensor(float(bias[0]))) for r in self.roles if bias})
        self.gather = caption_negatives == "gather"
        self.queue = None if self.gather or "caption" not in self.roles else TextQueue(queue_length, dim)

    @classmethod
    def from_config(cls, cfg):
        return {"dim": cfg.MODEL.TEXT.DIM, **arguments(cfg.MODEL.METHOD.DETIC)}

    def select(self, tiles, proposals, *, topk: float | None = None):
        """caption: the tiles; tag: the largest proposal of each tile; each role draws its own composition groups."""
        boxes = {}
        if "caption" in self.roles:
            boxes["caption"] = tiles.boxes
        if "tag" in self.roles:
            boxes["tag"] = max_size_boxes(tiles, proposals, min_iof=self.tag_min_iof, topk=topk or self.tag_topk)
        regions = {role: Regions.of_tiles(of_tiles, tiles) for role, of_tiles in boxes.items()}
        return {role: join_groups(r, draw_groups(tiles, self.num_groups)) for role, r in regions.items()}

    def refine(self, tiles, regions, boxes):
        """As :meth:`select`, but the proposals are all regressed boxes of tags, of tiles and groups (detic §3.2)."""
        if "tag" not in boxes:
            return self.select(tiles, None)
        regressed = [Boxes(boxes["tag"][regions["tag"].canvas == canvas]) for canvas in range(len(tiles.counts))]
        return self.select(tiles, [Instances((0, 0), proposal_boxes=b) for b in regressed], topk=math.inf)

    def losses(self, embeddings, regions, texts):
        loss = {"caption": self.caption_loss, "tag": self.tag_loss}
        return {f"loss_{role}": loss[role](embeddings[role], regions[role], texts) for role in regions}

    def caption_loss(self, embeddings: Tensor, regions: Regions, texts: Texts) -> Tensor:
        """Each region against the captions of the batch and the queue, or of all processes."""
        tile_ids = texts.tiles.image_ids
        if self.gather:
            candidates, ids = gather_rows(texts.drawn)[0], gather_rows(tile_ids)[0]
        else:
            candidates, ids = self.queue.with_stored(texts.drawn, tile_ids)
        positive = positives_by_id(regions.members, tile_ids, ids)
        logits = self.logits("caption", embeddings, candidates)
        per_region = matched_bce(logits, positive, negative_weight=self.negative_weight)
        scale = len(regions) / self.caption_base_regions if self.caption_base_regions else 1.0
        return self.caption_weight * scale * self.average(per_region, texts)

    def tag_loss(self, embeddings: Tensor, regions: Regions, texts: Texts) -> Tensor:
        """Each region against all class names, those of classes without boxes too."""
        targets = texts.tag_targets(regions.members)
        logits = self.logits("tag", embeddings, texts.class_embeddings)
        if self.tag_target == "multi_hot":
            per_region = multi_hot_bce(logits[:, :-1], targets)
        else:  # official Detic also counts the background column, a constant
            per_region = one_hot_per_tag_bce(logits, torch.cat([targets, targets.new_zeros(len(targets), 1)], 1))
        return self.tag_weight * self.average(per_region, texts)

    def average(self, per_region: Tensor, texts: Texts) -> Tensor:
        return per_region.mean()

    def logits(self, role: str, embeddings: Tensor, texts: Tensor) -> Tensor:
        """(R, C) logits of embeddings (R, D) and texts (C, D), with the bias of the role."""
        bias = self.bias[role] if role in self.bias else 0.0
        return cosine_logits(embeddings, texts, temperature=self.temperature, bias=bias)

    def update_queues(self, embeddings, texts):
        if self.queue is not None:
            self.queue.push(texts.drawn, texts.tiles.image_ids)


@METHOD_REGISTRY.register()
class OfficialDetic(Detic):
    """Under a cascade, all proposals of an image and its own box go through all stages (detic §3.1).

    Losses, arguments and keys are those of :class:`Detic`; TAG_MIN_IOF and GROUPS are not read.
    In each stage the captions belong to an image's last box and the tags to the largest of the others; a single box has
    both. The image's own box starts as the last one. It is regressed like the others, and empty boxes are left out of
    the next stage, so that it may not stay the last. An image without boxes adds 0 to the sum and counts in the mean.
    """

    sources = ("captions",)
    redraws_captions = False
    needs_proposals = True

    def select(self, tiles, proposals):
        """box: the TAG_TOPK best proposals of each image, then the image's box if there is a caption loss."""
        return {"box": boxes_of_images(tiles, proposals, topk=self.tag_topk, image_box="caption" in self.roles)}

    def refine(self, tiles, regions, boxes):
        kept = Boxes(boxes["box"]).nonempty()
        return {"box": replace(regions["box"], boxes=boxes["box"])[kept]}

    def losses(self, embeddings, regions, texts):
        rows = dict(zip(("caption", "tag"), last_and_largest(regions["box"]), strict=True))
        picked = {role: regions["box"][rows[role]] for role in self.roles}
        return super().losses({role: embeddings["box"][rows[role]] for role in picked}, picked, texts)

    def average(self, per_region, texts):
        return per_region.sum() / len(texts.tiles)


def composition_groups(n: int, num_groups: int) -> Tensor:
    """Distinct rectangles of two or more cells of the n x n grid: (G, n²) bool, G <= ``num_groups``.

    The first and the last row are two uniform draws, sorted, and so are the columns (CLIM release). A small grid has
    only (n(n+1)/2)² - n² rectangles.
    """
    available = (n * (n + 1) // 2) ** 2 - n * n
    groups: dict[tuple, Tensor] = {}
    while len(groups) < min(num_groups, available):
        (top, bottom), (left, right) = torch.randint(n, (2, 2)).sort(1).values.tolist()
        if (top, left) != (bottom, right):
            cells = torch.zeros(n, n, dtype=torch.bool)
            cells[top : bottom + 1, left : right + 1] = True
            groups[top, bottom, left, right] = cells.flatten()
    return torch.stack(list(groups.values())) if groups else torch.zeros(0, n * n, dtype=torch.bool)


def draw_groups(tiles: Tiles, num_groups: int) -> Tensor:
    """Composition groups of all canvases: (G, T) bool, canvas by canvas. n² tiles of a canvas are an n x n grid."""
    groups = [composition_groups(math.isqrt(count), num_groups) for count in tiles.counts]
    return torch.block_diag(*groups).bool().to(tiles.boxes.device)


def join_groups(regions: Regions, groups: Tensor) -> Regions:
    """The T ``regions`` of the tiles, then one region for each group (G, T): the union of its members' boxes."""
    inside, boxes = groups[..., None], regions.boxes[None]
    low = torch.where(inside, boxes[..., :2], torch.inf).amin(1)
    high = torch.where(inside, boxes[..., 2:], -torch.inf).amax(1)
    canvas = torch.cat([regions.canvas, regions.canvas[groups.float().argmax(1)]])
    boxes = torch.cat([regions.boxes, torch.cat([low, high], 1)])
    return Regions(boxes, canvas, torch.cat([regions.members, groups]))
