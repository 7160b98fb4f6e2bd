"""Tiles and proposals for the tests of every method."""

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


@pytest.fixture(scope="session")
def tiles_of():
    """``tiles_of(boxes, canvas=, ids=, captions=, tags=)``; a tile's last caption is the drawn one."""
    return make_tiles


@pytest.fixture(scope="session")
def proposals_of():
    """``proposals_of(boxes of canvas 0, …, logits=)``: one Instances a canvas, best first."""
    return make_proposals
