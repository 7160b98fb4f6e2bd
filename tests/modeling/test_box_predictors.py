"""All box predictors: losses by the formulas, whose vocabulary is used; OV-RCNN's dot products and softmax."""

import logging
import math

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clim.errors import UserError
from clim.modeling.box_predictors import OpenVocabOutputLayers, OVRCNNOutputLayers, log_odds
from clim.modeling.classifier import CosineClassifier
from clim.modeling.fvlm import FVLMOutputLayers

CLASSES, WIDTH, DIM = 5, 8, 6
SHAPE = ShapeSpec(channels=WIDTH, height=1, width=1)
MASK = [1, 1, 0, 1, 1]  # whether the class has boxes: the weight is > 1e-4
all_kinds = pytest.mark.parametrize("kind", ["cosine", "words", "fvlm"])


PREDICTORS = {
    "cosine": ("BoxSup_C4.yaml", OpenVocabOutputLayers),
    "words": ("OVRCNN_C4.yaml", OVRCNNOutputLayers),
    "fvlm": ("FVLM_ViTB16_CLIP_COCO.yaml", FVLMOutputLayers),
}


def sampled(boxes, classes, gt_boxes=None):
    """Sampled RoIs of one image, as the head's labelling leaves them."""
    instances = Instances((64, 64), proposal_boxes=Boxes(torch.tensor(boxes).float().reshape(-1, 4)))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    if gt_boxes is not None:
        instances.gt_boxes = Boxes(torch.tensor(gt_boxes).float())
    return instances


def head_losses(head, x, proposals):
    with EventStorage():
        return head.losses(head(x), proposals)


@pytest.fixture
def predictor(load_cfg, tmp_path):
    """``predictor("cosine", "words" or "fvlm", "KEY", value, …)``: of features 8 wide and 5 classes of width 6.

    Class embeddings have lengths 1 to 5 and come from a file; with ``vocabulary`` False they wait for a checkpoint.
    """

    def make(kind, *overrides, vocabulary=True, **kwargs):
        rows = torch.nn.functional.normalize(torch.arange(30.0).sin().view(5, 6), dim=1)
        np.save(tmp_path / "classes.npy", (rows * torch.arange(1.0, 6)[:, None]).numpy())
        config, cls = PREDICTORS[kind]
        cfg = load_cfg(
            config, "MODEL.TEXT.DIM", 6, "MODEL.ROI_HEADS.NUM_CLASSES", 5, "MODEL.OPEN_VOCAB.BASE_CLASSES", "",
            "MODEL.VOCABULARY.EMBEDDINGS", str(tmp_path / "classes.npy") if vocabulary else "",
            "MODEL.OVRCNN.TEST_CLASSES", "", *overrides,
        )  # fmt: skip
        torch.manual_seed(0)
        return cls(cfg, SHAPE, text_encoder=None, **kwargs)

    return make


@pytest.fixture
def batch():
    return [
        sampled([[0, 0, 20, 20], [5, 5, 30, 40], [1, 1, 9, 9]], [1, CLASSES, 4], [[2, 1, 22, 20]] * 3),
        sampled([[10, 10, 20, 20]], [CLASSES]),  # an image without ground truth: background, no gt_boxes
    ]


def slow_bce(row, gt, mask):
    signed = [-z if k == gt else z for k, z in enumerate(row)]
    return sum(m * (max(z, 0.0) + math.log1p(math.exp(-abs(z)))) for z, m in zip(signed, mask, strict=True))


def slow_softmax(row, gt, background_weight):
    partition = sum(math.exp(z) for z, m in zip(row, [*MASK, 1], strict=True) if m)
    return (background_weight if gt == CLASSES else 1.0) * (math.log(partition) - row[gt])


def l1(difference):
    return difference


def smooth_l1(difference):
    return 0.5 * difference**2 if difference < 1 else difference - 0.5


