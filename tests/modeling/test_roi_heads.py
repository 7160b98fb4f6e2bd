"""The C4 head: losses of box images, shapes, and whose vocabulary a loaded checkpoint leaves."""

import logging
import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform

from clim.modeling import CosineClassifier, OpenVocabOutputLayers

CLASSES, WIDTH, DIM = 5, 8, 6
VOCABULARY = "cls_score.zs_weight"


@pytest.fixture
def layers(load_cfg, hash_tower):
    """``layers("KEY", value, …)``: output layers of 5 named classes, or of 5 unnamed ones."""

    def make(*overrides, names=True, **kwargs):
        cfg = load_cfg(
            "BoxSup_C4.yaml", "MODEL.TEXT.DIM", DIM, "MODEL.ROI_HEADS.NUM_CLASSES", CLASSES,
            "MODEL.VOCABULARY.NAMES", [f"class {i}" for i in range(CLASSES)] if names else [],
            "MODEL.VOCABULARY.EMBEDDINGS", "", "MODEL.OPEN_VOCAB.BASE_CLASSES", "", *overrides,
        )  # fmt: skip
        torch.manual_seed(0)
        shape = ShapeSpec(channels=WIDTH, height=1, width=1)
        return OpenVocabOutputLayers(cfg, shape, text_encoder=hash_tower(DIM), **kwargs)

    return make


def bce(logit, target):
    signed = -logit if target else logit
    return max(signed, 0.0) + math.log1p(math.exp(-abs(signed)))


@pytest.fixture
def batch(sampled):
    return [
        sampled([[0, 0, 20, 20], [5, 5, 30, 40], [1, 1, 9, 9]], [1, CLASSES, 4], [[2, 1, 22, 25]] * 3),
        sampled([[10, 10, 20, 20]], [CLASSES]),  # a picture without ground truth: background, no gt_boxes
    ]


def test_box_losses_of_the_formulas(layers, head_losses, batch):
    """Class: masked BCE with the training bias; boxes: L1 on deltas × (10, 10, 5, 5); both over all RoIs."""
    # A mild bias: at -20 every column but the positive ones costs nothing, masked or not.
    head = layers(
        "MODEL.OPEN_VOCAB.TRAIN_BIAS", [-2.0], class_mask=torch.tensor([1.0, 1, 0, 0.01, 1])
    ).train()
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


def test_a_learned_background_is_a_class_of_the_loss(layers, head_losses, batch):
    head = layers(
        "MODEL.OPEN_VOCAB.ZERO_BACKGROUND", False, class_mask=torch.tensor([1.0, 1, 0, 1, 1])
    ).train()
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


def test_every_parameter_gets_a_gradient_and_no_text(layers, head_losses, batch):
    head = layers().train()
    sum(head_losses(head, torch.randn(4, WIDTH), batch).values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
    assert head.cls_score.linear.weight.grad.abs().sum() > 0
    assert head.cls_score.cls_bias.grad.abs() > 0
    assert not head.cls_score.zs_weight.requires_grad and not head.freq_weight.requires_grad


@pytest.mark.parametrize("background", [0, 2])
def test_batches_without_foreground_are_finite_and_have_a_graph(layers, sampled, head_losses, background):
    head = layers().train()
    batch = [sampled([[0, 0, 9, 9]] * background, [CLASSES] * background)]
    result = head_losses(head, torch.randn(background, WIDTH), batch)
    assert result["loss_box_reg"].item() == 0 and math.isfinite(result["loss_cls"].item())
    sum(result.values()).backward()
    assert all(p.grad is not None for p in head.parameters())


def test_scores_are_sigmoids_without_background_and_boxes_class_agnostic(layers, sampled):
    head = layers().eval()
    x = torch.randn(3, WIDTH)
    predictions = head(x)
    (scores,) = head.predict_probs(predictions, [sampled([[0, 0, 9, 9]] * 3, [0] * 3)])
    torch.testing.assert_close(scores[:, :-1], predictions[0][:, :-1].sigmoid())
    (boxes,) = head.predict_boxes(predictions, [sampled([[0, 0, 9, 9]] * 3, [0] * 3)])
    assert boxes.shape == (3, 4)


def test_official_initialisation_of_the_box_head(layers):
    head = layers(names=False)
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


# ---- vocabularies and checkpoints


def other_state(head, *, classes=CLASSES, seed=3):
    """A checkpoint's state for other class names."""
    state = {k: torch.full_like(v, 0.5) for k, v in head.state_dict().items()}
    rows = torch.randn(DIM, classes, generator=torch.Generator().manual_seed(seed))
    state[VOCABULARY] = torch.cat([rows / rows.norm(dim=0), torch.zeros(DIM, 1)], dim=1)
    state["freq_weight"] = torch.full((classes,), 2.0)
    return state


@pytest.mark.parametrize("classes", [CLASSES, 9])
def test_the_configured_vocabulary_wins_and_says_so(layers, caplog, classes):
    head = layers()
    mine = head.cls_score.zs_weight.clone()
    with caplog.at_level(logging.WARNING, logger="clim"):
        head.load_state_dict(other_state(head, classes=classes))
    assert torch.equal(head.cls_score.zs_weight, mine)
    assert (head.cls_score.linear.weight == 0.5).all()  # everything else is the checkpoint's
    (record,) = caplog.records
    assert f"({classes} classes) differ from the configured vocabulary (5 classes)" in record.getMessage()


def test_the_same_vocabulary_is_not_worth_a_word(layers, caplog):
    head = layers()
    state = other_state(head)
    state[VOCABULARY] = head.cls_score.zs_weight.half()
    mine = head.cls_score.zs_weight.clone()
    with caplog.at_level(logging.INFO, logger="clim"):
        head.load_state_dict(state)
    assert torch.equal(head.cls_score.zs_weight, mine) and not caplog.records


def test_without_a_configured_vocabulary_the_checkpoints_is_used(layers, caplog):
    head = layers(names=False)
    state = other_state(head)
    head.load_state_dict(dict(state))
    assert torch.equal(head.cls_score.zs_weight, state[VOCABULARY])
    assert not caplog.records


def test_loading_does_not_change_the_given_state(layers):
    head = layers()
    state = other_state(head)
    theirs = state[VOCABULARY]
    head.load_state_dict(state)
    assert state[VOCABULARY] is theirs


def test_a_state_without_a_vocabulary_is_told_by_strict_loading(layers):
    head = layers()
    state = other_state(head)
    del state[VOCABULARY]
    with pytest.raises(RuntimeError, match="Missing key.*zs_weight"):
        head.load_state_dict(state)


def test_another_vocabulary_at_run_time(layers, sampled):
    head = layers().eval()
    head.set_vocabulary(torch.randn(7, DIM))
    assert head.num_classes == 7 and head.freq_weight.tolist() == [1] * 7
    predictions = head(torch.randn(2, WIDTH))
    assert predictions[0].shape == (2, 8)
    proposals = [sampled([[0, 0, 9, 9]] * 2, [0] * 2)]
    (result,), _ = head.inference(predictions, proposals)
    assert set(result.pred_classes.tolist()) <= set(range(7))
