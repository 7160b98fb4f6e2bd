"""Tiles and proposals for the tests of every method, and which proposals are picked, by loops."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.structures import Boxes, Instances

from clim.data.tiles import Tiles


def make_tiles(boxes, *, canvas=None, ids=None, captions=None, tags=None):
    count = len(boxes)
    captions = captions or [[f"caption of {i}"] for i in range(count)]
    return Tiles(
        boxes=torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        canvas=torch.tensor([0] * count if canvas is None else canvas),
        image_ids=torch.arange(count) if ids is None else torch.tensor(ids),
        captions=captions,
        drawn=[c[-1] for c in captions],
        tags=tags or [[]] * count,
    )


def make_proposals(*canvases, logits=None):
    found = []
    for boxes in canvases:
        scores = torch.tensor(logits) if logits is not None else torch.arange(len(boxes), 0, -1.0) + 5
        boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        found.append(Instances((200, 200), proposal_boxes=boxes, objectness_logits=scores))
    return found


def clip(box, tile):
    return [max(box[0], tile[0]), max(box[1], tile[1]), min(box[2], tile[2]), min(box[3], tile[3])]


def area(box):
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def largest(tile_boxes, canvas, per_canvas, *, min_iof, topk):
    """The definition, proposal by proposal; ``topk`` None: all."""
    chosen = []
    for index, (tile, own) in enumerate(zip(tile_boxes, canvas, strict=True)):
        mine = []
        for box in per_canvas[own]:
            shares = {t: area(clip(box, other)) / area(box) for t, other in enumerate(tile_boxes) if canvas[t] == own}
            if max(shares.values()) > min_iof and max(shares, key=shares.get) == index:
                mine.append(clip(box, tile))
        chosen.append(max(mine[:topk], key=area) if mine else tile)
    return chosen


@pytest.fixture(scope="session")
def by_loops():
    """Functions of boxes as lists: ``clip``, ``area``, and ``largest``, the largest proposal of each tile."""
    return SimpleNamespace(clip=clip, area=area, largest=largest)


@pytest.fixture(scope="session")
def tiles_of():
    """``tiles_of(boxes, canvas=, ids=, captions=, tags=)``; a tile's last caption is the drawn one."""
    return make_tiles


@pytest.fixture(scope="session")
def proposals_of():
    """``proposals_of(boxes of canvas 0, …, logits=)``: one Instances a canvas, best first."""
    return make_proposals
