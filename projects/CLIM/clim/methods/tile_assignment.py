"""Assign proposals to tiles, and find the largest proposal of each tile (CLIM release).

Shapes: T tiles of a batch; t tiles and P proposals of one canvas.
"""

from collections.abc import Iterator

import torch
from detectron2.structures import Boxes, Instances
from detectron2.structures.boxes import pairwise_intersection
from torch import Tensor

from clim.data.tiles import Tiles


def assign_to_tiles(tiles: Tensor, proposals: Boxes, *, min_iof: float, topk: int) -> tuple[Tensor, Tensor]:
    """Assign each proposal to the tile that contains most of it, if this is more than ``min_iof`` of its area.

    ``tiles`` (t, 4), t >= 1, and P >= 1 ``proposals``, best first; each tile keeps its ``topk`` best. Returns assigned
    (P, t) bool and inside (P, t), the areas of the proposals clipped to the tiles.
    """
    inside = pairwise_intersection(proposals, Boxes(tiles))
    share, tile = (inside / proposals.area().clamp(min=1e-6)[:, None]).max(1)
    assigned = torch.zeros_like(inside, dtype=torch.bool)
    assigned[torch.arange(len(tile), device=tile.device), tile] = share > min_iof
    # Proposals come best first, so the running count is the rank inside the tile.
    return assigned & (assigned.cumsum(0) <= topk), inside


def clip_to_tiles(boxes: Tensor, tiles: Tensor) -> Tensor:
    """Clip ``boxes`` (R, 4) to ``tiles`` (R, 4), or to one tile (4,)."""
    low = torch.maximum(boxes[:, :2], tiles[..., :2])
    return torch.cat([low, torch.minimum(boxes[:, 2:], tiles[..., 2:])], 1)


def max_size_boxes(tiles: Tiles, proposals: list[Instances], *, min_iof: float, topk: int) -> Tensor:
    """The largest proposal of every tile after clipping to the tile: (T, 4), without gradient.

    A tile without proposals gives its own box (CLIM release). With one tile a canvas, this is Detic's max-size box.
    ``min_iof`` and ``topk`` as in :func:`assign_to_tiles`.
    """
    boxes = tiles.boxes.clone()
    for rows, found in tiles_and_proposals(tiles, proposals):
        tile_boxes, candidates = tiles.boxes[rows], found.proposal_boxes
        assigned, inside = assign_to_tiles(tile_boxes, candidates, min_iof=min_iof, topk=topk)
        area, best = inside.masked_fill(~assigned, -1).max(0)
        largest = clip_to_tiles(candidates.tensor[best], tile_boxes)
        boxes[rows] = torch.where((area > 0)[:, None], largest, tile_boxes)
    return boxes.detach()


def tiles_and_proposals(tiles: Tiles, proposals: list[Instances]) -> Iterator[tuple[Tensor, Instances]]:
    """The rows (t,) of the tiles, and the proposals, of each canvas that has both."""
    for canvas, found in enumerate(proposals):
        rows = (tiles.canvas == canvas).nonzero().squeeze(1)
        if len(found) and len(rows):
            yield rows, found
