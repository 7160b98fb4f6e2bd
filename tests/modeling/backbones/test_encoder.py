"""What all image encoders share: choice by name, regions and masks, positions, what stays frozen."""

import pytest
import torch
from detectron2.structures import Boxes

from clim.errors import UserError
from clim.modeling import build_image_encoder
from clim.modeling.backbones.encoder import resize_positions

BOXES = [
    Boxes(torch.tensor([[0.0, 0, 96, 64], [10, 3, 50, 60], [70, 30, 80, 40]])),
    Boxes(torch.tensor([[33.3, 1.5, 95, 20]])),
]


@pytest.fixture(scope="module")
def make_cfg(load_cfg, tiny_json):
    architectures = {"ClipViT": tiny_json("vit"), "ClipResNet": tiny_json("resnet"), "EfficientNetLite0": ""}

    def make(name, **changes):
        cfg = load_cfg("Detic_C4.yaml", "MODEL.TEXT.DIM", 12)
        keys = {"NAME": name, "ARCHITECTURE": architectures.get(name, ""), "PRETRAINED": ""}
        for key, value in (keys | {"UNLOCKED_BLOCKS": 1} | changes).items():
            cfg.MODEL.IMAGE_ENCODER[key] = value
        return cfg

    return make


@pytest.fixture(scope="module", params=["ClipViT", "ClipResNet v1", "ClipResNet v2", "EfficientNetLite0"])
def encoder(request, make_cfg, random_clip):
    name, _, regions = request.param.partition(" ")
    cfg = make_cfg(name, **({"REGIONS": regions} if regions else {}))
    encoder = build_image_encoder(cfg)
    if hasattr(encoder, "visual"):
        encoder.visual.load_state_dict(random_clip(cfg.MODEL.IMAGE_ENCODER.ARCHITECTURE).visual.state_dict())
    return encoder.eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


# ---- choice -----------------------------------------------------------------------------------------


def test_unknown_name(make_cfg):
    with pytest.raises(UserError, match="MODEL.IMAGE_ENCODER.NAME 'ViT' is unknown.*ClipResNet, ClipViT"):
        build_image_encoder(make_cfg("ViT"))


@pytest.mark.parametrize("name, blocks", [("ClipViT", 5), ("ClipResNet", 2), ("EfficientNetLite0", 17)])
@pytest.mark.parametrize("sign", [1, -1])
def test_more_blocks_than_there_are(make_cfg, name, blocks, sign):
    with pytest.raises(UserError, match=f"MODEL.IMAGE_ENCODER.UNLOCKED_BLOCKS is {sign * blocks}"):
        build_image_encoder(make_cfg(name, UNLOCKED_BLOCKS=sign * blocks))


@pytest.mark.parametrize("name, other", [("ClipViT", "resnet"), ("ClipResNet", "vit")])
def test_architecture_of_another_kind(make_cfg, tiny_json, name, other):
    with pytest.raises(UserError, match="MODEL.IMAGE_ENCODER.ARCHITECTURE does not name a CLIP"):
        build_image_encoder(make_cfg(name, ARCHITECTURE=tiny_json(other)))


def test_unknown_kind_of_regions(make_cfg):
    with pytest.raises(UserError, match="MODEL.IMAGE_ENCODER.REGIONS 'v3'.*v2.*v1"):
        build_image_encoder(make_cfg("EfficientNetLite0", REGIONS="v3"))


# ---- every encoder ----------------------------------------------------------------------------------


