"""What all image encoders share: choice by name, regions and masks, positions, what stays frozen."""

import pytest
import torch
from detectron2.structures import Boxes

from clim.errors import UserError
from clim.modeling import build_image_encoder
from clim.modeling.backbones.encoder import resize_positions
from clim.modeling.region_pooling import pool_masks

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


@pytest.fixture(
    scope="module",
    params=["ClipViT", "ClipViT eva02", "ClipViT pe", "ClipResNet v1", "ClipResNet v2", "EfficientNetLite0"],
)
def encoder(request, make_cfg, random_clip, tiny_json):
    name, _, option = request.param.partition(" ")
    change = {"ARCHITECTURE": tiny_json(option)} if name == "ClipViT" and option else {"REGIONS": option or "v2"}
    cfg = make_cfg(name, **change)
    encoder = build_image_encoder(cfg)
    if hasattr(encoder, "visual"):
        encoder.visual.load_state_dict(random_clip(cfg.MODEL.IMAGE_ENCODER.ARCHITECTURE).visual.state_dict())
    return encoder.eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name, changes, message", [
    ("ClipViT", {"ARCHITECTURE": "resnet"}, "IMAGE_ENCODER.ARCHITECTURE does not name a CLIP"),
    ("ClipResNet", {"ARCHITECTURE": "vit"}, "IMAGE_ENCODER.ARCHITECTURE does not name a CLIP"),
    ("ClipViT", {"UNLOCKED_BLOCKS": 5}, "UNLOCKED_BLOCKS is 5"),
    ("ClipResNet", {"UNLOCKED_BLOCKS": 2}, "UNLOCKED_BLOCKS is 2"),
    ("EfficientNetLite0", {"UNLOCKED_BLOCKS": -1}, "UNLOCKED_BLOCKS is -1"),
    ("ClipResNet", {"CHECKPOINTING": True}, "CHECKPOINTING works with ClipViT, not with ClipResNet"),
])  # fmt: skip
def test_errors(make_cfg, tiny_json, name, changes, message):
    if "ARCHITECTURE" in changes:
        changes = {"ARCHITECTURE": tiny_json(changes["ARCHITECTURE"])}
    with pytest.raises(UserError, match=message):
        build_image_encoder(make_cfg(name, **changes))


def test_shapes(encoder, images):
    features = encoder.features(images)
    (regions,) = encoder.embed_stages(features, BOXES)
    dense = encoder.dense(features)
    assert list(features) == ["dense"]
    assert features["dense"].shape[2:] == (64 // encoder.stride, 96 // encoder.stride)
    assert regions.shape == (4, 12) and encoder.embed_images(images).shape == (2, 12)
    assert dense.shape == (2, 12, 64 // encoder.dense_stride, 96 // encoder.dense_stride)
    torch.testing.assert_close(dense.norm(dim=1), torch.ones(2, *dense.shape[2:]))
    taps, dense = encoder.taps(images)
    assert list(taps) == list(encoder.tap_shapes)
    for name, shape in encoder.tap_shapes.items():
        assert taps[name].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)
    torch.testing.assert_close(dense, features["dense"])


def test_batched_equals_single(encoder, images):
    masks = [torch.rand(2, 64, 96, generator=torch.Generator().manual_seed(i)) > 0.6 for i in range(2)]

    def embed(i):
        features = encoder.features(images[i])
        (regions,) = encoder.embed_stages(features, BOXES[i])
        pairs = zip(encoder.dense(features), masks[i], strict=True)
        masked = torch.cat([pool_masks(dense, mask, stride=encoder.dense_stride) for dense, mask in pairs])
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
    no_masks = torch.zeros(0, 64, 96, dtype=torch.bool)
    assert pool_masks(encoder.dense(features)[0], no_masks, stride=encoder.dense_stride).shape == (0, 12)


def test_mixed_precision_stays_close(encoder, images):
    def embed():
        (regions,) = encoder.embed_stages(encoder.features(images), BOXES)
        return torch.nn.functional.normalize(torch.cat([regions, encoder.embed_images(images)]).float(), dim=1)

    exact = embed()
    with torch.autocast("cpu", torch.bfloat16):
        assert (exact * embed()).sum(1).min() > 0.99


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


@pytest.mark.parametrize("grid", [(14, 14), (20, 20), (40, 40), (9, 13), (1, 30)])
def test_positions_are_resized_as_by_loops(grid, slow_positions):
    positions = torch.randn(1 + 14 * 14, 5, generator=torch.Generator().manual_seed(0))
    resized = resize_positions(positions, grid)
    assert resized.shape == (1 + grid[0] * grid[1], 5) and (resized is positions) == (grid == (14, 14))
    torch.testing.assert_close(resized, slow_positions(positions, grid), rtol=0, atol=1e-5)


def test_masks_average_locations(make_cfg):
    vit = build_image_encoder(make_cfg("ClipViT")).eval()  # 8 px a location
    maps = torch.randn(1, 12, 4, 5, generator=torch.Generator().manual_seed(1))
    dense = torch.nn.functional.normalize(maps, dim=1)
    assert_close = torch.testing.assert_close

    def embed(*areas, size=(32, 40)):
        mask = torch.zeros(1, *size, dtype=torch.bool)
        for top, left, bottom, right in areas:
            mask[0, top:bottom, left:right] = True
        return pool_masks(dense[0], mask, stride=vit.dense_stride)

    # One whole location, the left half of the next, and less than half of a third.
    covered = embed((8, 16, 16, 24), (8, 24, 16, 28), (24, 0, 32, 3))
    assert_close(covered, (dense[:, :, 1, 2] + dense[:, :, 1, 3]) / 2)
    # Small masks: two locations are covered alike, then one most.
    assert_close(embed((7, 14, 12, 18)), dense[:, :, 1, [1, 2]].mean(2))
    assert_close(embed((7, 14, 12, 19)), dense[:, :, 1, 2])
    assert not embed().any()
    for size in ((20, 32), (35, 47)):  # smaller and larger than the map
        h, w = (min(full, (s + 4) // 8) for full, s in zip((4, 5), size, strict=True))
        assert_close(embed((0, 0, 40, 50), size=size), dense[:, :, :h, :w].mean((2, 3)))
