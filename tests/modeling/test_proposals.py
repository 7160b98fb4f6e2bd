"""Proposals on images without boxes, as Detectron2's RPN gives them; anchors with maskrcnn-benchmark's sides."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from clim.modeling.backbones.efficientnet import LAST_SHARED, TAPS


@pytest.mark.parametrize("training, count", [(False, 12), (True, 30)])
def test_proposals_are_those_of_detectron2s_rpn_in_its_mode(load_cfg, training, count):
    keys = ("MODEL.RPN.POST_NMS_TOPK_TRAIN", 30, "MODEL.RPN.POST_NMS_TOPK_TEST", 12)
    torch.manual_seed(0)
    rpn = build_proposal_generator(load_cfg("mini/detic_clim.yaml", *keys), {"res4": TAPS[LAST_SHARED]})
    for parameter in rpn.rpn_head.parameters():  # spread the scores and move the anchors
        torch.nn.init.normal_(parameter, std=0.05)
    rpn.train(training)
    images = ImageList(torch.zeros(2, 3, 96, 128), [(96, 128), (64, 100)])  # two sizes on one canvas
    features = {"res4": torch.randn(2, 112, 6, 8, requires_grad=True)}
    truth = [Instances(size, gt_boxes=Boxes(torch.tensor([[5.0, 5, 40, 40]]))) for size in images.image_sizes]
    with EventStorage():
        expected, _ = rpn(images, features, truth if training else None)
    found = rpn.propose(images, features)
    for ours, theirs, (height, width) in zip(found, expected, images.image_sizes, strict=True):
        scores, boxes = ours.objectness_logits, ours.proposal_boxes.tensor
        assert torch.equal(boxes, theirs.proposal_boxes.tensor) and torch.equal(scores, theirs.objectness_logits)
        assert ours.image_size == theirs.image_size == (height, width) and len(ours) == count
        assert (scores[:-1] >= scores[1:]).all() and scores[0] > scores[-1]  # best first
        assert (boxes >= 0).all() and (boxes[:, 0::2] <= width).all() and (boxes[:, 1::2] <= height).all()
        assert (ours.proposal_boxes.area() > 0).all() and not boxes.requires_grad and not scores.requires_grad


def test_sides_centres_and_order_of_rounded_anchors(load_cfg):
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
