"""A detector on an image-text model's weights computes what that model's encoder does, location by location."""

import logging

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from clim.checkpoints import SafeCheckpointer
from clim.errors import UserError

DIM = 12


@pytest.fixture
def build(load_cfg, tmp_path):
    """``build(config, dim)``: a detector of random class embeddings, all classes with boxes."""

    def make(config, dim=DIM):
        rows = np.random.default_rng(0).normal(size=(load_cfg(config).MODEL.ROI_HEADS.NUM_CLASSES, dim))
        np.save(tmp_path / "classes.npy", rows.astype(np.float32))
        keys = ("MODEL.VOCABULARY.EMBEDDINGS", str(tmp_path / "classes.npy"), "MODEL.TEXT.DIM", dim)
        return build_model(load_cfg(config, *keys, "MODEL.OPEN_VOCAB.BASE_CLASSES", "")).eval()

    return make


@pytest.fixture
def load(caplog):
    """``load(model, path)``: what the log says."""

    def load_and_read(model, path):
        with caplog.at_level(logging.INFO, logger="clim"):
            SafeCheckpointer(model, "").load(path)
        return caplog.text

    return load_and_read


@pytest.mark.parametrize("config, trunk", [("OVRCNN_C4.yaml", "resnet"), ("mini/ovrcnn.yaml", "efficientnet")])
@torch.no_grad()
def test_features_and_projections_are_the_encoders(config, trunk, make_encoder, save_stage1, build, load, tmp_path):
    encoder, model = make_encoder(trunk, DIM), build(config)
    log = load(model, save_stage1(encoder, tmp_path))
    images = torch.randn(1, 3, 64, 96)
    features = model.roi_heads.res5(model.backbone(images)["res4"])
    assert features.shape[2:] == (2, 3)
    torch.testing.assert_close(features, encoder.feature_map(images))
    rows, predictor = features.flatten(2)[0].T, model.roi_heads.box_predictor
    torch.testing.assert_close(predictor.project(rows), encoder.project(rows))
    assert not predictor.emb_pred.weight.requires_grad and not predictor.emb_pred.bias.requires_grad
    assert "with its projection" in log and "no projection" not in log


def test_a_detector_without_such_a_projection_takes_the_trunk(make_encoder, save_stage1, build, load, tmp_path):
    encoder, model = make_encoder("efficientnet", DIM), build("mini/base_stage.yaml", 384)
    before = model.classifier.linear.weight.clone()
    assert "without its projection" in load(model, save_stage1(encoder, tmp_path))
    assert torch.equal(model.roi_heads.res5.blocks[4]._project_conv.weight, encoder.blocks[15]._project_conv.weight)
    assert torch.equal(model.classifier.linear.weight, before)


def test_files_that_do_not_fit(make_encoder, save_stage1, build, load, tmp_path):
    with pytest.raises(UserError, match=r"emb_pred.weight is \(10, 320\), here it is \(12, 320\)"):
        load(build("mini/ovrcnn.yaml"), save_stage1(make_encoder("efficientnet", 10), tmp_path))
    path = save_stage1(make_encoder("efficientnet", DIM), tmp_path)
    file = torch.load(path)
    del file["model"]["image_encoder.blocks.3._expand_conv.weight"]
    torch.save(file, path)
    with pytest.raises(UserError, match="backbone.trunk.blocks.3._expand_conv.weight is missing"):
        load(build("mini/ovrcnn.yaml"), path)


def test_a_detectors_own_file_is_left_alone(shaken, build, load, tmp_path):
    trained, model = shaken(build("mini/ovrcnn.yaml")), build("mini/ovrcnn.yaml")
    expected = trained.state_dict()
    SafeCheckpointer(trained, str(tmp_path)).save("stage2")
    log, state = load(model, str(tmp_path / "stage2.pth")), model.state_dict()
    name = trained.roi_heads.box_predictor.vocabulary_key  # the configured one stays
    assert all(torch.equal(state[k], v) for k, v in expected.items() if not k.endswith(name))
    assert "Taken from" not in log
