"""OV-RCNN's predictor: raw dot products, a frozen projection, weighted softmax, and whose vocabulary is used."""

import logging
import math

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clim.data.categories import BASE_INDICES, NOVEL_INDICES, UNUSED_INDICES
from clim.engine import build
from clim.errors import UserError
from clim.modeling.box_predictors import OVRCNNOutputLayers
from clim.modeling.vocabulary import competing_classes
from clim.text import build_text_tower, word_piece_means

CLASSES, WIDTH, DIM = 4, 8, 6
SHAPE = ShapeSpec(channels=WIDTH, height=1, width=1)


@pytest.fixture
def layers(load_cfg, tmp_path):
    """``layers("KEY", value, …)``: the predictor of 4 classes, whose rows have lengths 1 to 4, or of unnamed ones."""

    def make(*overrides, vocabulary=True, **kwargs):
        rows = torch.nn.functional.normalize(torch.arange(24.0).sin().view(CLASSES, DIM), dim=1)
        np.save(tmp_path / "words.npy", (rows * torch.arange(1.0, 5)[:, None]).numpy())
        cfg = load_cfg(
            "OVRCNN_C4.yaml", "MODEL.TEXT.DIM", DIM, "MODEL.ROI_HEADS.NUM_CLASSES", CLASSES,
            "MODEL.VOCABULARY.EMBEDDINGS", str(tmp_path / "words.npy") if vocabulary else "",
            "MODEL.OPEN_VOCAB.BASE_CLASSES", "", "MODEL.OVRCNN.TEST_CLASSES", "", *overrides,
        )  # fmt: skip
        torch.manual_seed(0)
        return OVRCNNOutputLayers(cfg, SHAPE, text_encoder=None, **kwargs)

    return make


@pytest.fixture
def batch(sampled):
    return [
        sampled([[0, 0, 20, 20], [5, 5, 30, 40], [1, 1, 9, 9]], [1, CLASSES, 3], [[2, 1, 22, 20]] * 3),
        sampled([[10, 10, 20, 20]], [CLASSES]),  # a picture without ground truth: background, no gt_boxes
    ]


def test_logits_are_dot_products_of_the_projection_with_rows_of_any_length(layers):
    head = layers()
    x = torch.randn(3, WIDTH)
    logits, deltas = head(x)
    assert logits.shape == (3, CLASSES + 1) and deltas.shape == (3, 4)
    weight, bias = head.emb_pred.weight.tolist(), head.emb_pred.bias.tolist()
    for row, region in zip(logits.tolist(), x.tolist(), strict=True):
        v = [sum(w * a for w, a in zip(ws, region, strict=True)) + b for ws, b in zip(weight, bias, strict=True)]
        for k, logit in enumerate(row[:-1]):
            e = [(k + 1) * value for value in unit_sines(k)]
            assert logit == pytest.approx(sum(a * b for a, b in zip(v, e, strict=True)), abs=1e-5)
        assert row[-1] == 0
    torch.testing.assert_close(head.project(x) @ head.class_embeddings.T, logits)


def unit_sines(k):
    values = [math.sin(6 * k + i) for i in range(DIM)]
    return [value / math.hypot(*values) for value in values]


