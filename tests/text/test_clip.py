"""Both halves of CLIP: what they compute, every file that weights come in, and sentences about other files."""

import copy
import json
import logging
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clim.errors import UserError
from clim.text import build_text_tower
from clim.text.clip import check_pixels, load_clip_visual

KINDS = ["vit", "resnet", "eva02"]
IMAGE_KEYS = "MODEL.IMAGE_ENCODER"


@pytest.fixture(scope="module")
def clips(tiny_json, random_clip):
    """kind → (path of its json, an open_clip model with weights unlike any other's)."""
    paths = {kind: tiny_json(kind) for kind in KINDS}
    return {kind: (path, random_clip(path, seed=7)) for kind, path in paths.items()}


def build_half(half, name, pretrained):
    """The ``half`` ("text" or "image") of a model with the weights ``pretrained``."""
    if half == "text":
        return build_text_tower(name=name, pretrained=str(pretrained))
    return load_clip_visual(name, str(pretrained))


both_halves = pytest.mark.parametrize("half, keys", [("text", "MODEL.TEXT"), ("image", IMAGE_KEYS)])


# ---- files


class Holder(torch.nn.Module):
    """The parts of a CLIP, and three numbers, under OpenAI's names."""

    def __init__(self, clip):
        super().__init__()
        for name, part in clip.named_children():
            self.add_module(name, part)
        for name in ("positional_embedding", "text_projection", "logit_scale"):
            self.register_parameter(name, getattr(clip, name))
        for name in ("input_resolution", "context_length", "vocab_size"):
            self.register_buffer(name, torch.tensor(16))

    def forward(self, x):
        return x


def save_openai(clip, folder):
    """TorchScript in half precision, as OpenAI's files."""
    holder = Holder(copy.deepcopy(clip)).half()
    torch.jit.save(torch.jit.trace(holder, torch.zeros(1)), folder / "openai.pt")
    return folder / "openai.pt"


def save(content, path):
    torch.save(content, path)
    return path


def save_open_clip(clip, folder):
    return save(clip.state_dict(), folder / "open_clip.pt")


def save_safetensors(clip, folder):
    state = {key: value.contiguous() for key, value in clip.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder / "open_clip_model.safetensors"


def save_clim(clip, folder, prefix=""):
    """As CLIM's training writes it: frozen batch norms have lost their counters (clip_fvlm §7)."""
    state = {prefix + k: v for k, v in clip.state_dict().items() if not k.endswith("num_batches_tracked")}
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-5)
    clip.logit_scale.sum().backward()
    optimizer.step()
    clip.zero_grad()
    checkpoint = {"epoch": 100, "name": "clim", "state_dict": state, "optimizer": optimizer.state_dict()}
    return save(checkpoint | {"scaler": {"scale": 65536.0}}, folder / "epoch_100.pt")


def save_clim_distributed(clip, folder):
    return save_clim(clip, folder, prefix="module.")


def save_ours(clip, folder):
    state = {f"image_encoder.{k}": v for k, v in clip.state_dict().items() if k.startswith("visual.")}
    return save({"model": state | {"method.scale": torch.zeros(1)}, "iteration": 5}, folder / "model_final.pth")


def text_part(clip, prefix=""):
    return {prefix + k: v for k, v in clip.state_dict().items() if not k.startswith(("visual.", "logit_scale"))}


def save_detic(clip, folder):
    model = {"backbone.conv": torch.zeros(1)} | text_part(clip, "text_encoder.")
    return save({"model": model, "iteration": 9}, folder / "detic.pth")


def save_custom_text(clip, folder):
    return save(text_part(clip, "text."), folder / "custom.pt")


