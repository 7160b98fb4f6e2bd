"""Detic's choice of a region for tags: the largest proposal inside each tile."""

import torch
from detectron2.structures import Instances
from torch import Tensor

from clim.data.tiles import Tiles

from .ownership import clipped, owned_by


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
        owned, inside = owned_by(tile_boxes, candidates, min_iof=min_iof, topk=topk)
        area, best = inside.masked_fill(~owned, -1).max(0)
        largest = clipped(candidates.tensor[best], tile_boxes)
        boxes[rows] = torch.where((area > 0)[:, None], largest, tile_boxes)
    return boxes.detach()