def test_losses_of_the_formulas(layers, head_losses, batch):
    """Class: softmax over base classes and background, which weighs .2; boxes: smooth L1, β = 1; both over all RoIs."""
    head = layers(class_mask=torch.tensor([1.0, 1, 0, 1])).train()
    torch.nn.init.normal_(head.bbox_pred.weight, std=0.2)
    x = torch.randn(4, WIDTH)
    result = head_losses(head, x, batch)

    logits, deltas = head(x)
    expected = 0.0
    for row, gt in zip(logits.tolist(), [1, CLASSES, 3, CLASSES], strict=True):
        partition = sum(math.exp(row[k]) for k in (0, 1, 3, CLASSES))  # class 2 has no boxes
        expected += (0.2 if gt == CLASSES else 1.0) * (math.log(partition) - row[gt])
    assert result["loss_cls"].item() == pytest.approx(expected / 4, rel=1e-5)

    expected, quadratic = 0.0, 0
    for row in (0, 2):  # the foreground
        x0, y0, x1, y1 = batch[0].proposal_boxes.tensor[row].tolist()
        target = [
            10 * (12 - (x0 + x1) / 2) / (x1 - x0),
            10 * (10.5 - (y0 + y1) / 2) / (y1 - y0),
            5 * math.log(20 / (x1 - x0)),
            5 * math.log(19 / (y1 - y0)),
        ]
        for a, b in zip(deltas[row].tolist(), target, strict=True):
            quadratic += abs(a - b) < 1
            expected += 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5
    assert 0 < quadratic < 8  # both sides of β
    assert result["loss_box_reg"].item() == pytest.approx(expected / 4, rel=1e-5)


@pytest.mark.parametrize("background", [0, 2])
def test_batches_without_foreground_are_finite_and_have_a_graph(layers, sampled, head_losses, background):
    head = layers().train()
    batch = [sampled([[0, 0, 9, 9]] * background, [CLASSES] * background)]
    x = torch.randn(background, WIDTH, requires_grad=True)
    result = head_losses(head, x, batch)
    assert result["loss_box_reg"].item() == 0 and math.isfinite(result["loss_cls"].item())
    sum(result.values()).backward()
    assert x.grad is not None and head.bbox_pred.weight.grad is not None


def test_the_projection_is_frozen_and_passes_gradients(layers, head_losses, batch):
    head = layers().train()
    x = torch.randn(4, WIDTH, requires_grad=True)
    before = head.emb_pred.weight.clone()
    head.load_state_dict(head.state_dict())
    optimizer = torch.optim.SGD([p for p in head.parameters() if p.requires_grad], lr=1.0)
    head_losses(head, x, batch)["loss_cls"].backward()
    optimizer.step()
    assert x.grad.abs().sum() > 0 and torch.equal(head.emb_pred.weight, before)
    assert [n for n, p in head.named_parameters() if p.requires_grad] == ["bbox_pred.weight", "bbox_pred.bias"]


def test_names_of_the_state(layers):
    assert {name: tuple(value.shape) for name, value in layers().state_dict().items()} == {
        "emb_pred.weight": (DIM, WIDTH), "emb_pred.bias": (DIM,), "bbox_pred.weight": (4, WIDTH),
        "bbox_pred.bias": (4,), "class_embeddings": (CLASSES + 1, DIM),
    }  # fmt: skip


def test_an_explicit_head_needs_no_config():
    """The keyword-only constructor, as a library user calls it."""
    head = OVRCNNOutputLayers(
        ShapeSpec(channels=WIDTH),
        box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
        num_classes=3,
        cls_agnostic_bbox_reg=True,
        class_embeddings=2 * torch.eye(3, DIM),
        class_mask=torch.ones(3),
        competes=torch.ones(3, dtype=torch.bool),
        background_weight=0.2,
        vocabulary_wins=True,
    )
    assert head(torch.randn(2, WIDTH))[0].shape == (2, 4)
    assert torch.equal(head.class_embeddings, torch.cat([2 * torch.eye(3, DIM), torch.zeros(1, DIM)]))


# ---- at test


def found_by(head, logits):
    """Detections of regions far apart with the given logits (R, K) of classes."""
    logits = torch.tensor(logits, dtype=torch.float32)
    boxes = [[30 * i, 0, 30 * i + 20, 20] for i in range(len(logits))]
    proposals = [Instances((100, 1000), proposal_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)))]
    scores = torch.cat([logits, torch.zeros(len(logits), 1)], dim=1)
    (result,), _ = head.inference((scores, torch.zeros(len(logits), 4)), proposals)
    return result