WITH_BOTH = [save_openai, save_open_clip, save_safetensors, save_clim, save_clim_distributed]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("save", [*WITH_BOTH, save_ours])
def test_every_file_gives_the_same_image_half_in_float32(clips, kind, save, tmp_path):
    if (kind, save) == ("eva02", save_openai):
        pytest.skip("OpenAI has no such model, and TorchScript would store its fixed tables too")
    path, clip = clips[kind]
    expected = {k: v.clone() for k, v in clip.visual.state_dict().items()}
    loaded = load_clip_visual(path, str(save(clip, tmp_path))).state_dict()
    assert set(loaded) == set(expected)
    for key, value in expected.items():
        assert loaded[key].dtype == value.dtype and value.dtype in (torch.float32, torch.int64)
        if save is save_openai:  # every weight has been through float16
            value = value.half().to(value.dtype)
        assert torch.equal(loaded[key], value), key


@pytest.mark.parametrize("save", [*WITH_BOTH, save_detic, save_custom_text])
def test_every_file_gives_open_clips_own_embeddings_of_texts(clip, save, tmp_path, phrases):
    """open_clip's own computation has the full length, a text at a time."""
    tower = build_text_tower(name="tiny-clip-quickgelu", pretrained=str(save(clip, tmp_path)))
    if save is save_openai:
        clip = copy.deepcopy(clip).half().float()
    tokenizer = open_clip.get_tokenizer("tiny-clip-quickgelu")
    with torch.no_grad():
        expected = torch.cat([clip.encode_text(tokenizer([text]), normalize=True) for text in phrases])
    torch.testing.assert_close(tower.encode(phrases), expected, atol=1e-6, rtol=0)


def test_one_json_serves_both_halves_also_under_the_data_root(clips, tmp_path, monkeypatch):
    path, clip = clips["vit"]
    save_open_clip(clip, tmp_path)
    (tmp_path / "moved.json").write_text(Path(path).read_text())
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name, weights in ((path, str(tmp_path / "open_clip.pt")), ("moved.json", "open_clip.pt")):
        tower, visual = build_text_tower(name=name, pretrained=weights), load_clip_visual(name, weights)
        assert tower.dim == visual.output_dim == 12 and torch.equal(visual.conv1.weight, clip.visual.conv1.weight)
        assert torch.equal(tower.token_embedding.weight, clip.token_embedding.weight)
        assert tower.tokenize(["a dog " * 50])[0][-1] == 49407 and len(tower.tokenize(["a dog " * 50])[0]) == 16


# ---- the text half


