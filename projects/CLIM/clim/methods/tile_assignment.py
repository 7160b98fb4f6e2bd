"""Assign proposals to tiles, and find the largest of each tile (CLIM release) or image (official Detic).

Shapes: T tiles of a batch; t tiles and P proposals of one canvas.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from detectron2.structures import Boxes, Instances
from detectron2.structures.boxes import pairwise_intersection
from torch import Tensor

from clim.data.tiles import Tiles

from .base import Regions


def assign_to_tiles(tiles: Tensor, proposals: Boxes, *, min_iof: float, topk: float) -> tuple[Tensor, Tensor]:
    """Assign each proposal to the tile that contains most of it, if this is more than ``min_iof`` of its area.

    ``tiles`` (t, 4), t >= 1, and P >= 1 ``proposals``, best first; each tile keeps its ``topk`` best, at inf all.
    Returns assigned (P, t) bool and inside (P, t), the areas of the proposals clipped to the tiles.
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


def max_size_boxes(tiles: Tiles, proposals: list[Instances], *, min_iof: float, topk: float) -> Tensor:
    """The largest proposal of every tile after clipping to the tile: (T, 4), without gradient.

    A tile without proposals gives its own box (CLIM release). With one tile a canvas, this is Detic's max-size box.
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
    for rows, found in zip(tiles.rows_of_canvases, proposals, strict=False):  # the last may have no tiles
        if len(found) and len(rows):
            yield rows, found


def boxes_of_images(tiles: Tiles, proposals: list[Instances], *, topk: int, image_box: bool) -> Regions:
    """Each image's ``topk`` best proposals, clipped to it, then with ``image_box`` the image's own (official Detic).

    ``tiles``: one for each image. Rows are image by image; each stands for its tile.
    """
    boxes, tile = [], []
    for i, found in enumerate(proposals):
        best = Boxes(found.proposal_boxes.tensor[:topk].detach())
        best.clip(found.image_size)
        boxes += [best.tensor, tiles.boxes[[i]]] if image_box else [best.tensor]
        tile += [i] * (len(best) + image_box)
    return replace(Regions.of_tiles(tiles.boxes, tiles)[tile], boxes=torch.cat(boxes))


def last_and_largest(regions: Regions) -> tuple[Tensor, Tensor]:
    """Rows (I,) of each image's last region, and of its largest among the others (official Detic, detic §3.1).

    I images have regions, one after the other. A single region is both.
    """
    _, counts = regions.canvas.unique_consecutive(return_counts=True)
    last = counts.cumsum(0) - 1
    area = Boxes(regions.boxes).area().index_fill(0, last, -1)
    ranked = area.argsort(descending=True, stable=True)
    by_canvas = ranked[regions.canvas[ranked].argsort(stable=True)]
    return last, by_canvas[last - counts + 1]
