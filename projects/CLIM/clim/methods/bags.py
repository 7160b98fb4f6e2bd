"""BARON's bags: which proposals of a tile are read together, in which orders, and where they lie (baron §5).

Shapes: P proposals of one tile, R regions, F sines and cosines of a coordinate.
"""

import math
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import nms

from clim.data.tiles import Tiles

from .base import Regions
from .ownership import clipped, owned_by


@dataclass(frozen=True)
class BagRules:
    """What a bag may hold (MODEL.METHOD.BARON)."""

    min_iof: float  # a proposal belongs to the tile that holds more than this part of it
    topk: int  # proposals of a tile, by score, that are looked at
    ratio: tuple[float, float]  # bounds of width / height
    min_area: float  # part of the tile's area that a proposal is larger than
    min_objectness: float  # probability that a proposal's is above
    max_overlap: float  # IoU above which the worse of two proposals goes (NMS)
    size: int  # proposals of a bag, at most


def tile_bags(tiles: Tiles, proposals: list[Instances], rules: BagRules) -> Regions:
    """The proposals of every tile's bag, clipped to the tile, each a member of that tile alone; no gradient.

    Of what :func:`worth_reading` leaves of a tile's proposals, ``rules.size`` are drawn uniformly, from torch's own
    random state on the CPU, which resuming restores. A tile without proposals has none.
    """
    boxes, owners = [tiles.boxes.new_zeros(0, 4)], []
    for i, canvas in enumerate(proposals):
        rows = (tiles.canvas == i).nonzero().squeeze(1).tolist()
        if len(canvas) == 0 or not rows:
            continue
        owned, _ = owned_by(tiles.boxes[rows], canvas.proposal_boxes, min_iof=rules.min_iof, topk=rules.topk)
        for row, mine in zip(rows, owned.unbind(1), strict=True):
            tile = tiles.boxes[row]
            inside = clipped(canvas.proposal_boxes.tensor[mine], tile)
            kept = inside[worth_reading(inside, canvas.objectness_logits[mine], tile, rules)]
            drawn = kept[torch.randperm(len(kept))[: rules.size].to(kept.device)]
            boxes.append(drawn)
            owners += [row] * len(drawn)
    owner = torch.tensor(owners, dtype=torch.int64, device=tiles.boxes.device)
    members = owner[:, None] == torch.arange(len(tiles), device=owner.device)
    return Regions(torch.cat(boxes).detach(), tiles.canvas[owner], members)


def worth_reading(boxes: Tensor, logits: Tensor, tile: Tensor, rules: BagRules) -> Tensor:
    """Indices of the proposals of one tile that pass the rules of shape, size, objectness and then overlap.

    Where none passes the first three, it is the best proposal alone.

    Args:
        boxes: (P, 4) inside the ``tile`` (4,), best first.
        logits: (P,) of their objectness, not probabilities.
    """
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    shaped = (width > rules.ratio[0] * height) & (width < rules.ratio[1] * height)
    large = width * height > rules.min_area * Boxes(tile[None]).area()
    passed = (shaped & large & (logits.float().sigmoid() > rules.min_objectness)).nonzero().squeeze(1)
    if len(passed) == 0:
        passed = passed.new_zeros(1)
    return passed[nms(boxes[passed], logits[passed].float(), rules.max_overlap)]


def reading_orders(members: list[int], *, count: int) -> list[Tensor]:
    """min(``count``, n!) different orders, each (n,), of the n ``members`` of a bag, drawn uniformly.

    From torch's own random state on the CPU, which resuming restores.
    """
    rows, orders = torch.tensor(members), {}
    while len(orders) < min(count, math.factorial(len(members))):
        order = torch.randperm(len(members))
        orders[tuple(order.tolist())] = rows[order]
    return list(orders.values())


def box_waves(boxes: Tensor, frames: Tensor, *, count: int, base: float) -> Tensor:
    """(R, 4 · F) sines and cosines of where ``boxes`` (R, 4) lie in their ``frames`` (R, 4).

    Of x in (centre x, centre y, width, height), in parts of the frame's sides, F = ``count`` values stand side by
    side: sin(2π x · f_i) for even i and cos(2π x · f_i) for odd, f_i = base^(⌊i/2⌋ - F/4).
    """
    sides = (frames[:, 2:] - frames[:, :2]).clamp(min=1e-6)
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2 - frames[:, :2]) / sides
    place = torch.cat([centre, (boxes[:, 2:] - boxes[:, :2]) / sides], 1)
    exponents = torch.arange(count // 2, device=boxes.device) - count // 4
    angles = 2 * math.pi * place[..., None] * base**exponents
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