def test_clips_two_features_by_hand(clip, clip_file):
    """Embeddings, positions, blocks one by one under a causal mask; the last token, before and after ``ln_final``."""
    tower = build_text_tower(name="tiny-clip-quickgelu", pretrained=str(clip_file))
    words = torch.randn(1, 3, 16)
    start, end = clip.token_embedding.weight[49406], clip.token_embedding.weight[49407]
    with torch.no_grad():
        x = torch.cat([start[None], words[0], end[None]])[None] + clip.positional_embedding[:5]
        mask = torch.full((5, 5), -torch.inf).triu(1)
        for block in clip.transformer.resblocks:
            x = block(x, attn_mask=mask)
        hidden = x[:, -1]
        embedding = clip.ln_final(hidden) @ clip.text_projection
    features = tower.encode_words(words, torch.tensor([3]))
    torch.testing.assert_close(features.hidden, hidden, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(features.embedding, embedding, atol=1e-6, rtol=1e-5)


def test_the_text_half_alone_has_openai_names_and_float32_features(tower, clip, phrases):
    assert set(tower.state_dict()) == set(text_part(clip))
    assert len(build_text_tower(name="ViT-B-32-quickgelu").state_dict()) == 149  # as in Detic's checkpoints
    with torch.autocast("cpu", torch.bfloat16):
        features = tower.encode_words(torch.randn(2, 3, 16), torch.tensor([3, 2]))
    assert features.hidden.dtype == features.embedding.dtype == torch.float32
    first = build_text_tower(name="tiny-clip").encode(phrases)  # random weights are always the same
    torch.manual_seed(5)
    assert torch.equal(first, build_text_tower(name="tiny-clip").encode(phrases))


OTHERS = {
    "pool_type": "last", "no_causal_mask": True, "proj_bias": True, "norm_kwargs": {"eps": 1e-3},
    "act_kwargs": {"approximate": "tanh"},
}  # fmt: skip


@pytest.mark.parametrize("custom", [True, False])
def test_other_text_halves_embed_whole_texts(custom, tiny_json, tmp_path, phrases):
    """SigLIP's, and as CLIPA's in a model without a half of its own: open_clip's embeddings, and no words."""
    path = Path(tiny_json("vit", quick_gelu=False, text=OTHERS, custom_text=custom))
    open_clip.add_model_config(path)
    torch.manual_seed(3)
    model = open_clip.create_model(path.stem, load_weights=False).eval()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    tower, tokens = build_text_tower(name=str(path), pretrained=str(tmp_path / "w.pt")), open_clip.SimpleTokenizer()
    with torch.no_grad():
        expected = model.encode_text(tokens(phrases, context_length=16), normalize=True)
    torch.testing.assert_close(tower.encode(phrases), expected, atol=1e-6, rtol=0)
    assert tower.encode(phrases).std() > 0.1 and tower.fingerprint != build_text_tower(name=str(path)).fingerprint
    for read in (
        lambda: tower.encode_hidden(phrases),
        lambda: tower.encode_words(torch.zeros(1, 2, 16), torch.ones(1)),
    ):
        with pytest.raises(UserError, match="reads single words"):
            read()


def test_text_halves_of_the_hub(tiny_json, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    complaints = {"hf_model_name": "not open_clip's own", "hf_tokenizer_name": "tokenizer no/half.*could not be"}
    for key, complaint in complaints.items():
        text = {key: "no/half"}
        with pytest.raises(UserError, match=complaint):
            build_text_tower(name=tiny_json("vit", text=text))


# ---- activation


def warnings_of(caplog, *args):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        build_half(*args)
    return [r.getMessage() for r in caplog.records]


def test_weights_that_were_trained_with_the_other_activation(clips, tiny_json, tmp_path, caplog):
    """OpenAI's and Detic's were; CLIM's own files run with either activation; a ResNet has none."""
    quick, clip = clips["vit"]
    exact = tiny_json("vit", quick_gelu=False)
    for half, save_as in (("image", save_openai), ("text", save_openai), ("text", save_detic)):
        weights = save_as(clip, tmp_path)
        (message,) = warnings_of(caplog, half, exact, weights)
        assert "trained with QuickGELU" in message and "computes exact GELU" in message
        assert warnings_of(caplog, half, quick, weights) == []
    assert warnings_of(caplog, "image", exact, save_clim(clip, tmp_path)) == []
    openai = save_openai(clips["resnet"][1], tmp_path)
    assert warnings_of(caplog, "image", tiny_json("resnet", quick_gelu=False), openai) == []


# ---- tags and hubs


def test_tags_and_hub_names_are_downloaded(clips, tmp_path, monkeypatch, caplog):
    path, clip = clips["vit"]
    saved, asked = save_safetensors(clip, tmp_path), []
    monkeypatch.setattr(
        "open_clip.pretrained.download_pretrained_from_hf", lambda name, **_: asked.append(name) or str(saved)
    )
    loaded = load_clip_visual(path, "hf-hub:me/clip")
    assert asked == ["me/clip"] and torch.equal(loaded.conv1.weight, clip.visual.conv1.weight)
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"quick_gelu": False, "url": "address"})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda cfg: str(saved))
    with caplog.at_level(logging.WARNING):
        tower = build_text_tower(name=path, pretrained="openai")
    assert "trained with exact GELU" in caplog.text
    assert torch.equal(tower.token_embedding.weight, clip.token_embedding.weight)


# ---- pixels


