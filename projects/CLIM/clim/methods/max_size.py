"""Detic's choice of a region for tags: the largest proposal inside each tile."""

import torch
from detectron2.structures import Boxes, Instances
from detectron2.structures.boxes import pairwise_intersection
from torch import Tensor

from clim.data.tiles import Tiles


def largest_inside(tiles: Tiles, proposals: list[Instances], *, min_iof: float, topk: int) -> Tensor:
    """The max-size box of every tile: (T, 4), without gradient.

    Each proposal belongs to the tile that holds most of it (intersection / proposal area > ``min_iof``). Of a
    tile's ``topk`` best by score, clipped to the tile, the largest is taken; the tile itself where there is
    none (CLIM release). With one tile a canvas it is Detic's max-size box.
    """
    boxes = tiles.boxes.clone()
    for i, canvas in enumerate(proposals):
        rows = (tiles.canvas == i).nonzero().squeeze(1)
        if len(canvas) == 0 or len(rows) == 0:
            continue
        tile_boxes, candidates = tiles.boxes[rows], canvas.proposal_boxes
        inside = pairwise_intersection(candidates, Boxes(tile_boxes))  # (P, t) = area of the clipped proposal
        share, owner = (inside / candidates.area().clamp(min=1e-6)[:, None]).max(1)
        owned = torch.zeros_like(inside, dtype=torch.bool)
        owned[torch.arange(len(owner), device=owner.device), owner] = share > min_iof
        # Proposals come best first, so the running count is the rank inside the tile.
        owned &= owned.cumsum(0) <= topk
        area, best = inside.masked_fill(~owned, -1).max(0)
        clipped = candidates.tensor[best]
        clipped = torch.cat(
            [
                torch.maximum(clipped[:, :2], tile_boxes[:, :2]),
                torch.minimum(clipped[:, 2:], tile_boxes[:, 2:]),
            ],
            1,
        )
        boxes[rows] = torch.where((area > 0)[:, None], clipped, tile_boxes)
    return boxes.detach()
