"""CLIP's vision transformer against open_clip and against clip_fvlm §1 written out."""

import math

import open_clip
import pytest
import torch
from detectron2.structures import Boxes
from torch.utils.checkpoint import checkpoint

from clim.errors import UserError
from clim.modeling.backbones import clip_vit
from clim.modeling.backbones.clip_vit import ClipViT


@pytest.fixture(scope="module")
def full(random_clip):
    return random_clip("ViT-B-16-quickgelu").visual


@pytest.fixture(scope="module")
def tiny(random_clip, tiny_json):
    return random_clip(tiny_json("vit")).visual


def images(height, width, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


def layer_norm(x, norm):
    centred = x - x.mean()
    return centred / math.sqrt(centred.square().mean() + norm.eps) * norm.weight + norm.bias


def quick_gelu(x):
    return x / (1 + torch.exp(-1.702 * x))


def slow_last_block(block, x):
    """One token (W,) through a block without attention: each head passes on the token's own value."""
    width, heads = len(x), block.attn.num_heads
    weight, bias = block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :]
    normed, passed = layer_norm(x, block.ln_1), []
    for head in range(heads):
        rows = slice(head * width // heads, (head + 1) * width // heads)
        passed.append(weight[rows] @ normed + bias[rows])
    y = x + block.attn.out_proj.weight @ torch.cat(passed) + block.attn.out_proj.bias
    hidden = quick_gelu(block.mlp.c_fc.weight @ layer_norm(y, block.ln_2) + block.mlp.c_fc.bias)
    return y + block.mlp.c_proj.weight @ hidden + block.mlp.c_proj.bias


@torch.no_grad()
def slow_dense(visual, image, slow_positions):
    """(D, h, w) of one image (3, H, W), and the tokens before and after the last block."""
    patch = visual.patch_size[0]
    h, w = image.shape[1] // patch, image.shape[2] // patch
    tokens = [visual.class_embedding]
    for i in range(h):
        for j in range(w):
            pixels = image[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            tokens.append(visual.conv1.weight.flatten(1) @ pixels.flatten())
    x = torch.stack(tokens) + slow_positions(visual.positional_embedding, (h, w))
    x = torch.stack([layer_norm(token, visual.ln_pre) for token in x])[None]
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    before = x[0]
    after = torch.stack([slow_last_block(visual.transformer.resblocks[-1], token) for token in before])
    dense = torch.zeros(visual.output_dim, h, w)
    for place, token in enumerate(after[1:]):
        vector = layer_norm(token, visual.ln_post) @ visual.proj
        dense[:, place // w, place % w] = vector / math.sqrt(vector.square().sum())
    return dense, before, after


SIZES = [(224, 224), (320, 320), pytest.param((640, 640), marks=pytest.mark.slow)]


@pytest.mark.parametrize("size", SIZES)
def test_dense_map_of_vit_b_16(full, size, slow_positions):
    image = images(*size)
    with torch.no_grad():
        dense = ClipViT(visual=full, unlocked_blocks=6).features(image)["dense"]
    expected, _, _ = slow_dense(full, image[0], slow_positions)
    torch.testing.assert_close(dense[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (40, 72), (8, 8)])
def test_dense_map_and_taps_of_a_tiny_one(tiny, size, slow_positions):
    encoder = ClipViT(visual=tiny, unlocked_blocks=2)
    image = images(*size)
    expected, before, after = slow_dense(tiny, image[0], slow_positions)
    with torch.no_grad():
        taps, dense = encoder.taps(image, (2, 3))
        alone = encoder.features(image)["dense"]
    assert list(taps) == [2, 3] and torch.equal(dense, alone)
    torch.testing.assert_close(dense[0], expected, rtol=0, atol=1e-5)
    for tap, tokens in ((taps[2], before), (taps[3], after)):
        assert tap.shape == (1, 32, size[0] // 8, size[1] // 8)
        torch.testing.assert_close(tap[0].flatten(1).T, tokens[1:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_images_are_embedded_as_by_open_clip(full, tiny, tiny_json, random_clip, slow_positions):
    for visual, size in ((full, 224), (tiny, 32)):
        encoder, pixels = ClipViT(visual=visual, unlocked_blocks=2).eval(), images(size, size, batch=2)
        assert (encoder.native_size, encoder.dim) == (size, visual.output_dim)
        torch.testing.assert_close(encoder.embed_images(pixels), visual(pixels), rtol=0, atol=1e-5)
    # Images of another size as by a tower of that size.
    large, state = random_clip(tiny_json("vit", vision={"image_size": 56})).visual, tiny.state_dict()
    large.load_state_dict(state | {"positional_embedding": slow_positions(state["positional_embedding"], (7, 7))})
    torch.testing.assert_close(encoder.embed_images(images(56, 56)), large(images(56, 56)), rtol=0, atol=1e-5)


@torch.no_grad()
def test_towers_that_pool_otherwise(tiny_json, random_clip):
    """CLIPA's mean of patches, LayerScale, patches of 14 px: images as by open_clip, dense maps as without the mean."""
    vision = {"image_size": 42, "patch_size": 14, "ls_init_value": 0.1, "no_ln_pre": True}
    cls = random_clip(tiny_json("vit", vision=vision)).visual
    mean = random_clip(tiny_json("vit", vision=vision | {"pool_type": "avg", "final_ln_after_pool": True})).visual
    mean.load_state_dict(cls.state_dict())
    pixels, (one, other) = images(42, 42, batch=2), [ClipViT(visual=v, unlocked_blocks=1).eval() for v in (cls, mean)]
    for encoder in (one, other):
        torch.testing.assert_close(encoder.embed_images(pixels), encoder.visual(pixels), rtol=0, atol=1e-5)
    assert not torch.allclose(one.embed_images(pixels), other.embed_images(pixels), atol=0.1)
    dense = one.features(images(60, 60))["dense"]  # 4 px on the right and below are not seen
    assert dense.shape == (1, 12, 4, 4) and torch.equal(dense, other.features(images(60, 60)[..., :56, :56])["dense"])


def test_regions_average_the_unit_vectors_of_their_locations(tiny):
    encoder = ClipViT(visual=tiny, unlocked_blocks=2)
    features = encoder.features(images(40, 48, batch=2))
    one_patch = Boxes(torch.tensor([[16.0, 8, 24, 16]]))  # column 2, row 1
    boxes = [one_patch, Boxes(torch.tensor([[8.0, 16, 32, 24], [0, 0, 48, 40]]))]
    (regions,) = encoder.embed_stages(features, boxes)
    dense = features["dense"]
    expected = [dense[0, :, 1, 2], dense[1, :, 2, 1:4].mean(1), dense[1].mean((1, 2))]
    torch.testing.assert_close(regions, torch.stack(expected), rtol=0, atol=1e-6)


def test_the_releases_taps_and_its_six_blocks_that_learn(full):
    encoder = ClipViT(visual=full, unlocked_blocks=6)
    assert list(encoder.tap_shapes) == [3, 5, 7, 11]  # clip_fvlm §4
    learning = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert learning == {
        n for n, _ in encoder.named_parameters() if n.split(".resblocks.")[-1].split(".")[0] in "6 7 8 9 10 11".split()
    }
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == 42_527_232  # 42.5 M, clip_fvlm §2


@pytest.mark.parametrize("unlocked", [0, 1, 4])
def test_frozen_blocks_get_no_gradient_and_no_graph(tiny_json, random_clip, unlocked):
    encoder = ClipViT(visual=random_clip(tiny_json("vit")).visual, unlocked_blocks=unlocked).train()
    taps, dense = encoder.taps(images(40, 40), range(4))
    assert [taps[i].requires_grad for i in range(4)] == [i >= 4 - unlocked for i in range(4)]
    if unlocked:
        (dense[:, 0].sum() + encoder.embed_images(images(40, 40))[:, 0].sum()).backward()
    for name, weight in encoder.named_parameters():
        block = name.removeprefix("visual.transformer.resblocks.").partition(".")[0]
        learns = block.isdigit() and int(block) >= 4 - unlocked
        assert (weight.grad is not None) == learns == weight.requires_grad
    if unlocked == 1:  # the dense map does not reach queries and keys of the last block
        encoder.zero_grad()
        encoder.features(images(32, 32))["dense"][:, 0].sum().backward()
        grad = encoder.visual.transformer.resblocks[-1].attn.in_proj_weight.grad
        assert not grad[:64].any() and grad[64:].any()


@pytest.mark.parametrize("unlocked", [0, 3])
def test_checkpointing_changes_no_loss_and_no_gradient(tiny_json, random_clip, unlocked, monkeypatch):
    calls = []
    monkeypatch.setattr(clip_vit, "checkpoint", lambda *args, **kw: calls.append(args[1]) or checkpoint(*args, **kw))

    def gradients(checkpointing):
        visual = random_clip(tiny_json("vit")).visual
        encoder = ClipViT(visual=visual, unlocked_blocks=unlocked, checkpointing=checkpointing).train()
        weight = torch.ones(1, requires_grad=True)
        loss = (encoder.features(images(40, 24))["dense"][:, 0] * weight).sum()
        loss += (encoder.embed_images(images(32, 32)) * weight).square().sum()
        loss.backward()
        return loss, [p.grad for p in [weight, *encoder.parameters()] if p.requires_grad]

    (loss, expected), (again, found) = gradients(False), gradients(True)
    assert torch.equal(loss, again) and all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert len(calls) == 2 * unlocked


@pytest.mark.parametrize("change", [
    {"attentional_pool": True, "attn_pooler_heads": 4}, {"pool_type": "none"}, {"qk_norm": True},
    {"image_size": [32, 64]},
])  # fmt: skip
def test_transformers_of_other_kinds_are_refused(change, tiny_json):
    config = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1} | change
    text = {"context_length": 4, "vocab_size": 4, "width": 16, "heads": 2, "layers": 1}
    visual = open_clip.CLIP(embed_dim=12, vision_cfg=config, text_cfg=text).visual
    with pytest.raises(UserError, match="does not name a CLIP vision transformer for square images"):
        ClipViT(visual=visual, unlocked_blocks=0)
