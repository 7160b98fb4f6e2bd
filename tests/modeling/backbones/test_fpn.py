"""F-VLM's backbone: levels and strides of the pyramid, upscaling, and an encoder that nothing moves."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.structures import Boxes
from torch.nn import functional as F

from clim.modeling.backbones.fpn import LEVELS, VLM, TapLevels, rescaling

CHANNELS = 8
VIT_TAPS = {block: ShapeSpec(channels=CHANNELS, stride=16) for block in (3, 5, 7, 11)}


@pytest.fixture
def backbone(load_cfg, tiny_json):
    """``backbone("KEY", value, …)`` of the shipped config, on a small random ViT."""

    def build(*overrides, patch=16):
        torch.manual_seed(0)
        architecture = tiny_json("vit", vision={"image_size": 2 * patch, "patch_size": patch, "layers": 12})
        cfg = load_cfg(
            "FVLM_ViTB16_CLIP_COCO.yaml", "MODEL.IMAGE_ENCODER.ARCHITECTURE", architecture, "MODEL.TEXT.DIM", 12,
            "MODEL.IMAGE_ENCODER.PRETRAINED", "", "MODEL.FPN.OUT_CHANNELS", 24, "MODEL.FPN.NORM", "BN", *overrides,
        )  # fmt: skip
        return build_backbone(cfg)

    return build


@pytest.mark.parametrize("upscaling", ["deconvolution", "interpolation"])
def test_vit_maps_come_to_strides_4_to_32(upscaling):
    levels = TapLevels(VIT_TAPS, upscaling=upscaling, norm="BN")
    maps = {block: torch.randn(2, CHANNELS, 4, 6) for block in VIT_TAPS}
    sizes = {level: tuple(x.shape) for level, x in levels(maps).items()}
    height, width = 4 * 16, 6 * 16
    assert sizes == {level: (2, CHANNELS, height // s, width // s) for level, s in LEVELS.items()}
    shapes = {level: (s.channels, s.stride) for level, s in levels.output_shape().items()}
    assert shapes == {level: (CHANNELS, stride) for level, stride in LEVELS.items()}


def test_the_layers_of_the_release():
    rescale = TapLevels(VIT_TAPS, upscaling="deconvolution", norm="BN").rescale
    assert [type(layer).__name__ for layer in rescale["c2"]] == [
        "ConvTranspose2d", "BatchNorm2d", "GELU", "ConvTranspose2d",
    ]  # fmt: skip
    deconvolutions = [rescale["c2"][0], rescale["c2"][3], rescale["c3"]]
    for layer in deconvolutions:
        assert (layer.kernel_size, layer.stride, layer.out_channels) == ((2, 2), (2, 2), CHANNELS)
    assert type(rescale["c4"]).__name__ == "Identity"
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert rescale["c5"](x).tolist() == [[[[5.0, 7.0], [13.0, 15.0]]]]  # the largest of 2 x 2
    # Without a norm the deconvolutions keep their numbers.
    rescale = TapLevels(VIT_TAPS, upscaling="deconvolution", norm="").rescale["c2"]
    x = torch.randn(1, CHANNELS, 2, 3)
    torch.testing.assert_close(rescale(x), rescale[3](F.gelu(rescale[0](x))))
    assert [name for name, _ in rescale.named_parameters()] == ["0.weight", "0.bias", "3.weight", "3.bias"]


def test_interpolation_learns_nothing_and_each_tap_feeds_its_own_level():
    levels = TapLevels(VIT_TAPS, upscaling="interpolation", norm="BN")
    assert list(levels.parameters()) == []
    maps = {block: torch.full((1, CHANNELS, 2, 2), float(block)) for block in VIT_TAPS}
    found = {level: x.unique().tolist() for level, x in levels(maps).items()}
    assert found == {"c2": [3.0], "c3": [5.0], "c4": [7.0], "c5": [11.0]}
    x = torch.randn(1, 2, 3, 3)
    expected = F.interpolate(x, size=(12, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(rescaling(2, 4, upscaling="interpolation", norm="")(x), expected)


def test_the_pyramid_of_the_shipped_config(backbone):
    model = backbone()
    shapes = {name: (s.channels, s.stride) for name, s in model.output_shape().items()}
    assert shapes == {f"p{i}": (24, 2**i) for i in range(2, 7)} and model.size_divisibility == 32
    features = model.eval()(torch.randn(1, 3, 128, 64))
    assert {n: tuple(features[n].shape) for n in shapes} == {
        name: (1, 24, 128 // stride, 64 // stride) for name, (_, stride) in shapes.items()
    }
    dense = features[VLM]
    assert dense.shape == (1, 12, 8, 4)
    torch.testing.assert_close(dense.norm(dim=1), torch.ones(1, 8, 4))
    # A box on whole locations of one row: the mean of their unit vectors.
    regions = model.embed_regions(features, [Boxes(torch.tensor([[16.0, 0, 48, 16]]))])
    torch.testing.assert_close(regions[0], dense[0, :, 0, 1:3].mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("patch, factors", [(14, 4), (32, 8)])
def test_patches_of_other_sizes(backbone, patch, factors):
    """Images for patches of 14 px become smaller, so that the maps have the sizes of those of 16 px."""
    model, image = backbone(patch=patch).eval(), torch.randn(1, 3, 128, 64)
    features = model(image)
    assert [tuple(features[f"p{i}"].shape[2:]) for i in range(2, 6)] == [(32, 16), (16, 8), (8, 4), (4, 2)]
    deconvolutions = [m for m in model.pyramid.bottom_up.rescale["c2"] if isinstance(m, torch.nn.ConvTranspose2d)]
    assert 2 ** len(deconvolutions) == factors
    if patch == 14:
        small = F.interpolate(image, size=(112, 56), mode="bilinear", align_corners=False)
        assert torch.equal(features[VLM], model.encoder.features(small)["dense"])
        regions = model.embed_regions(features, [Boxes(torch.tensor([[16.001, 0, 47.999, 16]]))])
        torch.testing.assert_close(regions[0], features[VLM][0, :, 0, 1:3].mean(1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["ClipResNet", "EfficientNetLite0"])
def test_other_encoders_with_taps_at_strides_4_to_32(backbone, tiny_json, name):
    """Their maps are taken as they are; no mode of the model changes the encoder."""
    keys = ("MODEL.IMAGE_ENCODER.NAME", name, "MODEL.IMAGE_ENCODER.ARCHITECTURE", tiny_json("resnet"))
    model = backbone(*keys).train()
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    features = model(torch.randn(1, 3, 64, 96))
    assert features["p2"].requires_grad and VLM not in features
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())
    assert not any(module.training for module in model.encoder.modules())
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert list(model.pyramid.bottom_up.parameters()) == []
    features = model.eval()(torch.randn(1, 3, 64, 96))
    assert [tuple(features[f"p{i}"].shape[2:]) for i in range(2, 6)] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    regions = model.embed_regions(features, [Boxes(torch.tensor([[3.0, 5, 40, 60], [0, 0, 96, 64]]))])
    assert regions.shape == (2, 12) and regions.isfinite().all()
