"""Tiny CLIPs by name, and texts for towers."""

import json

import open_clip
import pytest
import torch

from clim.text import build_text_tower

TEXT_CFG = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION_CFG = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 32, "image_size": 32}


@pytest.fixture(scope="session", autouse=True)
def tiny_models(tmp_path_factory):
    """Registers tiny-clip and tiny-clip-quickgelu."""
    folder = tmp_path_factory.mktemp("models")
    for name, change in {"tiny-clip": {}, "tiny-clip-quickgelu": {"quick_gelu": True}}.items():
        config = {"embed_dim": 8, "vision_cfg": VISION_CFG, "text_cfg": TEXT_CFG} | change
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="session")
def phrases():
    """Texts of different lengths, one without words."""
    return ["a dog", "a photo of a cat that sleeps on a red chair near the window", "", "two cars"]


@pytest.fixture
def tower():
    """Random, 20 tokens, words of 16 dimensions."""
    return build_text_tower(name="tiny-clip-quickgelu")


@pytest.fixture
def clip():
    """A whole CLIP with random weights unlike the tower's own."""
    torch.manual_seed(7)
    return open_clip.create_model("tiny-clip-quickgelu", load_weights=False).eval()


@pytest.fixture
def clip_file(clip, tmp_path):
    """Path of a file of ``clip``."""
    torch.save(clip.state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"
