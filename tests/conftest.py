"""Small things that many tests need: photos on disk, a text tower without weights, tiny configs."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from torch.nn import functional as F

from clim.config import add_clim_config

CONFIGS = Path(__file__).parents[1] / "configs"


class HashTower:
    """A text tower without weights: every text has its own direction; ``asked`` lists the calls."""

    fingerprint = "hash"

    def __init__(self, dim):
        self.dim = dim
        self.asked = []

    def encode(self, texts):
        self.asked.append(list(texts))
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") for text in texts]
        rows = [torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return F.normalize(torch.stack(rows), dim=1) if rows else torch.zeros(0, self.dim)


@pytest.fixture(scope="session")
def hash_tower():
    """``hash_tower(dim)``."""
    return HashTower


@pytest.fixture(scope="session")
def make_photos(tmp_path_factory):
    """``make_photos([(height, width), …], ext="png")`` writes pictures; gives records of both kinds at once.

    Every picture has its own colours. Detection and caption fields are both there.
    """

    def make(sizes, *, ext="png", first_id=100):
        folder, records = tmp_path_factory.mktemp("photos"), []
        for i, (height, width) in enumerate(sizes):
            rng = np.random.default_rng([i, height, width])
            coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
            picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
            path = folder / f"{i}.{ext}"
            assert cv2.imwrite(str(path), picture)
            records.append(
                {
                    "file_name": str(path),
                    "height": height,
                    "width": width,
                    "image_id": first_id + i,
                    "captions": [f"picture {i}, caption {j}" for j in range(3)],
                    "tags": [i % 5, 5 + i % 3],
                }
            )
        return records

    return make


@pytest.fixture(scope="session")
def load_cfg():
    """``load_cfg("Detic_C4.yaml", "KEY", value, …)``: one of our configs, with overrides, on the CPU."""

    def load(name, *overrides):
        cfg = get_cfg()
        add_clim_config(cfg)
        cfg.merge_from_file(str(CONFIGS / name))
        cfg.merge_from_list(["MODEL.DEVICE", "cpu", *overrides])
        return cfg

    return load
