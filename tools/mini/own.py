"""A user's own data on the mini benchmark: new scenes with boxes of 20 of the 48 base concepts, and new pairs.

Layout under ``root/mini_own/``::

    train/ pairs/                      JPEG images, drawn as those of the mini benchmark
    annotations/instances_train.json   boxes of the 20 concepts; other objects lie there unlabelled
    annotations/captions_tags.json     one or two large objects of all 65 concepts, web-like captions
    data.yaml                          these sets with their classes, and mini/val
    summary.json                       written first, and last with the counts of the finished files

The 20 concepts are drawn by the seed. Of the objects in a scene, a quarter are other ones.
"""

from functools import partial
from pathlib import Path

import numpy as np
import yaml

from clim.files import write_json
from mini.concepts import NAMES, web_captions
from mini.generate import build_once, captions_of, coco_json, draw_splits, fill_caption_cache, save_image, set_up_mini
from mini.images import BASE, PHOTOS, draw_pair, draw_scene

VERSION = 1
DEFAULT_SIZES = {"train": 500, "pairs": 1000}
STREAMS = {"train": 8, "pairs": 9, "concepts": 10}  # random streams; mini OV-COCO and mini OV-LVIS have 0 to 7
BOXED = 20  # concepts
OTHER_SHARE = 0.25  # of the objects in a scene have no box


def own_concepts(seed: int) -> np.ndarray:
    """(20,) indices into ``CONCEPTS``, ascending: the base concepts with boxes."""
    rng = np.random.default_rng((seed, STREAMS["concepts"]))
    return np.sort(rng.choice(BASE, BOXED, replace=False))


def build_own(
    root: str | Path,
    *,
    seed: int = 0,
    num_train: int = DEFAULT_SIZES["train"],
    num_pairs: int = DEFAULT_SIZES["pairs"],
    workers: int = 2,
) -> dict:
    """Write the files above to ``root/mini_own`` unless they are there already, and return their summary.

    Arguments and summary as of :func:`mini.generate.build_mini`.
    """
    folder = Path(root) / "mini_own"
    sizes = {"train": num_train, "pairs": num_pairs}
    arguments = {"seed": seed, "num_train": num_train, "num_pairs": num_pairs}

    def make() -> dict[str, dict[str, int]]:
        write = partial(_write_image, folder=folder, seed=seed)
        return _write_files(folder, own_concepts(seed), *draw_splits(sizes, write, workers=workers, what="own data"))

    return build_once(folder, version=VERSION, arguments=arguments, parts=(*sizes, "annotations"), make=make)


def _write_image(task: tuple[str, int], *, folder: Path, seed: int) -> tuple[str, dict, list[dict]]:
    """Draw an image and write its JPEG. Returns its split, its entry and all its annotations."""
    split, index = task
    rng = np.random.default_rng((seed, STREAMS[split], index))
    if split == "pairs":
        drawn = draw_pair(rng)
        captions = web_captions(drawn.concepts, rng)
    else:
        drawn, captions = draw_scene(rng, photos=PHOTOS, novel_share=OTHER_SHARE, boxed=own_concepts(seed)), []
    return split, *save_image(folder / split, index, drawn, captions, first_id=STREAMS[split] * 1_000_000)


def _write_files(folder: Path, boxed: np.ndarray, images: dict[str, list], objects: dict[str, list]) -> dict:
    """Write the json files and data.yaml. Returns the counts."""
    labelled = [o for o in objects["train"] if o["category_id"] - 1 in boxed]
    instances, captions = "annotations/instances_train.json", "annotations/captions_tags.json"
    write_json(folder / instances, coco_json(images["train"], labelled, boxed=boxed))
    write_json(folder / captions, coco_json(images["pairs"], [], for_captions=True))
    data = {
        "classes": [NAMES[i] for i in boxed],
        "novel": [name for i, name in enumerate(NAMES) if i not in boxed],
        "train": {"images": "train", "boxes": instances},
        "val": {"images": "../mini/val", "boxes": "../mini/annotations/instances_val_all.json"},
        "captions": {"images": "pairs", "captions": captions},
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=110))
    counts = {split: {"images": len(images[split]), "objects": len(objects[split])} for split in images}
    counts["train"]["annotations"] = len(labelled)
    counts["pairs"]["tags"] = sum(len(image["pos_category_ids"]) for image in images["pairs"])
    return counts


def set_up_own(root: Path, *, seed: int) -> None:
    """Make the files of configs/mini and configs/mini/finetune_*.yaml under ``root``. Existing ones stay."""
    set_up_mini(root, seed=seed)
    build_own(root, seed=seed)
    fill_caption_cache(root, captions_of(root / "mini_own/annotations/captions_tags.json"))
