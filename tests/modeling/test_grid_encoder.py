"""Encoders that are read cell by cell: their maps and projections, and the names of their weights."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.modeling import build_resnet_backbone

from clim.engine import SafeCheckpointer
from clim.modeling import EfficientNetLite0, GridEncoder, build_image_encoder


@pytest.fixture(scope="module")
def cfg(load_cfg):
    return load_cfg("OVRCNN_pretrain.yaml", "MODEL.TEXT.DIM", 12)


@pytest.fixture(scope="module")
def resnet(cfg):
    torch.manual_seed(0)
    return build_image_encoder(cfg).train()


def test_cells_are_c5_and_the_projection_is_linear(resnet):
    images = torch.randn(2, 3, 70, 97)
    cells = resnet.cells(images)
    assert cells.shape == (2, 2048, 3, 4)  # stride 32, rounded up
    torch.testing.assert_close(cells, resnet.backbone(images)["res5"])
    rows = torch.randn(5, 2048)
    torch.testing.assert_close(resnet.project(rows), rows @ resnet.emb_pred.weight.T + resnet.emb_pred.bias)
    assert resnet.project(rows[:0]).shape == (0, 12)


def test_all_convolutions_learn_and_no_norm(resnet):
    """Official OVR-CNN: FREEZE_CONV_BODY_AT 0, frozen batch norm (ovrcnn §1.1)."""
    assert isinstance(resnet, GridEncoder) and all(p.requires_grad for p in resnet.parameters())
    assert not any("norm" in name for name, _ in resnet.named_parameters())
    assert (resnet.backbone.res3[0].conv1.stride, resnet.backbone.res3[0].conv2.stride) == ((2, 2), (1, 1))


def test_frozen_stages_are_a_key(cfg):
    cfg = cfg.clone()
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    frozen = {n.split(".")[1] for n, p in build_image_encoder(cfg).named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "res2"}


class Model(torch.nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.image_encoder = encoder


def caffe2_name(name):
    """What MSRA's file calls a weight of Detectron2's ResNet."""
    parts = name.split(".")
    if parts[0] == "stem":
        return (
            "conv1_w" if parts[2] == "weight" else "res_conv1_bn_" + {"weight": "s", "bias": "b"}[parts[-1]]
        )
    stage, block, conv = parts[:3]
    branch = "branch1" if conv == "shortcut" else f"branch2{'abc'[int(conv[-1]) - 1]}"
    kind = "w" if parts[3] == "weight" else "bn_" + {"weight": "s", "bias": "b"}[parts[-1]]
    return f"{stage}_{block}_{branch}_{kind}"


def test_msras_file_fits(cfg, resnet, tmp_path):
    """The .pkl that the config names, by its layout: {Caffe2 name: array}, batch norm as scale and shift."""
    generator = torch.Generator().manual_seed(1)
    weights, expected = {"fc1000_w": np.zeros((1000, 2048), np.float32)}, {}
    for name, value in resnet.backbone.state_dict().items():
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            continue
        expected[name] = torch.rand(value.shape, generator=generator)
        weights[caffe2_name(name)] = expected[name].numpy()
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": weights}))
    encoder = build_image_encoder(cfg)
    before = encoder.emb_pred.weight.clone()
    SafeCheckpointer(Model(encoder), str(tmp_path)).load(str(tmp_path / "R-50.pkl"))
    state = encoder.backbone.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert torch.equal(encoder.emb_pred.weight, before)


def test_names_of_the_file_for_the_second_stage(cfg, resnet):
    names = {f"backbone.{name}" for name in build_resnet_backbone_names(cfg)}
    assert set(resnet.state_dict()) == names | {"emb_pred.weight", "emb_pred.bias"}


def build_resnet_backbone_names(cfg):
    cfg = cfg.clone()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4", "res5"]
    from detectron2.layers import ShapeSpec

    return build_resnet_backbone(cfg, ShapeSpec(channels=3)).state_dict()


def test_efficientnets_cells_average_to_its_picture_embedding():
    torch.manual_seed(0)
    encoder = EfficientNetLite0(dim=6, unlocked_blocks=2).eval()
    assert isinstance(encoder, GridEncoder)
    images = torch.randn(2, 3, 64, 96)
    cells = encoder.cells(images)
    assert cells.shape == (2, 320, 2, 3)
    rows = encoder.project(cells.permute(0, 2, 3, 1).flatten(0, 2))
    mean = rows.view(2, 6, 6).mean(1)
    torch.testing.assert_close(mean, encoder.embed_images(images), rtol=1e-4, atol=1e-5)
    unit = encoder.dense(encoder.features(images)).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(torch.nn.functional.normalize(rows, dim=1), unit, rtol=1e-4, atol=1e-5)