def test_shapes(encoder, images):
    features = encoder.features(images)
    (regions,) = encoder.embed_stages(features, BOXES)
    dense = encoder.dense(features)
    assert list(features) == ["dense"]
    assert features["dense"].shape[2:] == (64 // encoder.stride, 96 // encoder.stride)
    assert regions.shape == (4, 12) and encoder.embed_images(images).shape == (2, 12)
    assert dense.shape == (2, 12, 64 // encoder.dense_stride, 96 // encoder.dense_stride)
    torch.testing.assert_close(dense.norm(dim=1), torch.ones(2, *dense.shape[2:]))


def test_taps_have_the_shapes_that_are_told(encoder, images):
    taps, dense = encoder.taps(images)
    assert list(taps) == list(encoder.tap_shapes)
    for name, shape in encoder.tap_shapes.items():
        assert taps[name].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)
    torch.testing.assert_close(dense, encoder.features(images)["dense"])


def test_batched_equals_single(encoder, images):
    masks = [torch.rand(2, 64, 96, generator=torch.Generator().manual_seed(i)) > 0.6 for i in range(2)]

    def embed(i):
        features = encoder.features(images[i])
        (regions,) = encoder.embed_stages(features, BOXES[i])
        masked = encoder.embed_masks(features, masks[i])
        return encoder.embed_images(images[i]), encoder.dense(features), regions, masked

    both, first, second = (embed(i) for i in (slice(0, 2), slice(0, 1), slice(1, 2)))
    for batched, *single in zip(both, first, second, strict=True):
        torch.testing.assert_close(batched, torch.cat(single), rtol=1e-4, atol=1e-5)


def test_no_boxes_and_no_masks(encoder, images):
    features = encoder.features(images)
    none = Boxes(torch.zeros(0, 4))
    (with_one,) = encoder.embed_stages(features, [none, BOXES[1]])
    (expected,) = encoder.embed_stages(encoder.features(images[1:]), [BOXES[1]])
    torch.testing.assert_close(with_one, expected, rtol=1e-4, atol=1e-5)
    (empty,) = encoder.embed_stages(features, [none, none])
    assert empty.shape == (0, 12)
    empty.sum().backward()  # as a process does whose batch has no region
    assert encoder.embed_masks(features, [torch.zeros(0, 64, 96, dtype=torch.bool)] * 2).shape == (0, 12)


def test_mixed_precision_stays_close(encoder, images):
    def unit(x):
        return torch.nn.functional.normalize(x.float(), dim=1)

    (exact,) = encoder.embed_stages(encoder.features(images), BOXES)
    whole = encoder.embed_images(images)
    with torch.autocast("cpu", torch.bfloat16):
        (half,) = encoder.embed_stages(encoder.features(images), BOXES)
        half_whole = encoder.embed_images(images)
    assert (unit(exact) * unit(half)).sum(1).min() > 0.99
    assert (unit(whole) * unit(half_whole)).sum(1).min() > 0.99


@pytest.mark.parametrize("name", ["ClipViT", "ClipResNet", "EfficientNetLite0"])
def test_nothing_unlocked(make_cfg, images, name):
    """All of a CLIP stays in evaluation mode and out of the graph; the projection of EfficientNet learns."""
    encoder = build_image_encoder(make_cfg(name, UNLOCKED_BLOCKS=0)).train()
    learning = {n for n, p in encoder.named_parameters() if p.requires_grad}
    features = encoder.features(images)
    assert not features["dense"].requires_grad
    if name == "EfficientNetLite0":
        assert learning == {"projection.weight", "projection.bias"}
    else:
        assert not learning and not encoder.embed_images(images).requires_grad
        assert not any(module.training for module in encoder.modules())


def test_training_leaves_running_statistics_alone(make_cfg, images):
    encoder = build_image_encoder(make_cfg("ClipResNet"))
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    torch.nn.Sequential(encoder).train()  # as the model around it does
    assert encoder.training and encoder.visual.layer4.training
    assert not any(m.training for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d))
    encoder.embed_images(images)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


# ---- positions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(14, 14), (20, 20), (40, 40), (9, 13), (1, 30)])
def test_positions_are_resized_as_by_loops(grid, slow_positions):
    positions = torch.randn(1 + 14 * 14, 5, generator=torch.Generator().manual_seed(0))
    resized = resize_positions(positions, grid)
    assert resized.shape == (1 + grid[0] * grid[1], 5)
    torch.testing.assert_close(resized, slow_positions(positions, grid), rtol=0, atol=1e-5)


def test_positions_of_the_native_grid_are_the_raw_ones():
    positions = torch.randn(1 + 7 * 7, 5)
    assert resize_positions(positions, (7, 7)) is positions


# ---- masks ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit(make_cfg):
    return build_image_encoder(make_cfg("ClipViT")).eval()  # 8 px a location


@pytest.fixture(scope="module")
def dense():
    maps = torch.randn(1, 12, 4, 5, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.normalize(maps, dim=1)


def mask(*areas, size=(32, 40)):
    out = torch.zeros(1, *size, dtype=torch.bool)
    for top, left, bottom, right in areas:
        out[0, top:bottom, left:right] = True
    return out


def test_masks_average_the_locations_that_they_cover_by_half(vit, dense):
    # One whole location, the left half of the next, and less than half of a third.
    covered = mask((8, 16, 16, 24), (8, 24, 16, 28), (24, 0, 32, 3))
    expected = (dense[:, :, 1, 2] + dense[:, :, 1, 3]) / 2
    torch.testing.assert_close(vit.embed_masks({"dense": dense}, [covered]), expected)


def test_a_small_mask_gets_the_location_that_it_covers_most(vit, dense):
    covered = mask((7, 14, 12, 18))
    torch.testing.assert_close(vit.embed_masks({"dense": dense}, [covered]), dense[:, :, 1, [1, 2]].mean(2))
    covered = mask((7, 14, 12, 19))
    torch.testing.assert_close(vit.embed_masks({"dense": dense}, [covered]), dense[:, :, 1, 2])


def test_an_empty_mask_gives_zeros(vit, dense):
    assert not vit.embed_masks({"dense": dense}, [mask()]).any()


@pytest.mark.parametrize("size", [(20, 32), (35, 47)])
def test_masks_may_end_before_the_canvas_or_after_its_locations(vit, dense, size):
    covered = mask((0, 0, 40, 50), size=size)
    h, w = (min(full, (s + 4) // 8) for full, s in zip((4, 5), size, strict=True))
    expected = dense[:, :, :h, :w].mean((2, 3))
    torch.testing.assert_close(vit.embed_masks({"dense": dense}, [covered]), expected)
