"""CLIP's ResNet against open_clip and against clip_fvlm §1 written out; OV-RCNN's and the names of its weights."""

import math
import pickle

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from torchvision.ops import roi_align

from clim.checkpoints import SafeCheckpointer
from clim.modeling import build_image_encoder
from clim.modeling.backbones.resnet import ROIS_AT_ONCE, ClipResNet
from clim.text.clip import load_clip_visual

BOXES = [Boxes(torch.tensor([[0.0, 0, 96, 64], [10, 20, 90, 50]])), Boxes(torch.tensor([[32.0, 0, 64, 32]]))]


def make(visual, *, unlocked_blocks=1, regions="v2"):
    return ClipResNet(visual=visual, unlocked_blocks=unlocked_blocks, regions=regions).eval()


@pytest.fixture(scope="module")
def full(random_clip):
    return random_clip("RN50-quickgelu").visual


@pytest.fixture(scope="module")
def tiny(random_clip, tiny_json):
    return random_clip(tiny_json("resnet")).visual


def images(height, width, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


def slow_tokens(pool, layer4, slow_positions):
    """(1 + h·w, C): mean and locations of (C, h, w), with positions."""
    _, h, w = layer4.shape
    vectors = [layer4[:, i, j] for i in range(h) for j in range(w)]
    tokens = torch.stack([sum(vectors) / len(vectors), *vectors])
    return tokens + slow_positions(pool.positional_embedding, (h, w))


@torch.no_grad()
def slow_dense(pool, layer4, slow_positions):
    """(D, h, w): values and output projection as 1 x 1 convolutions of every token, the mean's dropped."""
    _, h, w = layer4.shape
    dense = torch.zeros(len(pool.c_proj.bias), h, w)
    for place, token in enumerate(slow_tokens(pool, layer4, slow_positions)[1:]):
        vector = pool.c_proj.weight @ (pool.v_proj.weight @ token + pool.v_proj.bias) + pool.c_proj.bias
        dense[:, place // w, place % w] = vector / math.sqrt(vector.square().sum())
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


SIZES = [("full", 224, 224), ("full", 320, 320), pytest.param("full", 640, 640, marks=pytest.mark.slow),
         ("tiny", 64, 64), ("tiny", 64, 96), ("tiny", 160, 32)]  # fmt: skip


@pytest.mark.parametrize("name, height, width", SIZES)
def test_dense_map_and_image(request, name, height, width, slow_positions):
    visual = request.getfixturevalue(name)
    encoder, pool = make(visual), visual.attnpool
    with torch.no_grad():
        features = encoder.features(images(height, width))
        dense, image = encoder.dense(features), encoder.embed_images(images(height, width))
    layer4 = features["dense"][0]
    assert layer4.shape[1:] == (height // 32, width // 32)
    torch.testing.assert_close(dense[0], slow_dense(pool, layer4, slow_positions), rtol=0, atol=1e-5)
    torch.testing.assert_close(image[0], slow_attention_pool(pool, layer4, slow_positions), rtol=1e-4, atol=1e-5)


def test_images_of_native_size_are_embedded_as_by_open_clip(full, tiny):
    for visual, size in ((full, 224), (tiny, 64)):
        encoder = make(visual)
        assert (encoder.native_size, encoder.dim, encoder.stride) == (size, visual.output_dim, 32)
        with torch.no_grad():
            expected = visual(images(size, size, batch=2))
            embedded = encoder.embed_images(images(size, size, batch=2))
        torch.testing.assert_close(embedded, expected, rtol=1e-4, atol=1e-5)
    with torch.device("meta"):
        encoder = make(load_clip_visual("RN50x64-quickgelu", ""))
    assert (encoder.native_size, encoder.grid, encoder.dim, encoder.stride) == (448, 14, 1024, 32)


@torch.no_grad()
def test_regions(tiny):
    """v2 goes through the whole attention pool, in parts that make no difference; v1 reads the dense map."""
    encoder, close = make(tiny), {"rtol": 1e-4, "atol": 1e-5}
    features = encoder.features(images(64, 96, batch=2))
    (regions,) = encoder.embed_stages(features, BOXES)
    boxes = [b.tensor for b in BOXES]
    pooled = roi_align(features["dense"], boxes, 2, spatial_scale=1 / 32, sampling_ratio=-1, aligned=True)
    torch.testing.assert_close(regions, tiny.attnpool(pooled), **close)  # open_clip's own, on its own 2 x 2 grid

    corners = torch.rand(ROIS_AT_ONCE + 3, 2, generator=torch.Generator().manual_seed(0)) * 40
    many = Boxes(torch.cat([corners, corners + 24], dim=1))
    (together,) = encoder.embed_stages(features, [many, many[:0]])
    (last,) = encoder.embed_stages(features, [many[-5:], many[:0]])
    assert together.shape == (ROIS_AT_ONCE + 3, 12)
    torch.testing.assert_close(together[-5:], last, **close)

    (regions,) = make(tiny, regions="v1").embed_stages(features, BOXES)
    dense = encoder.dense(features)
    torch.testing.assert_close(regions[0], dense[0].mean((1, 2)), rtol=0, atol=1e-6)
    torch.testing.assert_close(regions[2], dense[1, :, 0, 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("regions", ["v1", "v2"])
def test_layer4_and_the_pools_queries_keys_and_positions_learn(tiny_json, random_clip, regions):
    encoder = make(random_clip(tiny_json("resnet")).visual, regions=regions).train()
    learning = {n.removeprefix("visual.") for n, p in encoder.named_parameters() if p.requires_grad}
    convolutions = {"conv1", "conv2", "conv3", "downsample.0"}
    pool = {"q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias", "positional_embedding"}
    assert learning == {f"layer4.0.{c}.weight" for c in convolutions} | {f"attnpool.{p}" for p in pool}

    features = encoder.features(images(64, 96, batch=2))
    (embedded,) = encoder.embed_stages(features, BOXES)
    (embedded[:, 0].sum() + encoder.embed_images(images(96, 96))[:, 0].sum()).backward()
    assert {n.removeprefix("visual.") for n, p in encoder.named_parameters() if p.grad is not None} == learning


@pytest.fixture(scope="module")
def cfg(load_cfg):
    """OV-RCNN's, read location by location."""
    return load_cfg("OVRCNN_pretrain.yaml", "MODEL.TEXT.DIM", 12)


def test_ov_rcnns_feature_map_is_c5_and_its_projection_is_linear(cfg):
    """All convolutions learn and no norm, as FREEZE_CONV_BODY_AT 0 of official OVR-CNN (ovrcnn §1.1)."""
    resnet = build_image_encoder(cfg).train()
    images = torch.randn(2, 3, 70, 97)
    c5 = resnet.feature_map(images)
    assert c5.shape == (2, 2048, 3, 4)  # stride 32, rounded up
    torch.testing.assert_close(c5, resnet.backbone(images)["res5"])
    rows = torch.randn(5, 2048)
    torch.testing.assert_close(resnet.project(rows), rows @ resnet.emb_pred.weight.T + resnet.emb_pred.bias)
    assert resnet.project(rows[:0]).shape == (0, 12)
    assert all(p.requires_grad for p in resnet.parameters())
    assert not any("norm" in name for name, _ in resnet.named_parameters())
    assert (resnet.backbone.res3[0].conv1.stride, resnet.backbone.res3[0].conv2.stride) == ((2, 2), (1, 1))
    cfg = cfg.clone()
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    frozen = {n.split(".")[1] for n, p in build_image_encoder(cfg).named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "res2"}


def test_msras_file_fits(cfg, tmp_path):
    """The .pkl that the config names, by its layout: {Caffe2 name: array}, batch norm as scale and shift."""
    encoder, generator = build_image_encoder(cfg), torch.Generator().manual_seed(1)
    state, before = encoder.backbone.state_dict(), encoder.emb_pred.weight.clone()
    names = {"conv1_w": "stem.conv1.weight", "res_conv1_bn_s": "stem.conv1.norm.weight",
             "res2_0_branch1_w": "res2.0.shortcut.weight", "res3_1_branch2a_w": "res3.1.conv1.weight",
             "res4_5_branch2b_bn_b": "res4.5.conv2.norm.bias", "res5_2_branch2c_w": "res5.2.conv3.weight"}  # fmt: skip
    expected = {file: torch.rand(state[name].shape, generator=generator) for file, name in names.items()}
    weights = {file: value.numpy() for file, value in expected.items()} | {"fc1000_w": np.zeros((1000, 2048))}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": weights}))
    SafeCheckpointer(torch.nn.ModuleDict({"image_encoder": encoder}), "").load(str(tmp_path / "R-50.pkl"))
    assert all(torch.equal(state[name], expected[file]) for file, name in names.items())
    assert torch.equal(encoder.emb_pred.weight, before)
