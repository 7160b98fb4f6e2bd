"""All that a run on the mini benchmark reads: images and jsons, class embeddings, cached captions."""

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from clim.files import write_array
from clim.text import CaptionCache, LazyTower, TextTower, build_text_tower, class_embeddings, word_piece_means
from mini.concepts import NAMES
from mini.generate import build_mini

# As configs/mini name them: what MiniLM makes of the 65 concepts.
CLASS_EMBEDDINGS: dict[str, Callable[[TextTower], Tensor]] = {
    "mini/metadata/classes_minilm.npy": lambda tower: class_embeddings(tower, NAMES, "a"),
    "mini/metadata/classes_minilm_words.npy": lambda tower: word_piece_means(tower, NAMES),
}
CAPTION_CACHE = Path("mini/metadata/captions_minilm")


def set_up_mini(root: Path, *, seed: int, **sizes) -> dict:
    """Make under ``root`` what configs/mini expects; what is there already is kept. Returns build_mini's summary."""
    summary = build_mini(root, seed=seed, **sizes)
    write_class_embeddings(root)
    cache = CaptionCache(LazyTower(name="minilm", pretrained="", directory=root / CAPTION_CACHE), root / CAPTION_CACHE)
    for name in ("pairs", "cluttered"):
        content = json.loads((root / "mini/annotations" / f"captions_{name}_tags.json").read_text())
        cache.prefill([caption for image in content["images"] for caption in image["captions"]])
    return summary


def write_class_embeddings(root: Path) -> None:
    """The files of CLASS_EMBEDDINGS that are not there yet."""
    missing = {root / name: read for name, read in CLASS_EMBEDDINGS.items() if not (root / name).is_file()}
    if not missing:
        return
    tower = build_text_tower(name="minilm")
    for path, read in missing.items():
        write_array(path, read(tower).cpu().numpy())