def softmax(row, k):
    return math.exp(row[k]) / (1 + sum(map(math.exp, row)))


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.lists(st.floats(-4, 4), min_size=CLASSES, max_size=CLASSES), min_size=1, max_size=4))
def test_scores_are_the_softmax_with_the_background(rows):
    head = OVRCNNOutputLayers(
        SHAPE,
        box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
        num_classes=CLASSES,
        cls_agnostic_bbox_reg=True,
        test_score_thresh=0.05,
        test_nms_thresh=0.5,
        test_topk_per_image=100,
        class_embeddings=torch.eye(CLASSES, DIM),
        class_mask=torch.ones(CLASSES),
        competes=torch.tensor([True, True, False, True]),
        background_weight=0.2,
        vocabulary_wins=True,
    )
    result = found_by(head, rows)
    expected = {}
    for i, row in enumerate(rows):
        competing = [row[k] for k in (0, 1, 3)]
        for place, k in enumerate((0, 1, 3)):
            score = softmax(competing, place)
            assume(abs(score - 0.05) > 1e-5)  # there rounding decides
            if score > 0.05:
                expected[i, k] = score
    left = (result.pred_boxes.tensor[:, 0] / 30).round().int().tolist()
    found = dict(zip(zip(left, result.pred_classes.tolist(), strict=True), result.scores.tolist(), strict=True))
    assert found.keys() == expected.keys()
    for key, score in expected.items():
        assert found[key] == pytest.approx(score, abs=1e-5)


def test_sure_detections_keep_their_order(layers):
    """Un-normalised products reach scores that float32 rounds to 1; logits, by which evaluation ranks, do not tie."""
    result = found_by(layers().eval(), [[19.0, 0, 0, 0], [23.0, 0, 0, 0], [21.0, 0, 0, 0]])
    assert (result.scores == 1).all()
    assert (result.pred_boxes.tensor[:, 0] / 30).tolist() == [1, 2, 0]
    torch.testing.assert_close(result.logits, torch.tensor([23.0, 21.0, 19.0]) - math.log(4))


def test_classes_that_compete_at_test(load_cfg):
    competes = competing_classes(load_cfg("OVRCNN_C4.yaml"))
    assert competes.shape == (80,)
    assert competes.nonzero().flatten().tolist() == sorted(BASE_INDICES + NOVEL_INDICES)
    for name, indices in (("ovcoco_base", BASE_INDICES), ("ovcoco_novel", NOVEL_INDICES)):
        competes = competing_classes(load_cfg("OVRCNN_C4.yaml", "MODEL.OVRCNN.TEST_CLASSES", name))
        assert competes.nonzero().flatten().tolist() == list(indices)
    assert not competes[list(UNUSED_INDICES)].any()
    named = ("MODEL.VOCABULARY.NAMES", ["dog", "cat"])
    assert competing_classes(load_cfg("OVRCNN_C4.yaml", *named)).tolist() == [True, True]
    assert competing_classes(load_cfg("mini/ovrcnn.yaml")).sum() == 65
    for keys in (("MODEL.OVRCNN.TEST_CLASSES", "ovcoc"), ("MODEL.ROI_HEADS.NUM_CLASSES", 65)):
        with pytest.raises(UserError, match="TEST_CLASSES.*choose one of ovcoco, ovcoco_base, ovcoco_novel"):
            competing_classes(load_cfg("OVRCNN_C4.yaml", *keys))


# ---- vocabularies and checkpoints


def other_state(head, *, classes=CLASSES):
    """A checkpoint's state for other class names."""
    state = {k: torch.full_like(v, 0.5) for k, v in head.state_dict().items()}
    rows = torch.randn(classes, DIM, generator=torch.Generator().manual_seed(3))
    state["class_embeddings"] = torch.cat([rows, torch.zeros(1, DIM)])
    return state