def test_pixels_that_the_weights_do_not_expect(caplog):
    """Those of the tag; without a tag those of any tag; a json of one's own expects none."""
    clip = {"mean": [122.77, 116.75, 104.09], "std": [68.5, 66.63, 70.32]}
    half = dict.fromkeys(("mean", "std"), [127.5] * 3)
    for name, pretrained, wrong in (
        ("ViT-B-16-quickgelu", "openai", half), ("ViT-B-16-SigLIP", "webli", clip), ("EVA02-B-16", "", half),
        ("ViT-L-14", "laion2b_s32b_b82k", clip),
    ):  # fmt: skip
        caplog.clear()
        check_pixels(name, pretrained, **(clip if wrong is half else half))
        assert not caplog.records
        check_pixels(name, pretrained, **wrong)
        (record,) = caplog.records
        assert f"not those of the weights of {name}: set them to [1" in record.getMessage()
    caplog.clear()
    check_pixels("mine.json", "", **half)
    assert not caplog.records


# ---- mistakes


@both_halves
def test_weights_that_are_not_found(half, keys, monkeypatch):
    """Unknown tags and files; tags and hub names without a network."""
    with pytest.raises(UserError, match=f"{keys}.PRETRAINED 'opanai' is neither a file nor a tag.*laion2b_s34b"):
        build_half(half, "ViT-B-32", "opanai")

    def offline(source):
        raise FileNotFoundError("no route\nto host")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    for pretrained, link in (("openai", "ViT-B-32.pt"), ("hf-hub:me/clip", "huggingface.co/me/clip")):
        with pytest.raises(UserError, match=f"no route.*{link}.*{keys}.PRETRAINED") as caught:
            build_half(half, "ViT-B-32-quickgelu", pretrained)
        assert "\n" not in str(caught.value)


def test_unknown_architecture_and_broken_json(tmp_path):
    (tmp_path / "cut.json").write_text("{")
    (tmp_path / "empty.json").write_text("{}")
    halves = {"vision_cfg": {"layers": 10**9}, "text_cfg": {}}
    (tmp_path / "huge.json").write_text(json.dumps({"embed_dim": 8, **halves}))
    complaints = {"ViT-B16": "neither", "cut.json": "not valid json", "empty.json": "embed_dim", "huge.json": "10000"}
    for name, complaint in complaints.items():
        path = str(tmp_path / name) if name.endswith("json") else name
        with pytest.raises(UserError, match=f"{name}.*{complaint}") as caught:
            load_clip_visual(path, "")
        assert f"{IMAGE_KEYS}.ARCHITECTURE" in str(caught.value)


@pytest.mark.parametrize("half, kind, change", [
    *(("image", "vit", {"vision": vision}) for vision in ({"layers": 3}, {"width": 64}, {"image_size": 40})),
    ("image", "resnet", {}), *(("text", "vit", {"text": text}) for text in ({"width": 32}, {"layers": 2})),
])  # fmt: skip
def test_weights_of_another_model(half, kind, change, clips, tiny_json, tmp_path):
    weights = save_open_clip(clips["vit"][1], tmp_path)
    keys = {"text": "text tower of .*MODEL.TEXT.NAME", "image": f"image encoder of .*{IMAGE_KEYS}.ARCHITECTURE"}
    with pytest.raises(UserError, match=f"do not fit the {keys[half]}"):
        build_half(half, tiny_json(kind, **change), weights)


@both_halves
@pytest.mark.parametrize("kind", [torch.int64, torch.complex64])
def test_weights_that_are_no_floats(half, keys, kind, clips, tmp_path):
    state = {name: value.to(kind) for name, value in clips["vit"][1].state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w.pt .*do not fit"):
        build_half(half, clips["vit"][0], tmp_path / "w.pt")


@both_halves
def test_file_without_this_half(half, keys, clips, tmp_path):
    for content in ({"conv1.weight": torch.zeros(2)}, torch.zeros(3), {"conv1.weight": 0}):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(UserError, match=rf"w.pt (\({keys}.PRETRAINED\) holds no CLIP|holds no weights)"):
            build_half(half, clips["vit"][0], tmp_path / "w.pt")
