"""The backbone of OV-LVIS: torchvision's ResNet-50 under official Detic's names, and the files it starts from."""

import pickle

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet50

from clim.checkpoints import SafeCheckpointer
from clim.config import add_clim_config

SHAPES = {f"p{i}": (256, 2**i) for i in range(3, 8)}
BASE = "backbone.bottom_up.base."


def detector():
    """A module with the backbone where a detector has it."""
    cfg = get_cfg()
    add_clim_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_p67_timm_fpn_backbone"
    return nn.ModuleDict({"backbone": build_backbone(cfg, ShapeSpec(channels=3))})


@pytest.fixture(scope="module")
def published():
    """torchvision's network with the classes of ImageNet-21K-P, as the published file stores it."""
    torch.manual_seed(1)
    net = resnet50(num_classes=11221).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net


@pytest.fixture(scope="module")
def loaded(published, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet50_miil_21k.pth"
    torch.save({"state_dict": published.state_dict(), "epoch": 79}, path)
    model = detector()
    SafeCheckpointer(model, "").load(str(path))
    return model


def check_weights(model, published):
    state = model.state_dict()
    assert all(torch.equal(state[BASE + name], value) for name, value in published.state_dict().items())


def test_published_weights_load_as_they_are(loaded, published, tmp_path):
    check_weights(loaded, published)
    arrays = {name: value.numpy() for name, value in published.state_dict().items()}
    pickled = tmp_path / "resnet50_miil_21k.pkl"  # as official Detic's tool converts it
    pickled.write_bytes(pickle.dumps({"model": arrays, "__author__": "third_party", "matching_heuristics": True}))
    model = detector()
    SafeCheckpointer(model, "").load(str(pickled))
    check_weights(model, published)


@torch.no_grad()
def test_levels_are_those_of_torchvisions_layers(loaded, published):
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    backbone, net = loaded["backbone"], published
    taps, y = [], net.maxpool(net.relu(net.bn1(net.conv1(x))))
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        taps.append(y := layer(y))
    found = backbone.train().bottom_up(x)  # no mode changes batch norm
    assert list(found) == ["layer3", "layer4", "layer5"]
    for ours, theirs in zip(found.values(), taps[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert {name: (s.channels, s.stride) for name, s in backbone.output_shape().items()} == SHAPES
    assert backbone.size_divisibility == 32
    features = backbone(x)
    sizes = {"p3": (8, 12), "p4": (4, 6), "p5": (2, 3), "p6": (1, 2), "p7": (1, 1)}
    assert {name: tuple(f.shape) for name, f in features.items()} == {n: (1, 256, *s) for n, s in sizes.items()}
    p6 = backbone.top_block.p6(features["p5"])
    torch.testing.assert_close(features["p6"], p6)
    torch.testing.assert_close(features["p7"], backbone.top_block.p7(F.relu(p6)))
    top_down = F.interpolate(backbone.fpn_lateral5(taps[3]), size=(4, 6), mode="nearest")
    p4 = backbone.fpn_output4(top_down + backbone.fpn_lateral4(taps[2]))
    torch.testing.assert_close(features["p4"], p4, rtol=1e-3, atol=1e-3)


def test_all_but_batch_norm_and_the_unused_classifier_learn(loaded):
    loaded.train()
    before = {name: value.clone() for name, value in loaded.named_buffers()}
    loss = sum(f.square().mean() for f in loaded["backbone"](torch.randn(1, 3, 64, 64)).values())
    loss.backward()
    learning = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert {n for n, p in loaded.named_parameters() if p.grad is not None} == learning
    assert {n for n, _ in loaded.named_parameters()} - learning == {BASE + "fc.weight", BASE + "fc.bias"}
    trained = {"bottom_up": 0, "fpn": 0}
    for name in learning:
        trained["bottom_up" if "bottom_up" in name else "fpn"] += loaded.get_parameter(name).numel()
    assert {part: round(count / 1e6, 1) for part, count in trained.items()} == {"bottom_up": 23.5, "fpn": 3.9}
    assert all(torch.equal(value, before[name]) for name, value in loaded.named_buffers())
    assert sum(isinstance(m, FrozenBatchNorm2d) for m in loaded.modules()) == 53
    strides = {n: m.stride for n, m in loaded["backbone"].bottom_up.base.layer2[0].named_modules() if "conv" in n}
    assert strides == {"conv1": (1, 1), "conv2": (2, 2), "conv3": (1, 1)}
