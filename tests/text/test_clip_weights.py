"""Files of CLIP's weights in every format, tags and hubs, and what is told of others."""

import logging
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clim.errors import UserError
from clim.text import clip_weights
from clim.text.towers import build_text_tower


def save_plain(clip, folder):
    torch.save({f"module.{key}": value for key, value in clip.state_dict().items()}, folder / "w.pth")
    return folder / "w.pth"


def reference(clip, texts):
    """open_clip's own full-length, unbatched computation."""
    tokenizer = open_clip.get_tokenizer("tiny-clip-quickgelu")
    with torch.no_grad():
        return torch.cat([clip.encode_text(tokenizer([text]), normalize=True) for text in texts])


def save_open_clip(clip, folder):
    torch.save({"epoch": 3, "name": "x", "state_dict": clip.state_dict(), "optimizer": {}}, folder / "w.pt")
    return folder / "w.pt"


def save_safetensors(clip, folder):
    save_file({key: value.contiguous() for key, value in clip.state_dict().items()}, folder / "w.safetensors")
    return folder / "w.safetensors"


def save_torchscript(clip, folder):
    torch.jit.save(torch.jit.script(StateHolder(clip.state_dict())), folder / "w.pt")
    return folder / "w.pt"


def save_detic(clip, folder):
    text = {k: v for k, v in clip.state_dict().items() if not k.startswith("visual.")}
    model = {"backbone.conv": torch.zeros(1)} | {f"text_encoder.{key}": value for key, value in text.items()}
    torch.save({"model": model, "iteration": 9}, folder / "w.pth")
    return folder / "w.pth"


def save_custom_text(clip, folder):
    text = {k: v for k, v in clip.state_dict().items() if not k.startswith(("visual.", "logit_scale"))}
    torch.save({f"text.{key}": value for key, value in text.items()}, folder / "w.pt")
    return folder / "w.pt"


class StateHolder(torch.nn.Module):
    """Any module tree with the given names: OpenAI's files are TorchScript with CLIP's state dict."""

    def __init__(self, state):
        super().__init__()
        children = {}
        for key, value in state.items():
            head, _, tail = key.partition(".")
            if tail:
                children.setdefault(head, {})[tail] = value
            else:
                self.register_buffer(head, value)
        for head, part in children.items():
            self.add_module(head, StateHolder(part))

    def forward(self, x: torch.Tensor):
        return x


@pytest.mark.parametrize(
    "save",
    [save_open_clip, save_plain, save_safetensors, save_torchscript, save_detic, save_custom_text],
)
def test_every_file_format_gives_open_clips_embeddings(save, clip, tmp_path, phrases):
    path = save(clip, tmp_path)
    tower = build_text_tower(name="tiny-clip-quickgelu", pretrained=str(path))
    torch.testing.assert_close(tower.encode(phrases), reference(clip, phrases), atol=1e-6, rtol=0)


def test_half_precision_files_are_read_as_float32(clip, tmp_path, phrases):
    path = save_plain(clip.half(), tmp_path)
    tower = build_text_tower(name="tiny-clip-quickgelu", pretrained=str(path))
    torch.testing.assert_close(tower.encode(phrases), reference(clip.float(), phrases), atol=1e-6, rtol=0)


def test_a_file_under_the_data_root_is_found(clip, tmp_path, monkeypatch):
    save_plain(clip, tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    build_text_tower(name="tiny-clip-quickgelu", pretrained="w.pth")


class Boom:
    def __reduce__(self):
        return (Path.touch, (Path("pickled-code-ran"),))


def test_pickled_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Boom()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="w.pt cannot be read as plain tensors"):
        build_text_tower(name="tiny-clip", pretrained=str(tmp_path / "w.pt"))
    assert not (tmp_path / "pickled-code-ran").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_broken_file(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        build_text_tower(name="tiny-clip", pretrained=str(path))


@pytest.mark.parametrize("content", [{"conv.weight": torch.zeros(2)}, torch.zeros(3)])
def test_file_without_text_tower(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match="holds no CLIP text tower"):
        build_text_tower(name="tiny-clip", pretrained=str(tmp_path / "w.pt"))


@pytest.mark.parametrize("model", ["tiny-wide", "tiny-shallow"])
def test_weights_of_another_model(clip, tmp_path, model):
    path = save_plain(clip, tmp_path)
    with pytest.raises(UserError, match="do not fit the text tower of tiny-.*MODEL.TEXT.NAME"):
        build_text_tower(name=model, pretrained=str(path))


@pytest.mark.parametrize("save", [save_torchscript, save_detic])
def test_openai_weights_in_a_model_with_exact_gelu(save, clip, tmp_path, caplog):
    path = save(clip, tmp_path)
    with caplog.at_level(logging.WARNING):
        build_text_tower(name="tiny-clip", pretrained=str(path))
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 1 and "QuickGELU" in messages[0] and "tiny-clip-quickgelu" in messages[0]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        build_text_tower(name="tiny-clip-quickgelu", pretrained=str(path))
    assert not caplog.records


def test_tag_is_downloaded_and_its_activation_checked(clip, tmp_path, monkeypatch, caplog):
    path = save_safetensors(clip, tmp_path)
    monkeypatch.setattr(clip_weights.open_clip, "get_pretrained_cfg", lambda *_: {"quick_gelu": True})
    monkeypatch.setattr(clip_weights.open_clip, "download_pretrained", lambda cfg: str(path))
    with caplog.at_level(logging.WARNING):
        tower = build_text_tower(name="tiny-clip", pretrained="openai")
    assert "trained with QuickGELU" in caplog.text
    assert torch.equal(tower.token_embedding.weight, clip.token_embedding.weight)


def test_unreachable_hub_says_what_to_fetch(monkeypatch):
    def offline(cfg):
        raise FileNotFoundError("no route\nto host")

    monkeypatch.setattr(clip_weights.open_clip, "download_pretrained", offline)
    with pytest.raises(UserError) as caught:
        build_text_tower(name="ViT-B-32-quickgelu", pretrained="openai")
    message = str(caught.value)
    assert "no route" in message and "ViT-B-32.pt" in message and "MODEL.TEXT.PRETRAINED" in message
    assert "\n" not in message


def test_unreachable_hub_repository(monkeypatch):
    def offline(repository):
        raise OSError(f"cannot reach {repository}")

    monkeypatch.setattr(clip_weights, "download_pretrained_from_hf", offline)
    with pytest.raises(UserError, match="cannot reach.*huggingface.co/me/clip.*MODEL.TEXT.PRETRAINED"):
        build_text_tower(name="tiny-clip", pretrained="hf-hub:me/clip")


def test_unknown_tag_or_file():
    with pytest.raises(UserError, match="neither a file nor a tag.*laion2b_s34b_b79k"):
        build_text_tower(name="ViT-B-32", pretrained="opanai")
