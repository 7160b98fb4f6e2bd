"""CLIP's image half from every file that it comes in, and what users are told where that fails."""

import copy
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from clim.errors import UserError
from clim.modeling.clip_loading import load_clip_visual
from clim.text import build_text_tower, clip_weights
from clim.text.towers import tower_stamp

KINDS = ["vit", "resnet"]
KEYS = "MODEL.IMAGE_ENCODER"


@pytest.fixture(scope="module")
def clips(tiny_json, random_clip):
    """kind → (path of its json, an open_clip model with weights unlike any other's)."""
    paths = {kind: tiny_json(kind) for kind in KINDS}
    return {kind: (path, random_clip(path, seed=7)) for kind, path in paths.items()}


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


def save_open_clip(clip, folder):
    torch.save(clip.state_dict(), folder / "open_clip.pt")
    return folder / "open_clip.pt"


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
    torch.save(checkpoint | {"scaler": {"scale": 65536.0}}, folder / "epoch_100.pt")
    return folder / "epoch_100.pt"


def save_clim_distributed(clip, folder):
    return save_clim(clip, folder, prefix="module.")


def save_ours(clip, folder):
    state = {f"image_encoder.{k}": v for k, v in clip.state_dict().items() if k.startswith("visual.")}
    torch.save(
        {"model": state | {"method.scale": torch.zeros(1)}, "iteration": 5}, folder / "model_final.pth"
    )
    return folder / "model_final.pth"


WITH_TEXT = [save_openai, save_open_clip, save_safetensors, save_clim, save_clim_distributed]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("save", [*WITH_TEXT, save_ours])
def test_every_file_gives_the_same_weights_in_float32(clips, kind, save, tmp_path):
    path, clip = clips[kind]
    expected = {k: v.clone() for k, v in clip.visual.state_dict().items()}
    loaded = load_clip_visual(path, str(save(clip, tmp_path))).state_dict()
    assert set(loaded) == set(expected)
    for key, value in expected.items():
        assert loaded[key].dtype == value.dtype and value.dtype in (torch.float32, torch.int64)
        if save is save_openai:  # every weight has been through float16
            value = value.half().to(value.dtype)
        assert torch.equal(loaded[key], value), key


@pytest.mark.parametrize("save", WITH_TEXT)
def test_one_file_and_one_json_serve_both_halves(clips, save, tmp_path):
    path, clip = clips["vit"]
    expected = clip.token_embedding.weight.clone()
    weights = str(save(clip, tmp_path))
    tower = build_text_tower(name=path, pretrained=weights)
    assert tower.dim == load_clip_visual(path, weights).output_dim == 12
    torch.testing.assert_close(tower.token_embedding.weight, expected, rtol=1e-3, atol=1e-3)
    assert tower.tokenize(["a dog " * 50])[0][-1] == 49407 and len(tower.tokenize(["a dog " * 50])[0]) == 16
    assert tower_stamp(name=path, pretrained=weights) != tower_stamp(name="ViT-B-32", pretrained=weights)


def test_a_file_under_the_data_root_is_found(clips, tmp_path, monkeypatch):
    path, clip = clips["vit"]
    save_open_clip(clip, tmp_path)
    (tmp_path / "moved.json").write_text(Path(path).read_text())
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    loaded = load_clip_visual("moved.json", "open_clip.pt")
    assert torch.equal(loaded.conv1.weight, clip.visual.conv1.weight)


def test_random_weights_are_warned_of(clips, caplog):
    path, _ = clips["vit"]
    with caplog.at_level(logging.WARNING):
        load_clip_visual(path, "")
    assert [r.getMessage() for r in caplog.records] == [
        f"The image encoder {path} has random weights: its embeddings mean nothing."
    ]


# ---- activation -------------------------------------------------------------------------------------


def warnings_of(caplog, *args):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load_clip_visual(*args)
    return [r.getMessage() for r in caplog.records]


def test_openai_weights_in_a_transformer_with_exact_gelu(clips, tiny_json, tmp_path, caplog):
    quick, clip = clips["vit"]
    weights = str(save_openai(clip, tmp_path))
    exact = tiny_json("vit", quick_gelu=False)
    (message,) = warnings_of(caplog, exact, weights)
    assert "trained with QuickGELU" in message and "computes exact GELU" in message
    assert 'set "quick_gelu" to true in that file' in message
    assert warnings_of(caplog, quick, weights) == []


