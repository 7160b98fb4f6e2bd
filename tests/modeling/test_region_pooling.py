"""Regions of several roles and canvases through one head: each gets the embedding it would get alone."""

import pytest
import torch
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import Boxes

from clim.methods import Regions
from clim.modeling import EfficientNetC4, embed_regions


def regions(boxes, canvas):
    count = len(canvas)
    return Regions(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(canvas, dtype=torch.int64),
        torch.zeros(count, 1, dtype=torch.bool),
    )


@pytest.fixture(scope="module")
def heads(load_cfg, hash_tower):
    cfg = load_cfg("mini/detic_clim.yaml", "MODEL.VOCABULARY.EMBEDDINGS", "")
    torch.manual_seed(0)
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(
        cfg, EfficientNetC4.output_shape(None), text_encoder=hash_tower(384)
    )


@pytest.fixture
def features():
    torch.manual_seed(1)
    return {"res4": torch.randn(3, 112, 6, 8, requires_grad=True)}


ROLES = {  # canvases out of order, none on canvas 1 in the second role
    "caption": regions(
        [[0, 0, 128, 96], [5, 9, 60, 50], [0, 0, 30, 30], [40, 20, 90, 95], [64, 0, 128, 96]], [2, 0, 1, 2, 0]
    ),
    "tag": regions([[10, 10, 40, 60], [30, 5, 100, 90], [8, 8, 24, 24]], [2, 0, 2]),
}


def alone(heads, features, box, canvas):
    one = {name: f[canvas : canvas + 1] for name, f in features.items()}
    (stage,) = heads.embed_stages(one, [Boxes(box[None])])
    return stage[0]


def test_batched_equals_single(heads, features):
    (stage,) = embed_regions(heads, features, ROLES)
    assert list(stage) == ["caption", "tag"]
    for role, chosen in ROLES.items():
        assert stage[role].shape == (len(chosen), 384)
        expected = torch.stack(
            [alone(heads, features, b, int(c)) for b, c in zip(chosen.boxes, chosen.canvas, strict=True)]
        )
        torch.testing.assert_close(stage[role], expected, rtol=1e-4, atol=1e-5)
        assert (
            torch.cdist(expected, expected) + torch.eye(len(chosen)) > 1e-3
        ).all()  # they can be told apart


def test_roles_do_not_see_each_other(heads, features):
    (both,) = embed_regions(heads, features, ROLES)
    for role, chosen in ROLES.items():
        (single,) = embed_regions(heads, features, {role: chosen})
        torch.testing.assert_close(single[role], both[role], rtol=1e-4, atol=1e-5)


def test_an_empty_role(heads, features):
    (stage,) = embed_regions(heads, features, {"caption": ROLES["caption"], "tag": regions([], [])})
    assert stage["caption"].shape == (5, 384) and stage["tag"].shape == (0, 384)


def test_no_region_at_all(heads, features):
    (stage,) = embed_regions(heads, features, {"caption": regions([], [])})
    assert stage["caption"].shape == (0, 384)
    stage["caption"].sum().backward()  # a graph for DDP


def test_gradients_reach_features_under_the_boxes_and_no_other_canvas(heads, features):
    (stage,) = embed_regions(heads, features, {"tag": regions([[0, 0, 32, 32]], [1])})
    stage["tag"].sum().backward()
    gradient = features["res4"].grad.abs().sum(dim=1)
    assert gradient[1, :2, :2].min() > 0
    assert gradient[1, 3:, 3:].max() == 0 and gradient[[0, 2]].max() == 0
