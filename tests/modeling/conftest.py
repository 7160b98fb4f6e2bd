"""Tiny CLIPs with random weights, and slow obvious versions of what encoders share."""

import json
import math

import open_clip
import pytest
import torch

from clim.text.clip_config import clip_config

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION = {
    "vit": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 4},
    "resnet": {"image_size": 64, "width": 8, "layers": [1, 2, 1, 1]},
}


@pytest.fixture(scope="session")
def tiny_json(tmp_path_factory):
    """``tiny_json("vit" or "resnet", key=value, …)``: path of a json in open_clip's config format, D = 12."""

    def write(kind, *, vision=(), text=(), **changes):
        config = {
            "embed_dim": 12,
            "quick_gelu": True,
            "vision_cfg": VISION[kind] | dict(vision),
            "text_cfg": TEXT | dict(text),
        }
        path = tmp_path_factory.mktemp("clip") / f"tiny-{kind}.json"
        path.write_text(json.dumps(config | changes))
        return str(path)

    return write


@pytest.fixture(scope="session")
def random_clip():
    """``random_clip(name or json path, seed)``: an open_clip model whose every weight matters."""

    def make(name, seed=0):
        torch.manual_seed(seed)
        config = clip_config(name, key="name")
        if not name.endswith(".json"):
            config["text_cfg"] = TEXT  # a full text half would take longer than the test
        model = open_clip.CLIP(
            embed_dim=config["embed_dim"],
            vision_cfg=config["vision_cfg"],
            text_cfg=config["text_cfg"],
            quick_gelu=config.get("quick_gelu", False),
        )
        for module in model.modules():  # open_clip starts norms as identities and biases at zero
            for weight in module.parameters(recurse=False):
                if weight.ndim == 1:
                    weight.data += 0.1 * torch.randn_like(weight)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.data.uniform_(0.3, 0.6)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
        return model.eval()

    return make


def cubic_matrix(size, target):
    """(target, size) weights of one-dimensional cubic interpolation (a = -0.75), half-pixel centres, clamped ends."""
    weights, a = torch.zeros(target, size, dtype=torch.float64), -0.75
    for row in range(target):
        place = (row + 0.5) * size / target - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            d = abs(place - tap)
            if d <= 1:
                weight = (a + 2) * d**3 - (a + 3) * d**2 + 1
            else:
                weight = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            weights[row, min(max(tap, 0), size - 1)] += weight
    return weights


@pytest.fixture(scope="session")
def slow_positions():
    """``slow_positions((1 + g², C), (h, w))``: the first row, and the others interpolated to h x w."""

    def resize(positions, grid):
        side = math.isqrt(len(positions) - 1)
        if tuple(grid) == (side, side):
            return positions
        rows, columns = cubic_matrix(side, grid[0]), cubic_matrix(side, grid[1])
        square = positions[1:].double().reshape(side, side, -1)
        resized = torch.einsum("ya,xb,abc->yxc", rows, columns, square)
        return torch.cat([positions[:1], resized.flatten(0, 1).to(positions)])

    return resize
