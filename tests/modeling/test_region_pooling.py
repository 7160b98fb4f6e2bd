"""Regions of several roles and canvases through one head: each gets the embedding it would get alone. Pooled boxes."""

import math

import pytest
import torch
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.methods import Regions
from clim.modeling import embed_regions
from clim.modeling.backbones.efficientnet import LAST_SHARED, TAPS
from clim.modeling.region_pooling import pool_rois


def regions(boxes, canvas):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Regions(boxes, torch.tensor(canvas, dtype=torch.int64), torch.zeros(len(canvas), 1, dtype=torch.bool))


@pytest.fixture(scope="module")
def heads(load_cfg, hash_tower):
    cfg = load_cfg("mini/detic_clim.yaml", "MODEL.VOCABULARY.EMBEDDINGS", "")
    torch.manual_seed(0)
    shapes = {"res4": TAPS[LAST_SHARED]}
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, shapes, text_encoder=hash_tower(384))


@pytest.fixture
def features():
    torch.manual_seed(1)
    return {"res4": torch.randn(3, 112, 6, 8, requires_grad=True)}


CAPTIONS = [[0, 0, 128, 96], [5, 9, 60, 50], [0, 0, 30, 30], [40, 20, 90, 95], [64, 0, 128, 96]]
ROLES = {  # canvases out of order, none on canvas 1 in the second role
    "caption": regions(CAPTIONS, [2, 0, 1, 2, 0]),
    "tag": regions([[10, 10, 40, 60], [30, 5, 100, 90], [8, 8, 24, 24]], [2, 0, 2]),
}


def test_batched_equals_single(heads, features):
    ((same, stage),) = embed_regions(heads, features, ROLES)
    assert same is ROLES and list(stage) == ["caption", "tag"]
    for role, chosen in ROLES.items():
        assert stage[role].shape == (len(chosen), 384)
        alone = [
            heads.embed_stages({"res4": features["res4"][[c]]}, [Boxes(box[None])])
            for box, c in zip(chosen.boxes, chosen.canvas.tolist(), strict=True)
        ]
        expected = torch.cat([next(stages) for stages in alone])
        torch.testing.assert_close(stage[role], expected, rtol=1e-4, atol=1e-5)
        assert (torch.cdist(expected, expected) + torch.eye(len(chosen)) > 1e-3).all()  # they can be told apart


def test_no_region(heads, features):
    ((_, stage),) = embed_regions(heads, features, {"caption": ROLES["caption"], "tag": regions([], [])})
    assert stage["caption"].shape == (5, 384) and stage["tag"].shape == (0, 384)
    ((_, stage),) = embed_regions(heads, features, {"caption": regions([], [])})
    assert stage["caption"].shape == (0, 384)
    stage["caption"].sum().backward()  # a graph for DDP


def test_gradients_reach_features_under_the_boxes_and_no_other_canvas(heads, features):
    ((_, stage),) = embed_regions(heads, features, {"tag": regions([[0, 0, 32, 32]], [1])})
    stage["tag"].sum().backward()
    gradient = features["res4"].grad.abs().sum(dim=1)
    assert gradient[1, :2, :2].min() > 0
    assert gradient[1, 3:, 3:].max() == 0 and gradient[[0, 2]].max() == 0


def test_stages_of_a_cascade(cascade, features):
    """Each role gets its own boxes back, regressed and clipped; the method may keep, change or remove regions."""
    head, seen = cascade(7, (3, 0, 3, 0), (0, -9, 0, 5)), []

    def refine(of_stage, boxes):
        seen.append(boxes)
        tag = Regions(boxes["tag"], of_stage["tag"].canvas, of_stage["tag"].members)
        return {"caption": of_stage["caption"], "tag": tag[torch.arange(len(tag)) != 1]}

    stages = list(embed_regions(head, features, ROLES, image_sizes=[(96, 128), (90, 120), (96, 60)], refine=refine))
    for (of_stage, embeddings), weight in zip(stages, head.weights, strict=True):
        assert of_stage["caption"] is ROLES["caption"]
        for role, chosen in of_stage.items():
            torch.testing.assert_close(embeddings[role], chosen.boxes @ weight)
    assert [boxes["caption"].tolist() for boxes in seen] == [  # canvas 2 is 60 px wide
        [[3, 0, 60, 96], [8, 9, 63, 50], [3, 0, 33, 30], [43, 20, 60, 95], [67, 0, 128, 96]],
        [[0, 0, 60, 96], [5, 0, 60, 55], [0, 0, 30, 35], [40, 11, 60, 96], [64, 0, 128, 96]],
    ]
    tags = [of_stage["tag"] for of_stage, _ in stages]
    assert [t.canvas.tolist() for t in tags] == [[2, 0, 2], [2, 2], [2]]
    assert tags[1].boxes.tolist() == [[13, 10, 43, 60], [11, 8, 27, 24]] and tags[2].boxes.tolist() == [[13, 1, 43, 65]]


def slow_roi_align(plane, box, *, size, stride):
    """RoIAlign of ``plane`` (h, w) by loops: half-pixel offset, ceil(bin) samples a bin and axis."""
    h, w = plane.shape
    x0, y0, x1, y1 = (v / stride - 0.5 for v in box)
    bin_w, bin_h = (x1 - x0) / size, (y1 - y0) / size
    nx, ny = math.ceil(bin_w), math.ceil(bin_h)

    def at(y, x):
        if not (-1 <= y <= h and -1 <= x <= w):
            return 0.0
        y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
        top, left = min(int(y), h - 1), min(int(x), w - 1)
        bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
        fy, fx = y - top, x - left
        upper = plane[top][left] * (1 - fx) + plane[top][right] * fx
        lower = plane[bottom][left] * (1 - fx) + plane[bottom][right] * fx
        return float(upper * (1 - fy) + lower * fy)

    out = torch.zeros(size, size)
    for i in range(size):
        for j in range(size):
            ys = [y0 + (i + (a + 0.5) / ny) * bin_h for a in range(ny)]
            xs = [x0 + (j + (b + 0.5) / nx) * bin_w for b in range(nx)]
            samples = [at(y, x) for y in ys for x in xs]
            out[i, j] = sum(samples) / max(len(samples), 1)
    return out


coordinate = st.floats(-20, 110, width=32)


@settings(max_examples=40, deadline=None)
@given(st.tuples(coordinate, coordinate), st.tuples(st.floats(1, 90), st.floats(1, 90)), st.sampled_from([1, 2, 3]))
def test_boxes_are_pooled_as_by_loops(corner, extent, size):
    plane = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    box = [*corner, corner[0] + extent[0], corner[1] + extent[1]]
    rois = torch.tensor([[1.0, *box]])
    pooled = pool_rois(torch.stack([plane.new_zeros(5, 6), plane])[:, None], rois, stride=16, size=size)
    expected = slow_roi_align(plane, rois[0, 1:].tolist(), size=size, stride=16)
    torch.testing.assert_close(pooled[0, 0], expected, rtol=1e-3, atol=1e-3)
