"""Tiles and proposals for every method's tests, and what two processes find that contrast pairs."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances

from clim.data.tiles import Tiles

PROGRAM = Path(__file__).parent / "clip_ranks.py"


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


@pytest.fixture(scope="session")
def clip_ranks():
    """The module clip_ranks.py: its pairs, and its loss on them."""
    spec = importlib.util.spec_from_file_location("clip_ranks", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """What each of its two processes wrote down."""
    folder, env = tmp_path_factory.mktemp("clip_ranks"), os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(PROGRAM), str(folder)], check=True, env=env, capture_output=True)
    return [torch.load(folder / f"rank{rank}.pth", weights_only=False) for rank in range(2)]
