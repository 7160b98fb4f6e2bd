"""Which proposals lie in which tile of their canvas (CLIM release, Detic's tags).

Shapes: P proposals and t tiles of one canvas.
"""

import torch
from detectron2.structures import Boxes
from detectron2.structures.boxes import pairwise_intersection
from torch import Tensor


def owned_by(tiles: Tensor, proposals: Boxes, *, min_iof: float, topk: int) -> tuple[Tensor, Tensor]:
    """Each proposal belongs to the tile that holds most of it, if that is more than ``min_iof`` of its area.

    Args:
        tiles: (t, 4) with t >= 1.
        proposals: P >= 1 boxes, best first; of each tile's, only the ``topk`` best count.

    Returns owned (P, t) bool and inside (P, t), the areas of the proposals clipped to the tiles.
    """
    inside = pairwise_intersection(proposals, Boxes(tiles))
    share, owner = (inside / proposals.area().clamp(min=1e-6)[:, None]).max(1)
    owned = torch.zeros_like(inside, dtype=torch.bool)
    owned[torch.arange(len(owner), device=owner.device), owner] = share > min_iof
    # Proposals come best first, so the running count is the rank inside the tile.
    return owned & (owned.cumsum(0) <= topk), inside


def clipped(boxes: Tensor, tiles: Tensor) -> Tensor:
    """``boxes`` (R, 4) cut off at the edges of ``tiles`` (R, 4) or (4,)."""
    low = torch.maximum(boxes[:, :2], tiles[..., :2])
    return torch.cat([low, torch.minimum(boxes[:, 2:], tiles[..., 2:])], 1)
