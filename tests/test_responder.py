"""The model behind response maps: one text tower, and a vocabulary that a question leaves as it was."""

import numpy as np
import pytest
import torch

from clim.modeling.output_layers import TextOutputLayers
from clim.responder import Responder


@pytest.fixture
def responder(tiny_cfg):
    torch.manual_seed(0)
    return Responder(tiny_cfg("MODEL.TEXT.CACHE", ""), prompt="name")


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)


def test_the_model_s_own_tower_reads_the_texts(responder):
    assert responder.text_encoder is responder.model.text_encoder
    with torch.no_grad():
        expected = responder.model.text_encoder.encode(["dog", "teapot"])
    assert torch.equal(responder.embed(["dog", "teapot"]), expected)


def test_an_empty_cache_in_front_of_the_tower_is_the_model_s_too(tiny_cfg, tmp_path):
    asked = Responder(tiny_cfg("MODEL.TEXT.CACHE", str(tmp_path / "captions")))
    assert len(asked.text_encoder) == 0 and asked.text_encoder is asked.model.text_encoder


def test_the_best_box_leaves_the_vocabulary_as_it_was(responder, picture):
    predictor = responder.model.roi_heads.box_predictor
    before = {name: buffer.clone() for name, buffer in predictor.named_buffers()}
    texts = responder.embed(["dog", "teapot"])
    first = responder.best_box(picture, texts[0])
    assert predictor.num_classes == 65 and before["cls_score.zs_weight"].shape == (384, 66)
    after = dict(predictor.named_buffers())
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    # Nor does one question change the answer to the next.
    responder.best_box(picture, texts[1])
    np.testing.assert_array_equal(responder.best_box(picture, texts[0]), first)


def test_the_vocabulary_comes_back_where_detection_fails(responder, picture, monkeypatch):
    predictor = responder.model.roi_heads.box_predictor

    def fail(*_):
        assert predictor.num_classes == 1 and predictor.freq_weight.shape == (1,)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(TextOutputLayers, "inference", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        responder.best_box(picture, responder.embed(["dog"])[0])
    assert predictor.num_classes == 65 and predictor.freq_weight.sum() == 48
