"""What box predictors share: whose vocabulary a loaded checkpoint leaves, other classes at run time, their names."""

import logging

import pytest
import torch
from detectron2.layers import ShapeSpec

from clim.engine import build
from clim.errors import UserError
from clim.modeling import BOX_PREDICTOR_REGISTRY, build_box_predictor

CLASSES, WIDTH, DIM = 5, 8, 6
SHAPE = ShapeSpec(channels=WIDTH, height=1, width=1)
VOCABULARY = "cls_score.zs_weight"


def other_state(head, *, classes=CLASSES, seed=3):
    """A checkpoint's state for other class names."""
    state = {k: torch.full_like(v, 0.5) for k, v in head.state_dict().items()}
    rows = torch.randn(DIM, classes, generator=torch.Generator().manual_seed(seed))
    state[VOCABULARY] = torch.cat([rows / rows.norm(dim=0), torch.zeros(DIM, 1)], dim=1)
    state["freq_weight"] = torch.full((classes,), 2.0)
    return state


@pytest.mark.parametrize("classes", [CLASSES, 9])
def test_the_configured_vocabulary_wins_and_says_so(cosine_layers, caplog, classes):
    head = cosine_layers()
    mine = head.cls_score.zs_weight.clone()
    with caplog.at_level(logging.WARNING, logger="clim"):
        head.load_state_dict(other_state(head, classes=classes))
    assert torch.equal(head.cls_score.zs_weight, mine)
    assert (head.cls_score.linear.weight == 0.5).all()  # everything else is the checkpoint's
    (record,) = caplog.records
    assert f"({classes} classes) differ from the configured vocabulary (5 classes)" in record.getMessage()


def test_the_same_vocabulary_is_not_worth_a_word(cosine_layers, caplog):
    head = cosine_layers()
    state = other_state(head)
    state[VOCABULARY] = head.cls_score.zs_weight.half()
    mine = head.cls_score.zs_weight.clone()
    with caplog.at_level(logging.INFO, logger="clim"):
        head.load_state_dict(state)
    assert torch.equal(head.cls_score.zs_weight, mine) and not caplog.records


def test_without_a_configured_vocabulary_the_checkpoints_is_used(cosine_layers, caplog):
    head = cosine_layers(names=False)
    state = other_state(head)
    head.load_state_dict(dict(state))
    assert torch.equal(head.cls_score.zs_weight, state[VOCABULARY])
    assert not caplog.records


def test_loading_does_not_change_the_given_state(cosine_layers):
    head = cosine_layers()
    state = other_state(head)
    theirs = state[VOCABULARY]
    head.load_state_dict(state)
    assert state[VOCABULARY] is theirs


def test_a_state_without_a_vocabulary_is_told_by_strict_loading(cosine_layers):
    head = cosine_layers()
    state = other_state(head)
    del state[VOCABULARY]
    with pytest.raises(RuntimeError, match="Missing key.*zs_weight"):
        head.load_state_dict(state)


def test_another_vocabulary_at_run_time(cosine_layers, sampled):
    head = cosine_layers().eval()
    head.set_vocabulary(torch.randn(7, DIM))
    assert head.num_classes == 7 and head.freq_weight.tolist() == [1] * 7
    predictions = head(torch.randn(2, WIDTH))
    assert predictions[0].shape == (2, 8)
    proposals = [sampled([[0, 0, 9, 9]] * 2, [0] * 2)]
    (result,), _ = head.inference(predictions, proposals)
    assert set(result.pred_classes.tolist()) <= set(range(7))


@pytest.mark.parametrize("config", ["OVRCNN_C4.yaml", "mini/ovrcnn.yaml"])
@pytest.mark.parametrize("predictor", ["OpenVocabOutputLayers", "OVRCNNOutputLayers"])
def test_both_c4_heads_take_any_predictor(load_cfg, config, predictor):
    keys = ("MODEL.VOCABULARY.EMBEDDINGS", "", "MODEL.ROI_BOX_HEAD.PREDICTOR", predictor)
    model = build(load_cfg(config, *keys))
    assert type(model.roi_heads.box_predictor) is BOX_PREDICTOR_REGISTRY.get(predictor)
    width = {"OVRCNN_C4.yaml": 2048, "mini/ovrcnn.yaml": 320}[config]
    logits, deltas = model.roi_heads.box_predictor(torch.randn(2, width))
    assert logits.shape == (2, model.roi_heads.num_classes + 1) and deltas.shape == (2, 4)


def test_an_unknown_predictor_is_told(load_cfg):
    cfg = load_cfg("OVRCNN_C4.yaml", "MODEL.ROI_BOX_HEAD.PREDICTOR", "OVRCNN")
    with pytest.raises(UserError, match="'OVRCNN' is unknown: choose one of .*OVRCNNOutputLayers"):
        build_box_predictor(cfg, SHAPE, text_encoder=None)


def test_ranks_go_by_logits_where_scores_are_one(cosine_layers, sampled):
    """Sigmoids of 18 and 20 are both 1 in float32; scores that are not above the threshold are left out."""
    head = cosine_layers().eval()
    head.test_score_thresh = 0.05
    logits = torch.full((3, CLASSES + 1), -30.0)
    logits[0, 3], logits[1, 3], logits[2, 0] = 18.0, 20.0, -2.95
    proposals = [sampled([[0, 0, 9, 9], [20, 20, 40, 40], [0, 50, 9, 60]], [0] * 3)]
    (found,), (kept,) = head.inference((logits, torch.zeros(3, 4)), proposals)
    assert kept.tolist() == [1, 0] and found.logits.tolist() == [20, 18]
    assert found.scores.tolist() == [1, 1] and found.pred_classes.tolist() == [3, 3]
    assert found.pred_boxes.tensor.tolist() == [[20, 20, 40, 40], [0, 0, 9, 9]]