@pytest.mark.parametrize("kind, overrides, slow_class, slow_box", [
    # A mild bias: at -20 every column but the positive ones costs nothing, masked or not.
    ("cosine", ("MODEL.OPEN_VOCAB.TRAIN_BIAS", [-2.0]), lambda row, gt: slow_bce(row[:-1], gt, MASK), l1),
    ("cosine", ("MODEL.OPEN_VOCAB.ZERO_BACKGROUND", False), lambda row, gt: slow_bce(row, gt, [*MASK, 1]), l1),
    ("words", (), lambda row, gt: slow_softmax(row, gt, 0.2), smooth_l1),
    ("fvlm", (), lambda row, gt: slow_softmax(row, gt, 0.6), l1),
])  # fmt: skip
def test_losses_of_the_formulas(predictor, batch, kind, overrides, slow_class, slow_box):
    """Boxes: deltas × (10, 10, 5, 5) of the foreground; both losses are means over all RoIs."""
    head = predictor(kind, *overrides, class_mask=torch.tensor([1.0, 1, 0, 0.01, 1])).train()
    torch.nn.init.normal_(list(head.bbox_pred.parameters())[-2], std=0.3)
    x = torch.randn(4, WIDTH)
    result = head_losses(head, x, batch)
    logits, deltas = head(x)
    assert logits.shape == (4, CLASSES + 1) and deltas.shape == (4, 4)
    expected = sum(slow_class(row, gt) for row, gt in zip(logits.tolist(), [1, CLASSES, 4, CLASSES], strict=True))
    assert result["loss_cls"].item() == pytest.approx(expected / 4, rel=1e-5)
    expected = 0.0
    for row in (0, 2):  # the foreground
        x0, y0, x1, y1 = batch[0].proposal_boxes.tensor[row].tolist()
        target = [
            10 * (12 - (x0 + x1) / 2) / (x1 - x0), 10 * (10.5 - (y0 + y1) / 2) / (y1 - y0),
            5 * math.log(20 / (x1 - x0)), 5 * math.log(19 / (y1 - y0)),
        ]  # fmt: skip
        expected += sum(slow_box(abs(a - b)) for a, b in zip(deltas[row].tolist(), target, strict=True))
    assert result["loss_box_reg"].item() == pytest.approx(expected / 4, rel=1e-5)


