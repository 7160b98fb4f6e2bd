"""timm's towers inside open_clip against timm's own forward, and attention masks that show a token itself alone."""

import pytest
import torch

from clim.errors import UserError
from clim.modeling.backbones.clip_vit import ClipViT
from clim.modeling.backbones.timm_vit import alone
from clim.text.clip import load_clip_visual

KINDS = ["eva01", "eva02", "eva02e", "pe", "siglip", "gap", "mobileclip"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def make(tiny_json):
    """``make(kind)``: a new tower whose every weight matters, always the same."""

    def build(kind, **vision):
        torch.manual_seed(0)
        visual = load_clip_visual(tiny_json(kind, vision=vision), "")
        with torch.no_grad():
            for weight in visual.parameters():
                weight += 0.1 * torch.randn_like(weight)
        return visual.eval()

    return build


@pytest.fixture
def resized(slow_positions):
    """``resized(visual, grid)``: the tower as timm sets it up for a grid of 8 px patches, with our positions."""

    def build(visual, grid):
        trunk, state = visual.trunk, visual.trunk.state_dict()
        state["pos_embed"] = slow_positions(state["pos_embed"][0], grid, trunk.num_prefix_tokens)[None]
        trunk.set_input_size(img_size=tuple(8 * side for side in grid))
        trunk.load_state_dict(state)
        return visual

    return build


def images(height, width, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


@torch.no_grad()
def slow_dense(visual, image):
    """(D, n) of one image of the tower's size, and the tokens before the last block."""
    trunk, caught = visual.trunk, {}
    last = trunk.blocks[-1]
    hook = last.register_forward_pre_hook(lambda _, args, kw: caught.update(x=args[0], **kw), with_kwargs=True)
    trunk.forward_features(image)
    hook.remove()
    x, prefix = caught["x"], trunk.num_prefix_tokens
    itself = torch.eye(x.shape[1], dtype=torch.bool)
    rope = {"rope": caught["rope"]} if "rope" in caught else {}
    after = trunk.norm(last(x, **rope) if trunk.attn_pool else last(x, **rope, attn_mask=itself))
    rows = []
    for place in range(prefix, x.shape[1]):
        pooled = (
            trunk.attn_pool(after, attn_mask=itself[place].view(1, 1, 1, -1)) if trunk.attn_pool else after[:, place]
        )
        row = visual.head(trunk.head(trunk.fc_norm(pooled)))[0]
        rows.append(row / row.norm())
    return torch.stack(rows, dim=1), x[0, prefix:]


@torch.no_grad()
def test_images_of_the_native_size_are_embedded_as_by_open_clip(make, kind):
    visual, pixels = make(kind), images(32, 32, batch=2)
    encoder = ClipViT(visual=visual, unlocked_blocks=2).eval()
    assert (encoder.native_size, encoder.stride, encoder.dim) == (32, 8, 32 if kind == "siglip" else 12)
    embedded = encoder.embed_images(pixels)
    torch.testing.assert_close(embedded, visual(pixels), rtol=1e-5, atol=1e-5)
    assert embedded.std() > 0.1


@pytest.mark.parametrize("size", [(32, 32), (40, 72), (64, 24)])
def test_dense_maps_and_taps_of_every_size(make, resized, kind, size):
    grid, image = (size[0] // 8, size[1] // 8), images(*size)
    encoder, reference = ClipViT(visual=make(kind), unlocked_blocks=2).eval(), resized(make(kind), grid)
    with torch.no_grad():
        encoder.embed_images(images(16, 16))  # another size does not stay in the positions
        taps, dense = encoder.taps(image, (2, 3))
        embedded = encoder.embed_images(image)
        torch.testing.assert_close(embedded, reference(image), rtol=1e-4, atol=1e-5)
    expected, before = slow_dense(reference, image)
    torch.testing.assert_close(dense[0].flatten(1), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(taps[2][0].flatten(1).T, before, rtol=1e-5, atol=1e-5)
    assert dense.shape[2:] == taps[3].shape[2:] == grid and list(encoder.tap_shapes) == [0, 1, 3]


def test_long_sequences_are_read_in_parts(monkeypatch):
    layer, x = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(3, 5, 8)
    whole = alone(layer, x)
    monkeypatch.setattr("clim.modeling.backbones.timm_vit.SEQUENCES", 4)
    torch.testing.assert_close(alone(layer, x), whole)
    torch.testing.assert_close(whole[1, 2], layer(x[1:2, 2:3])[0, 0])


def test_the_last_blocks_learn_and_nothing_is_dropped_out(make, kind):
    encoder = ClipViT(visual=make(kind, timm_drop_path=0.5, timm_drop=0.5), unlocked_blocks=1).train()
    pixels = images(40, 24)
    for embed in (encoder.embed_images, lambda x: encoder.features(x)["dense"]):
        torch.testing.assert_close(embed(pixels), embed(pixels), rtol=0, atol=0)
        encoder.zero_grad()
        embed(pixels)[:, 0].sum().backward()
        learning = {name for name, weight in encoder.named_parameters() if weight.grad is not None}
        assert learning == {name for name, _ in encoder.named_parameters() if "visual.trunk.blocks.3." in name}


def test_checkpointing_changes_no_loss_and_no_gradient(make, kind):
    def gradients(checkpointing):
        encoder = ClipViT(visual=make(kind), unlocked_blocks=3, checkpointing=checkpointing).train()
        taps, dense = encoder.taps(images(40, 24), (1,))
        loss = dense[:, 0].sum() + encoder.embed_images(images(32, 32)).square().sum() + taps[1].mean()
        loss.backward()
        return loss, [weight.grad for weight in encoder.parameters() if weight.requires_grad]

    (loss, expected), (again, found) = gradients(False), gradients(True)
    assert torch.equal(loss, again) and all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("name, pool", [
    ("test_vit_relpos", "avg"), ("convnext_atto", "avg"), ("vit_base_mci_224", "token"),
    ("vit_small_patch14_reg4_dinov2", "token"),
])  # fmt: skip
def test_other_towers_of_timm_are_refused(name, pool, tiny_json):
    path = tiny_json("gap", vision={"timm_model_name": name, "timm_pool": pool, "timm_proj": None})
    with torch.device("meta"), pytest.raises(UserError, match="does not name a CLIP vision transformer"):
        ClipViT(visual=load_clip_visual(path, ""), unlocked_blocks=0)