def test_the_remedy_names_the_twin_of_a_named_model(monkeypatch, clips, tmp_path, caplog):
    state = clip_weights.ClipWeights({}, None)
    monkeypatch.setattr(clip_weights, "read_weights", lambda *_: state)
    monkeypatch.setattr(clip_weights, "find_weights", lambda half, name, pretrained: (tmp_path, True))
    half, empty = clip_weights.IMAGE, torch.nn.Identity()
    with caplog.at_level(logging.WARNING):
        clip_weights.load_half(empty, half, name="ViT-B-16", pretrained="openai", quick_gelu=False)
    assert f"set {KEYS}.ARCHITECTURE to ViT-B-16-quickgelu." in caplog.text


def test_files_that_cannot_tell_and_resnets_are_not_warned_of(clips, tiny_json, tmp_path, caplog):
    """CLIM's own files run with either activation; a ResNet has none."""
    assert (
        warnings_of(caplog, tiny_json("vit", quick_gelu=False), str(save_clim(clips["vit"][1], tmp_path)))
        == []
    )
    openai = str(save_openai(clips["resnet"][1], tmp_path))
    assert warnings_of(caplog, tiny_json("resnet", quick_gelu=False), openai) == []


# ---- mistakes ---------------------------------------------------------------------------------------


def test_unknown_architecture():
    with pytest.raises(UserError, match=f"{KEYS}.ARCHITECTURE 'ViT-B16' is neither an open_clip model"):
        load_clip_visual("ViT-B16", "")


@pytest.mark.parametrize(
    "content, complaint", [("{", "no readable json"), ("{}", "embed_dim, vision_cfg, text_cfg")]
)
def test_broken_json(tmp_path, content, complaint):
    (tmp_path / "clip.json").write_text(content)
    with pytest.raises(UserError, match=rf"clip.json \({KEYS}.ARCHITECTURE\).*{complaint}"):
        load_clip_visual(str(tmp_path / "clip.json"), "")


def test_unknown_tag_or_file():
    with pytest.raises(UserError, match=f"{KEYS}.PRETRAINED 'opanai' is neither a file nor a tag.*laion2b"):
        load_clip_visual("ViT-B-16", "opanai")


def test_unreachable_hub_says_what_to_fetch(clips, monkeypatch):
    def offline(repository):
        raise OSError("no route")

    monkeypatch.setattr(clip_weights, "download_pretrained_from_hf", offline)
    with pytest.raises(UserError, match=f"no route.*huggingface.co/me/clip.*{KEYS}.PRETRAINED"):
        load_clip_visual(clips["vit"][0], "hf-hub:me/clip")


@pytest.mark.parametrize("vision", [{"layers": 3}, {"layers": 5}, {"width": 64}, {"image_size": 40}])
def test_weights_of_another_transformer(clips, tiny_json, tmp_path, vision):
    weights = str(save_open_clip(clips["vit"][1], tmp_path))
    with pytest.raises(UserError, match=f"do not fit the image encoder of .*{KEYS}.ARCHITECTURE"):
        load_clip_visual(tiny_json("vit", vision=vision), weights)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_the_other_kind(clips, tmp_path, kind):
    (other,) = set(KINDS) - {kind}
    weights = str(save_open_clip(clips[other][1], tmp_path))
    with pytest.raises(UserError, match="do not fit the image encoder"):
        load_clip_visual(clips[kind][0], weights)


@pytest.mark.parametrize(
    "content", [{"conv1.weight": torch.zeros(2)}, torch.zeros(3), {"token_embedding.weight": 0}]
)
def test_file_without_image_encoder(clips, tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"{KEYS}.PRETRAINED\) holds no CLIP image encoder"):
        load_clip_visual(clips["vit"][0], str(tmp_path / "w.pt"))


class Boom:
    def __reduce__(self):
        return (Path.touch, (Path("pickled-code-ran"),))


def test_pickled_code_is_not_run(clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"epoch": 1, "state_dict": clips["vit"][1].state_dict(), "args": Boom()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=f"w.pt cannot be read as plain tensors.*{KEYS}.PRETRAINED"):
        load_clip_visual(clips["vit"][0], "w.pt")
    assert not (tmp_path / "pickled-code-ran").exists()


def test_the_json_describes_both_halves(clips):
    """A guard of the fixture: open_clip's own format, nothing of ours."""
    config = json.loads(Path(clips["vit"][0]).read_text())
    assert set(config) == {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