FEDERATED = ("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True, "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", 3)
COUNTS = torch.tensor([9.0, 0, 4, 16, 0])  # images of each class


@pytest.mark.parametrize("power, shares", [(0.5, [3, 2, 4]), (1.0, [9, 4, 16])])
def test_federated_classes_are_those_of_the_regions_and_drawn_ones(predictor, power, shares):
    """The background counts as one. A class without images is never drawn, but it counts where it is present."""
    power = ("MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER", power)
    head = predictor("cosine", *FEDERATED, *power, class_mask=COUNTS.sqrt())
    assert not [name for name in head.state_dict() if "fed_loss" in name]  # freq_weight is official Detic's name
    torch.manual_seed(0)
    drawn = torch.stack([head.draw_classes(torch.tensor([CLASSES, 1, 1])) for _ in range(2000)])
    assert drawn.shape == (2000, 3) and (drawn[:, :2] == torch.tensor([1, CLASSES])).all()
    found = [(drawn[:, 2] == k).float().mean().item() for k in (0, 2, 3)]
    assert found == pytest.approx([share / sum(shares) for share in shares], abs=0.03)
    assert head.draw_classes(torch.tensor([0, 1, 2, 4])).tolist() == [0, 1, 2, 4]  # enough: none is drawn
    wants_more = predictor("cosine", *FEDERATED[:2], class_mask=COUNTS.sqrt())  # 50 of three classes
    assert sorted(wants_more.draw_classes(torch.tensor([2, 4, CLASSES])).tolist()) == [0, 2, 3, 4, CLASSES]
    assert sorted(wants_more.draw_classes(torch.tensor([4, 4])).tolist()) == [0, 2, 3, 4]


@pytest.mark.parametrize("zero_background", [True, False])
def test_federated_loss_counts_the_drawn_classes_alone(predictor, batch, zero_background):
    """A learned background is a column like the others."""
    background = ("MODEL.OPEN_VOCAB.ZERO_BACKGROUND", zero_background)
    head = predictor("cosine", *FEDERATED, *background, class_mask=COUNTS.sqrt()).train()
    x, gt = torch.randn(4, WIDTH), [1, CLASSES, 4, CLASSES]
    logits = head(x)[0].tolist()
    torch.manual_seed(3)
    drawn = head.draw_classes(torch.tensor(gt)).tolist()
    torch.manual_seed(3)
    found = head_losses(head, x, batch)["loss_cls"].item()
    mask = [float(k in drawn) for k in range(CLASSES + 1)]
    columns = slice(CLASSES + (not zero_background))
    expected = sum(slow_bce(row[columns], k, mask[columns]) for row, k in zip(logits, gt, strict=True))
    assert found == pytest.approx(expected / 4, rel=1e-5) and sum(mask) == 3


@all_kinds
def test_every_parameter_that_learns_gets_a_gradient_also_without_foreground(predictor, batch, kind):
    """OV-RCNN's projection is frozen and passes gradients on; no text learns."""
    head, x = predictor(kind).train(), torch.randn(4, WIDTH, requires_grad=True)
    torch.nn.init.normal_(list(head.bbox_pred.parameters())[-2], std=0.3)
    sum(head_losses(head, x, batch).values()).backward()
    learning = {name for name, p in head.named_parameters() if p.requires_grad}
    assert x.grad.abs().sum() > 0
    assert {name for name, p in head.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} == learning
    frozen = {"emb_pred.weight", "emb_pred.bias"} if kind == "words" else set()
    assert {name for name, p in head.named_parameters() if not p.requires_grad} == frozen
    special = {"cosine": "cls_score.cls_bias", "fvlm": "cls_score.temperature", "words": "bbox_pred.bias"}
    assert special[kind] in learning
    assert not any(buffer.requires_grad for buffer in head.buffers())
    for background in (0, 2):
        head, x = predictor(kind).train(), torch.randn(background, WIDTH, requires_grad=True)
        result = head_losses(head, x, [sampled([[0, 0, 9, 9]] * background, [CLASSES] * background)])
        assert result["loss_box_reg"].item() == 0 and math.isfinite(result["loss_cls"].item())
        sum(result.values()).backward()
        assert x.grad is not None and all(p.grad is not None for p in head.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", ["cosine", "words"])
def test_ranks_go_by_logits_and_scores_keep_them(predictor, kind):
    """Sigmoids of 18 and 20 are both 1 in float32; scores that are not above the threshold are left out."""
    head = predictor(kind).eval()
    head.test_score_thresh = 0.05
    logits = torch.full((3, CLASSES + 1), -30.0)
    logits[0, 3], logits[1, 3], logits[2, 0], logits[:, -1] = 18.0, 20.0, -2.95, 0.0
    proposals = [sampled([[0, 0, 9, 9], [20, 20, 40, 40], [0, 50, 9, 60]], [0] * 3)]
    (found,), (kept,) = head.inference((logits, torch.zeros(3, 4)), proposals)
    assert kept.tolist() == [1, 0] and found.logits.tolist() == pytest.approx([20, 18])
    assert 1 > found.scores[0] > found.scores[1] > 1 - 1e-7 and found.pred_classes.tolist() == [3, 3]
    assert found.pred_boxes.tensor.tolist() == [[20, 20, 40, 40], [0, 0, 9, 9]]


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-12, 1 - 1e-9))
def test_log_odds_are_the_inverse_of_sigmoid(score):
    odds = log_odds(torch.tensor([math.log(score)], dtype=torch.float64))
    assert odds.sigmoid().item() == pytest.approx(score, rel=1e-12)
    odds = log_odds(torch.tensor([0.0, -1e-300, -200.0], dtype=torch.float64))
    assert odds.isfinite().all() and odds[0] >= odds[1] > 600 and odds[2].item() == pytest.approx(-200)


def other_state(head, *, classes=CLASSES):
    """A checkpoint's state for other class names; all that is not about classes is .5."""
    state = {k: torch.full_like(v, 0.5) for k, v in head.state_dict().items()}
    rows = torch.nn.functional.normalize(torch.randn(classes, DIM, generator=torch.Generator().manual_seed(3)))
    rows = torch.cat([rows, torch.zeros(1, DIM)])
    state[head.vocabulary_key] = rows.T if head.vocabulary_axis else rows
    if "freq_weight" in state:
        state["freq_weight"] = torch.full((classes,), 2.0)
    return state


