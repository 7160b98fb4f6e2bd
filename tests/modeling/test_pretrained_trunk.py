"""A detector on an image-text model's weights computes what that model's encoder does, location by location."""

import logging

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from clim.checkpoints import SafeCheckpointer
from clim.errors import UserError

DIM = 12


@pytest.fixture
def cfg_of(load_cfg, tmp_path):
    """``cfg_of(config, dim)``: a detector of random class embeddings, all classes with boxes."""

    def load(config, dim=DIM):
        cfg = load_cfg(config)
        rows = np.random.default_rng(0).normal(size=(cfg.MODEL.ROI_HEADS.NUM_CLASSES, dim))
        np.save(tmp_path / "classes.npy", rows.astype(np.float32))
        keys = ("MODEL.VOCABULARY.EMBEDDINGS", str(tmp_path / "classes.npy"), "MODEL.TEXT.DIM", dim)
        return load_cfg(config, *keys, "MODEL.OPEN_VOCAB.BASE_CLASSES", "")

    return load


class LiteEncoder(nn.Module):
    """The mini benchmark's encoder, as it is built."""

    def __init__(self, load_cfg, dim):
        super().__init__()
        self.encoder = build_model(load_cfg("mini/clip_start.yaml", "MODEL.VOCABULARY.EMBEDDINGS", "")).image_encoder
        self.encoder.projection = nn.Linear(320, dim)

    def forward(self, images):
        return self.encoder._head(self.encoder.features(images)["dense"]), self.encoder.projection


@pytest.fixture
def make_encoder(grid_encoder, load_cfg, shaken):
    """``make_encoder("resnet" or "efficientnet", dim)``: from images to a feature map and the projection."""

    def make(trunk, dim=12):
        return grid_encoder(dim) if trunk == "resnet" else shaken(LiteEncoder(load_cfg, dim))

    return make


TRUNKS = [("OVRCNN_C4.yaml", "resnet"), ("mini/ovrcnn.yaml", "efficientnet")]


@pytest.mark.parametrize("config, trunk", TRUNKS)
@torch.no_grad()
def test_features_and_projections_are_the_encoders(config, trunk, make_encoder, save_stage1, cfg_of, tmp_path, caplog):
    encoder = make_encoder(trunk)
    with caplog.at_level(logging.INFO, logger="clim"):
        model = build_model(cfg_of(config)).eval()
        SafeCheckpointer(model, "").load(save_stage1(encoder, tmp_path))
    images = torch.randn(1, 3, 64, 96)
    expected, projection = encoder(images)
    features = model.roi_heads.res5(model.backbone(images)["res4"])
    assert features.shape == (1, expected.shape[1], 2, 3)
    torch.testing.assert_close(features, expected)
    rows = features.flatten(2)[0].T
    torch.testing.assert_close(model.roi_heads.box_predictor.project(rows), projection(rows))
    frozen = model.roi_heads.box_predictor.emb_pred
    assert not frozen.weight.requires_grad and not frozen.bias.requires_grad
    assert "with its projection" in caplog.text and "no projection" not in caplog.text


def test_a_detector_without_such_a_projection_takes_the_trunk(make_encoder, save_stage1, cfg_of, tmp_path, caplog):
    encoder = make_encoder("efficientnet")
    model = build_model(cfg_of("mini/base_stage.yaml", 384))
    before = model.classifier.linear.weight.clone()
    with caplog.at_level(logging.INFO, logger="clim"):
        SafeCheckpointer(model, "").load(save_stage1(encoder, tmp_path))
    assert torch.equal(
        model.roi_heads.res5.blocks[4]._project_conv.weight, encoder.encoder.blocks[15]._project_conv.weight
    )
    assert torch.equal(model.classifier.linear.weight, before) and "without its projection" in caplog.text


def test_a_projection_of_another_width(make_encoder, save_stage1, cfg_of, tmp_path):
    path = save_stage1(make_encoder("efficientnet", dim=10), tmp_path)
    model = build_model(cfg_of("mini/ovrcnn.yaml"))
    with pytest.raises(UserError, match=r"emb_pred.weight the shape \(10, 320\), but here it is \(12, 320\)"):
        SafeCheckpointer(model, "").load(path)


def test_a_shallower_trunk(make_encoder, save_stage1, cfg_of, tmp_path):
    path = save_stage1(make_encoder("efficientnet"), tmp_path)
    file = torch.load(path)
    del file["model"]["image_encoder.blocks.3._expand_conv.weight"]
    torch.save(file, path)
    with pytest.raises(UserError, match="lacks 1 tensors of the trunk, backbone.trunk.blocks.3._expand_conv.weight"):
        SafeCheckpointer(build_model(cfg_of("mini/ovrcnn.yaml")), "").load(path)


def test_a_detectors_own_file_is_left_alone(shaken, load_cfg, tmp_path, caplog):
    cfg = load_cfg("mini/ovrcnn.yaml", "MODEL.VOCABULARY.EMBEDDINGS", "")
    trained = shaken(build_model(cfg))
    SafeCheckpointer(trained, str(tmp_path)).save("stage2")
    model = build_model(cfg)
    with caplog.at_level(logging.INFO, logger="clim"):
        SafeCheckpointer(model, "").load(str(tmp_path / "stage2.pth"))
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in trained.state_dict().items())
    assert "Taken from" not in caplog.text
