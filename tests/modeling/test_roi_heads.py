"""The C4 head: losses of box images, shapes, and whose vocabulary a loaded checkpoint leaves."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform

from clim.modeling.box_predictors import OpenVocabOutputLayers
from clim.modeling.classifier import CosineClassifier

CLASSES, WIDTH, DIM = 5, 8, 6
VOCABULARY = "cls_score.zs_weight"


def bce(logit, target):
    signed = -logit if target else logit
    return max(signed, 0.0) + math.log1p(math.exp(-abs(signed)))


@pytest.fixture
def batch(sampled):
    return [
        sampled([[0, 0, 20, 20], [5, 5, 30, 40], [1, 1, 9, 9]], [1, CLASSES, 4], [[2, 1, 22, 25]] * 3),
        sampled([[10, 10, 20, 20]], [CLASSES]),  # a picture without ground truth: background, no gt_boxes
    ]


def test_box_losses_of_the_formulas(cosine_layers, head_losses, batch):
    """Class: masked BCE with the training bias; boxes: L1 on deltas × (10, 10, 5, 5); both over all RoIs."""
    # A mild bias: at -20 every column but the positive ones costs nothing, masked or not.
    head = cosine_layers("MODEL.OPEN_VOCAB.TRAIN_BIAS", [-2.0], class_mask=torch.tensor([1.0, 1, 0, 0.01, 1])).train()
    torch.nn.init.normal_(head.bbox_pred[2].weight, std=0.5)
    x = torch.randn(4, WIDTH)
    result = head_losses(head, x, batch)

    logits, deltas = head(x)
    assert logits.shape == (4, CLASSES + 1) and deltas.shape == (4, 4)
    assert (logits[:, -1] == -2).all()
    classes, mask = [1, CLASSES, 4, CLASSES], [1, 1, 0, 1, 1]  # the mask is whether the weight is > 1e-4
    expected = sum(
        m * bce(z, k == gt)
        for row, gt in zip(logits[:, :-1].tolist(), classes, strict=True)
        for k, (z, m) in enumerate(zip(row, mask, strict=True))
    )
    assert result["loss_cls"].item() == pytest.approx(expected / 4, rel=1e-5)

    expected = 0.0
    for row in (0, 2):  # the foreground
        x0, y0, x1, y1 = batch[0].proposal_boxes.tensor[row].tolist()
        g0, h0, g1, h1 = 2, 1, 22, 25
        target = [
            10 * ((g0 + g1) / 2 - (x0 + x1) / 2) / (x1 - x0),
            10 * ((h0 + h1) / 2 - (y0 + y1) / 2) / (y1 - y0),
            5 * math.log((g1 - g0) / (x1 - x0)),
            5 * math.log((h1 - h0) / (y1 - y0)),
        ]
        expected += sum(abs(a - b) for a, b in zip(deltas[row].tolist(), target, strict=True))
    assert result["loss_box_reg"].item() == pytest.approx(expected / 4, rel=1e-5)


def test_a_learned_background_is_a_class_of_the_loss(cosine_layers, head_losses, batch):
    head = cosine_layers("MODEL.OPEN_VOCAB.ZERO_BACKGROUND", False, class_mask=torch.tensor([1.0, 1, 0, 1, 1])).train()
    x = torch.randn(4, WIDTH)
    result = head_losses(head, x, batch)
    logits, _ = head(x)
    classes, mask = [1, CLASSES, 4, CLASSES], [1, 1, 0, 1, 1, 1]
    expected = sum(
        m * bce(z, k == gt)
        for row, gt in zip(logits.tolist(), classes, strict=True)
        for k, (z, m) in enumerate(zip(row, mask, strict=True))
    )
    assert result["loss_cls"].item() == pytest.approx(expected / 4, rel=1e-5)
    result["loss_cls"].backward()
    assert head.cls_score.background.weight.grad.abs().sum() > 0


def test_every_parameter_gets_a_gradient_and_no_text(cosine_layers, head_losses, batch):
    head = cosine_layers().train()
    sum(head_losses(head, torch.randn(4, WIDTH), batch).values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
    assert head.cls_score.linear.weight.grad.abs().sum() > 0
    assert head.cls_score.cls_bias.grad.abs() > 0
    assert not head.cls_score.zs_weight.requires_grad and not head.freq_weight.requires_grad


@pytest.mark.parametrize("background", [0, 2])
def test_batches_without_foreground_are_finite_and_have_a_graph(cosine_layers, sampled, head_losses, background):
    head = cosine_layers().train()
    batch = [sampled([[0, 0, 9, 9]] * background, [CLASSES] * background)]
    result = head_losses(head, torch.randn(background, WIDTH), batch)
    assert result["loss_box_reg"].item() == 0 and math.isfinite(result["loss_cls"].item())
    sum(result.values()).backward()
    assert all(p.grad is not None for p in head.parameters())


def test_scores_are_sigmoids_without_background_and_boxes_class_agnostic(cosine_layers, sampled):
    head = cosine_layers().eval()
    x = torch.randn(3, WIDTH)
    predictions = head(x)
    (scores,) = head.predict_probs(predictions, [sampled([[0, 0, 9, 9]] * 3, [0] * 3)])
    torch.testing.assert_close(scores[:, :-1], predictions[0][:, :-1].sigmoid())
    (boxes,) = head.predict_boxes(predictions, [sampled([[0, 0, 9, 9]] * 3, [0] * 3)])
    assert boxes.shape == (3, 4)


def test_official_initialisation_of_the_box_head(cosine_layers):
    head = cosine_layers(names=False)
    assert [tuple(p.shape) for p in head.bbox_pred.parameters()] == [(8, 8), (8,), (4, 8), (4,)]
    assert head.bbox_pred[2].weight.std() < 0.003 and (head.bbox_pred[2].bias == 0).all()


def test_an_explicit_head_needs_no_config():
    """The keyword-only constructor, as a library user calls it."""
    head = OpenVocabOutputLayers(
        ShapeSpec(channels=WIDTH),
        box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
        num_classes=3,
        cls_agnostic_bbox_reg=True,
        use_sigmoid_ce=True,
        cls_score=CosineClassifier(WIDTH, class_embeddings=torch.eye(3, DIM), temperature=50.0),
        class_mask=torch.ones(3),
        vocabulary_wins=True,
    )
    assert head(torch.randn(2, WIDTH))[0].shape == (2, 4)