@all_kinds
@pytest.mark.parametrize("classes", [CLASSES, 9])
def test_the_configured_vocabulary_wins_with_a_warning(predictor, caplog, kind, classes):
    head = predictor(kind)
    mine, others = head.get_buffer(head.vocabulary_key).clone(), set(head.state_dict())
    mask = head.freq_weight.clone()
    with caplog.at_level(logging.WARNING, logger="clim"):
        head.load_state_dict(other_state(head, classes=classes))
    assert torch.equal(head.get_buffer(head.vocabulary_key), mine) and torch.equal(head.freq_weight, mask)
    others -= {head.vocabulary_key, "freq_weight"}  # everything else is the checkpoint's
    assert all((head.state_dict()[name] == 0.5).all() for name in others)
    assert kind != "words" or not head.emb_pred.weight.requires_grad
    (record,) = caplog.records
    assert f"({classes} classes) differ from the configured vocabulary (5 classes)" in record.getMessage()

    caplog.clear()  # names are given on purpose
    head.warns = False
    head.load_state_dict(other_state(head, classes=classes))
    assert torch.equal(head.get_buffer(head.vocabulary_key), mine) and not caplog.records
    # without a configured vocabulary the checkpoint's is used
    head = predictor(kind, vocabulary=False)
    state = other_state(head, classes=classes)
    head.load_state_dict(dict(state))
    assert torch.equal(head.get_buffer(head.vocabulary_key), state[head.vocabulary_key])
    assert head.num_classes == classes and not caplog.records


def test_the_same_vocabulary_gives_no_warning(predictor, caplog):
    head = predictor("cosine")
    state, mine = other_state(head), head.cls_score.zs_weight.clone()
    state[head.vocabulary_key] = theirs = mine.half()
    with caplog.at_level(logging.INFO, logger="clim"):
        head.load_state_dict(state)
    assert torch.equal(head.cls_score.zs_weight, mine) and not caplog.records
    assert state[head.vocabulary_key] is theirs  # the given state stays as it is
    del state[head.vocabulary_key]
    with pytest.raises(RuntimeError, match="Missing key.*zs_weight"):
        head.load_state_dict(state)


def found_by(head, logits):
    """Detections of regions far apart with the given logits (R, K) of classes."""
    logits = torch.as_tensor(logits, dtype=torch.float32)
    boxes = torch.tensor([[30.0 * i, 0, 30 * i + 20, 20] for i in range(len(logits))])
    regions = Instances((100, 1000), proposal_boxes=Boxes(boxes), vlm_embeddings=torch.ones(len(boxes), DIM))
    scores = torch.cat([logits, torch.zeros(len(logits), 1)], dim=1)
    (result,), _ = head.inference((scores, torch.zeros(len(logits), 4)), [regions])
    return result


@all_kinds
def test_another_vocabulary_at_run_time(predictor, kind):
    mask = torch.tensor(MASK) > 0
    head = predictor(kind, class_mask=mask.float(), **({"competes": mask} if kind == "words" else {})).eval()
    rows = 3 * torch.randn(7, DIM)
    head.set_vocabulary(rows, torch.tensor([1.0, 0, 1, 1, 1, 1, 1]))
    assert head.num_classes == 7 and head.freq_weight.tolist() == [1, 0, 1, 1, 1, 1, 1]
    assert head(torch.randn(2, WIDTH))[0].shape == (2, 8)
    logits = torch.arange(7.0).expand(2, 7)
    before = found_by(head, logits)
    assert 6 in before.pred_classes.tolist() and set(before.pred_classes.tolist()) <= set(range(7))
    # Classes keep their own logits and weights in another order.
    order = [6, 1, 5, 0, 2, 4, 3]
    head.set_vocabulary(rows[order], head.freq_weight[order])
    after = found_by(head, logits[:, order])
    assert [order[k] for k in after.pred_classes] == before.pred_classes.tolist()
    torch.testing.assert_close(after.scores, before.scores)
    head.set_vocabulary(rows[:3])
    assert head.freq_weight.tolist() == [1, 1, 1]


def test_names_and_start_of_the_weights(predictor):
    head = predictor("cosine", vocabulary=False)
    assert [tuple(p.shape) for p in head.bbox_pred.parameters()] == [(8, 8), (8,), (4, 8), (4,)]
    assert head.bbox_pred[2].weight.std() < 0.003 and (head.bbox_pred[2].bias == 0).all()
    assert {name: tuple(value.shape) for name, value in predictor("words").state_dict().items()} == {
        "emb_pred.weight": (DIM, WIDTH), "emb_pred.bias": (DIM,), "bbox_pred.weight": (4, WIDTH),
        "bbox_pred.bias": (4,), "class_embeddings": (CLASSES + 1, DIM),
    }  # fmt: skip


