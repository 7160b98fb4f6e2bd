"""CLIP's ResNet against open_clip and against clip_fvlm §1 written out."""

import math

import pytest
import torch
from detectron2.structures import Boxes
from torchvision.ops import roi_align

from clim.modeling.clip_resnet import ROIS_AT_ONCE, ClipResNet

BOXES = [Boxes(torch.tensor([[0.0, 0, 96, 64], [10, 20, 90, 50]])), Boxes(torch.tensor([[32.0, 0, 64, 32]]))]


def make(visual, *, unlocked_blocks=1, regions="v2"):
    return ClipResNet(visual=visual, unlocked_blocks=unlocked_blocks, regions=regions).eval()


@pytest.fixture(scope="module")
def full(random_clip):
    return random_clip("RN50-quickgelu").visual


@pytest.fixture(scope="module")
def tiny(random_clip, tiny_json):
    return random_clip(tiny_json("resnet")).visual


def pictures(height, width, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


# ---- the slow references ----------------------------------------------------------------------------


def slow_tokens(pool, layer4, slow_positions):
    """(1 + h·w, C): mean and cells of (C, h, w), with positions."""
    _, h, w = layer4.shape
    cells = [layer4[:, i, j] for i in range(h) for j in range(w)]
    tokens = torch.stack([sum(cells) / len(cells), *cells])
    return tokens + slow_positions(pool.positional_embedding, (h, w))


@torch.no_grad()
def slow_dense(pool, layer4, slow_positions):
    """(D, h, w): values and output projection as 1 x 1 convolutions of every token, the mean's dropped."""
    _, h, w = layer4.shape
    dense = torch.zeros(len(pool.c_proj.bias), h, w)
    for cell, token in enumerate(slow_tokens(pool, layer4, slow_positions)[1:]):
        vector = pool.c_proj.weight @ (pool.v_proj.weight @ token + pool.v_proj.bias) + pool.c_proj.bias
        dense[:, cell // w, cell % w] = vector / math.sqrt(vector.square().sum())
    return dense


@torch.no_grad()
def slow_attention_pool(pool, layer4, slow_positions):
    """(D,): the mean token asks all tokens, head by head."""
    tokens = slow_tokens(pool, layer4, slow_positions)
    width, answers = tokens.shape[1] // pool.num_heads, []
    for head in range(pool.num_heads):
        rows = slice(head * width, (head + 1) * width)
        query, keys, values = (
            x @ proj.weight[rows].T + proj.bias[rows]
            for x, proj in ((tokens[0], pool.q_proj), (tokens, pool.k_proj), (tokens, pool.v_proj))
        )
        weights = torch.exp(keys @ query / math.sqrt(width))
        answers.append((weights / weights.sum()) @ values)
    return pool.c_proj.weight @ torch.cat(answers) + pool.c_proj.bias


@pytest.mark.parametrize("size", [224, 320, pytest.param(640, marks=pytest.mark.slow)])
def test_dense_map_and_picture_of_rn50(full, size, slow_positions):
    encoder = make(full)
    with torch.no_grad():
        features = encoder.features(pictures(size, size))
        dense, picture = encoder.dense(features), encoder.embed_images(pictures(size, size))
    layer4 = features["dense"][0]
    assert layer4.shape == (2048, size // 32, size // 32)
    expected = slow_dense(full.attnpool, layer4, slow_positions)
    torch.testing.assert_close(dense[0], expected, rtol=0, atol=1e-5)
    expected = slow_attention_pool(full.attnpool, layer4, slow_positions)
    torch.testing.assert_close(picture[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (160, 32)])
def test_dense_map_and_picture_of_a_tiny_one(tiny, size, slow_positions):
    encoder = make(tiny)
    with torch.no_grad():
        features = encoder.features(pictures(*size))
        dense, picture = encoder.dense(features), encoder.embed_images(pictures(*size))
    expected = slow_dense(tiny.attnpool, features["dense"][0], slow_positions)
    torch.testing.assert_close(dense[0], expected, rtol=0, atol=1e-5)
    expected = slow_attention_pool(tiny.attnpool, features["dense"][0], slow_positions)
    torch.testing.assert_close(picture[0], expected, rtol=1e-4, atol=1e-5)


def test_pictures_of_native_size_are_embedded_as_by_open_clip(full, tiny):
    for visual, size in ((full, 224), (tiny, 64)):
        encoder = make(visual)
        assert (encoder.native_size, encoder.dim, encoder.stride) == (size, visual.output_dim, 32)
        with torch.no_grad():
            expected = visual(pictures(size, size, batch=2))
            embedded = encoder.embed_images(pictures(size, size, batch=2))
        torch.testing.assert_close(embedded, expected, rtol=1e-4, atol=1e-5)


def test_native_size_and_strides_of_rn50x64():
    """The pool's grid is 14 x 14: built with random weights, without running it."""
    from clim.text.clip import load_clip_visual

    with torch.device("meta"):
        encoder = make(load_clip_visual("RN50x64-quickgelu", ""))
    assert (encoder.native_size, encoder.grid, encoder.dim, encoder.stride) == (448, 14, 1024, 32)


# ---- regions ----------------------------------------------------------------------------------------


def test_v2_regions_go_through_the_whole_attention_pool(tiny):
    encoder = make(tiny)
    with torch.no_grad():
        features = encoder.features(pictures(64, 96, batch=2))
        (regions,) = encoder.embed_stages(features, BOXES)
        boxes = [b.tensor for b in BOXES]
        pooled = roi_align(features["dense"], boxes, 2, spatial_scale=1 / 32, sampling_ratio=-1, aligned=True)
        expected = tiny.attnpool(pooled)  # open_clip's own, on its own 2 x 2 grid
    torch.testing.assert_close(regions, expected, rtol=1e-4, atol=1e-5)


def test_v1_regions_are_read_from_the_dense_map(tiny):
    encoder = make(tiny, regions="v1")
    with torch.no_grad():
        features = encoder.features(pictures(64, 96, batch=2))
        (regions,) = encoder.embed_stages(features, BOXES)
        dense = encoder.dense(features)
    torch.testing.assert_close(regions[0], dense[0].mean((1, 2)), rtol=0, atol=1e-6)
    torch.testing.assert_close(regions[2], dense[1, :, 0, 1], rtol=0, atol=1e-6)


def test_many_regions_are_pooled_in_parts_that_make_no_difference(tiny):
    encoder = make(tiny)
    corners = torch.rand(ROIS_AT_ONCE + 3, 2, generator=torch.Generator().manual_seed(0)) * 40
    boxes = Boxes(torch.cat([corners, corners + 24], dim=1))
    with torch.no_grad():
        features = encoder.features(pictures(64, 64))
        (together,) = encoder.embed_stages(features, [boxes])
        (last,) = encoder.embed_stages(features, [boxes[-5:]])
    assert together.shape == (ROIS_AT_ONCE + 3, 12)
    torch.testing.assert_close(together[-5:], last, rtol=1e-4, atol=1e-5)


# ---- taps -------------------------------------------------------------------------------------------


def test_taps_are_the_layers_outputs(tiny):
    with torch.no_grad():
        taps, layer4 = make(tiny).taps(pictures(64, 96))
        reference = tiny.forward_intermediates(pictures(64, 96), intermediates_only=True)[
            "image_intermediates"
        ]
    assert list(taps) == ["layer1", "layer2", "layer3", "layer4"] and taps["layer4"] is layer4
    for tap, expected, stride in zip(taps.values(), reference[1:], (4, 8, 16, 32), strict=True):
        assert tap.shape[2:] == (64 // stride, 96 // stride)
        assert torch.equal(tap, expected)


# ---- what learns ------------------------------------------------------------------------------------


@pytest.mark.parametrize("regions", ["v1", "v2"])
def test_layer4_and_the_pools_queries_keys_and_positions_learn(tiny_json, random_clip, regions):
    encoder = make(random_clip(tiny_json("resnet")).visual, regions=regions).train()
    learning = {n.removeprefix("visual.") for n, p in encoder.named_parameters() if p.requires_grad}
    convolutions = {"conv1", "conv2", "conv3", "downsample.0"}
    pool = {"q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias", "positional_embedding"}
    assert learning == {f"layer4.0.{c}.weight" for c in convolutions} | {f"attnpool.{p}" for p in pool}

    features = encoder.features(pictures(64, 96, batch=2))
    (embedded,) = encoder.embed_stages(features, BOXES)
    (embedded[:, 0].sum() + encoder.embed_images(pictures(96, 96))[:, 0].sum()).backward()
    assert {
        n.removeprefix("visual.") for n, p in encoder.named_parameters() if p.grad is not None
    } == learning


def test_layers_below_layer4_leave_no_graph(tiny):
    taps, layer4 = make(tiny).taps(pictures(64, 64))
    assert layer4.requires_grad and not any(taps[f"layer{i}"].requires_grad for i in (1, 2, 3))