@pytest.mark.parametrize("classes", [CLASSES, 9])
def test_the_configured_vocabulary_wins_and_says_so(layers, caplog, classes):
    head = layers()
    mine = head.class_embeddings.clone()
    with caplog.at_level(logging.WARNING, logger="clim"):
        head.load_state_dict(other_state(head, classes=classes))
    assert torch.equal(head.class_embeddings, mine) and (head.emb_pred.weight == 0.5).all()
    assert not head.emb_pred.weight.requires_grad
    (record,) = caplog.records
    assert f"({classes} classes) differ from the configured vocabulary (4 classes)" in record.getMessage()


@pytest.mark.parametrize("classes", [CLASSES, 9])
def test_without_a_configured_vocabulary_the_checkpoints_is_used(layers, caplog, classes):
    head = layers(vocabulary=False)
    state = other_state(head, classes=classes)
    head.load_state_dict(dict(state))
    assert torch.equal(head.class_embeddings, state["class_embeddings"])
    assert head.num_classes == classes and not caplog.records


def test_weights_without_a_projection_are_refused(layers, caplog):
    head = layers("MODEL.WEIGHTS", "stage1.pth")
    state = other_state(head)
    del state["emb_pred.weight"]
    with pytest.raises(UserError, match="lacks the projection into the space of words, .*: emb_pred would stay random"):
        head.load_state_dict(state, strict=False)
    head.load_state_dict(head.state_dict())
    assert "emb_pred" not in caplog.text
    layers("MODEL.WEIGHTS", "")  # for tests and trials
    assert "MODEL.WEIGHTS is empty: emb_pred would stay random" in caplog.text


def test_classes_are_no_sentence_embeddings(layers, tmp_path):
    np.save(tmp_path / "clip.npy", np.eye(CLASSES, DIM))
    with pytest.raises(UserError, match=r"clip\.npy holds unit vectors, .* --features words .* --output FILE"):
        layers("MODEL.VOCABULARY.EMBEDDINGS", str(tmp_path / "clip.npy"))
    with pytest.raises(UserError, match='CLASSIFIER is "pseudo_words", but OV-RCNN has a classifier of its own'):
        layers("MODEL.OPEN_VOCAB.CLASSIFIER", "pseudo_words")


def test_another_vocabulary_at_run_time(layers):
    head = layers(competes=torch.tensor([True, False, True, True])).eval()
    rows = 3 * torch.randn(7, DIM)
    head.set_vocabulary(rows, torch.tensor([1.0, 0, 1, 1, 1, 1, 1]))
    assert head.num_classes == 7 and head.freq_weight.tolist() == [1, 0, 1, 1, 1, 1, 1]
    assert torch.equal(head.class_embeddings[:-1], rows) and head.competes.tolist() == [True] * 7
    assert head(torch.randn(2, WIDTH))[0].shape == (2, 8)
    assert set(found_by(head, torch.full((2, 7), 5.0).tolist()).pred_classes.tolist()) == set(range(7))


def test_names_are_read_word_by_word(load_cfg, tiny_bert):
    tower = build_text_tower(name=str(tiny_bert))
    names = ["dog", "dogs and cats"]
    cfg = load_cfg(
        "OVRCNN_C4.yaml", "MODEL.TEXT.DIM", 32, "MODEL.VOCABULARY.NAMES", names,
        "MODEL.OVRCNN.TEST_CLASSES", "",
    )  # fmt: skip
    head = OVRCNNOutputLayers(cfg, SHAPE, text_encoder=tower)
    assert torch.equal(head.class_embeddings[:-1], word_piece_means(tower, names))
    assert (head.class_embeddings[-1] == 0).all()


def test_a_method_beside_a_detector_of_boxes_alone_is_told(load_cfg):
    cfg = load_cfg("mini/ovrcnn.yaml", "MODEL.VOCABULARY.EMBEDDINGS", "", "MODEL.METHOD.NAME", "Detic")
    with pytest.raises(UserError, match="OVRCNNOutputLayers learns from boxes alone: set MODEL.METHOD.NAME"):
        build(cfg)