def explicit(cls, count, **kwargs):
    """The keyword-only constructor, as a library user calls it."""
    return cls(
        SHAPE, box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)), num_classes=count,
        cls_agnostic_bbox_reg=True, class_mask=torch.ones(count), vocabulary_wins=True, **kwargs,
    )  # fmt: skip


def test_construction_without_a_config_and_errors(load_cfg, predictor, tmp_path):
    classifier = CosineClassifier(WIDTH, class_embeddings=torch.eye(3, DIM), temperature=50.0)
    head = explicit(OpenVocabOutputLayers, 3, use_sigmoid_ce=True, cls_score=classifier)
    logits, deltas = head(torch.randn(2, WIDTH))
    assert logits.shape == (2, 4) and deltas.shape == (2, 4)
    cfg = load_cfg("mini/ovrcnn.yaml", "MODEL.VOCABULARY.EMBEDDINGS", "", "MODEL.METHOD.NAME", "Detic")
    with pytest.raises(UserError, match="OVRCNNOutputLayers learn from boxes alone: set MODEL.METHOD.NAME"):
        build_model(cfg)
    np.save(tmp_path / "clip.npy", np.eye(CLASSES, DIM))
    with pytest.raises(UserError, match=r"clip\.npy holds unit vectors, .* --features words .* --output FILE"):
        predictor("words", "MODEL.VOCABULARY.EMBEDDINGS", str(tmp_path / "clip.npy"))
    for kind in ("words", "fvlm"):
        with pytest.raises(UserError, match='CLASSIFIER is "pseudo_words", but .* has its own'):
            predictor(kind, "MODEL.OPEN_VOCAB.CLASSIFIER", "pseudo_words")


def test_logits_are_dot_products_of_the_projection_with_rows_of_any_length(predictor):
    head, x = predictor("words"), torch.randn(3, WIDTH)
    logits, _ = head(x)
    weight, bias = head.emb_pred.weight.tolist(), head.emb_pred.bias.tolist()
    for row, region in zip(logits.tolist(), x.tolist(), strict=True):
        v = [sum(w * a for w, a in zip(ws, region, strict=True)) + b for ws, b in zip(weight, bias, strict=True)]
        for k, logit in enumerate(row[:-1]):
            sines = [math.sin(6 * k + i) for i in range(DIM)]
            e = [(k + 1) * value / math.hypot(*sines) for value in sines]
            assert logit == pytest.approx(sum(a * b for a, b in zip(v, e, strict=True)), abs=1e-5)
        assert row[-1] == 0
    torch.testing.assert_close(head.project(x) @ head.class_embeddings.T, logits)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.lists(st.floats(-4, 4), min_size=4, max_size=4), min_size=1, max_size=4))
def test_scores_are_the_softmax_with_the_background(rows):
    head = explicit(
        OVRCNNOutputLayers, 4, test_score_thresh=0.05, test_nms_thresh=0.5, test_topk_per_image=100,
        class_embeddings=2 * torch.eye(4, DIM), competes=torch.tensor([True, True, False, True]), background_weight=0.2,
    )  # fmt: skip
    assert torch.equal(head.class_embeddings, torch.cat([2 * torch.eye(4, DIM), torch.zeros(1, DIM)]))
    result, expected = found_by(head, rows), {}
    for i, row in enumerate(rows):
        for k in (0, 1, 3):
            score = math.exp(row[k]) / (1 + sum(math.exp(row[j]) for j in (0, 1, 3)))
            assume(abs(score - 0.05) > 1e-5)  # there rounding decides
            if score > 0.05:
                expected[i, k] = score
    left = (result.pred_boxes.tensor[:, 0] / 30).round().int().tolist()
    found = dict(zip(zip(left, result.pred_classes.tolist(), strict=True), result.scores.tolist(), strict=True))
    assert found == pytest.approx(expected, abs=1e-5)


def test_weights_without_a_projection_are_refused(predictor, caplog):
    head = predictor("words", "MODEL.WEIGHTS", "stage1.pth")
    state = other_state(head)
    del state["emb_pred.weight"]
    with pytest.raises(UserError, match="MODEL.WEIGHTS.* lacks a projection"):
        head.load_state_dict(state, strict=False)
    head.load_state_dict(head.state_dict())
    assert "emb_pred" not in caplog.text
    predictor("words", "MODEL.WEIGHTS", "")  # for tests and trials
    assert "MODEL.WEIGHTS is empty: emb_pred" in caplog.text
