"""All that a run on the mini benchmark reads: pictures and jsons, class embeddings, cached captions."""

import json
import os
from pathlib import Path

import numpy as np

from clim.data.mini import build_mini
from clim.data.mini_concepts import MINI_CATEGORIES
from clim.text import CaptionCache, LazyTower, build_text_tower, class_embeddings

CLASS_EMBEDDINGS = Path("mini/metadata/classes_minilm.npy")  # as configs/mini/Base.yaml names them
CAPTION_CACHE = Path("mini/metadata/captions_minilm")


def set_up_mini(root: Path, *, seed: int, **sizes) -> dict:
    """Make under ``root`` what configs/mini expects; what is there already is kept. Returns build_mini's summary."""
    summary = build_mini(root, seed=seed, **sizes)
    write_class_embeddings(root / CLASS_EMBEDDINGS)
    cache = CaptionCache(
        LazyTower(name="minilm", pretrained="", directory=root / CAPTION_CACHE), root / CAPTION_CACHE
    )
    for name in ("pairs", "cluttered"):
        content = json.loads((root / "mini/annotations" / f"captions_{name}_tags.json").read_text())
        cache.prefill([caption for image in content["images"] for caption in image["captions"]])
    return summary


def write_class_embeddings(path: Path) -> None:
    """MiniLM's embeddings of "a " + name for the 65 concepts, unless they are there."""
    if path.is_file():
        return
    tower = build_text_tower(name="minilm")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.save(file, class_embeddings(tower, MINI_CATEGORIES, "a").cpu().numpy())
    os.replace(partial, path)
