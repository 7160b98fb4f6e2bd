"""Anchors of maskrcnn-benchmark: the published sides, in Detectron2's order."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator


def test_sides_centres_and_order(load_cfg):
    cfg = load_cfg(
        "BoxSup_C4.yaml", "MODEL.ANCHOR_GENERATOR.NAME", "RoundedAnchorGenerator",
        "MODEL.ANCHOR_GENERATOR.OFFSET", 0.5,
    )  # fmt: skip
    (anchors,) = build_anchor_generator(cfg, [ShapeSpec(stride=16)])([torch.zeros(1, 1, 2, 3)])
    expected = [
        [16 * column + 8 - w * times / 2, 16 * row + 8 - h * times / 2,
         16 * column + 8 + w * times / 2, 16 * row + 8 + h * times / 2]
        for row in range(2) for column in range(3)
        for times in (2, 4, 8, 16, 32) for w, h in ((23, 12), (16, 16), (11, 22))
    ]  # fmt: skip
    assert anchors.tensor.tolist() == expected
