"""Mini OV-LVIS: the concepts, drawings and photos of the mini benchmark in the formats of LVIS v1 and CC3M.

Layout under ``root/mini_lvis/``::

    train/ val/                                    JPEG images, 256 x 256; a json names them by ``coco_url``
    pairs/00000.tar ...                            image-text pairs as img2dataset writes them: jpg, json and txt
    pairs/index_nouns/                             index of the pairs, with nouns as tags (write_noun_index)
    index/                                         index of the pairs, with tags (tools/shards)
    lvis/instances_train.json, instances_val.json  boxes and masks of all classes
    lvis/instances_train_norare.json               without the annotations of rare classes
    lvis/instances_train_cat_info.json             the 65 categories with their image and instance counts
    lvis/instances_train_cat_norare_info.json      the same with zeros for the rare ones
    summary.json                                   written first, and last with the counts of the finished files

The 17 novel concepts are rare, half of the others common, half frequent. With the default number of training scenes,
LVIS's own thresholds hold: a rare class is in at most 10 of them, a common one in 11 to 100. Validation scenes show all
classes equally often. The pairs are those of mini OV-COCO, with one caption each.
"""

import io
import json
import tarfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from clim.files import write_json
from mini import generate
from mini.concepts import CONCEPTS, caption_tags
from mini.generate import draw_all, draw_image, encode_jpeg
from mini.images import BASE, MAX_OBJECTS, PHOTOS, SCENE_SIDES, VAL_PHOTOS, LabelledImage, draw, photo_background

VERSION = 1
DEFAULT_SIZES = {"train": 1200, "val": 250, "pairs": 1500}
PER_SHARD = 500
STREAMS = {"train": 4, "val": 5, "plan": 6, "keys": 7}  # random streams; mini OV-COCO has 0 to 3

FREQUENCIES = np.full(len(CONCEPTS), "r")
FREQUENCIES[BASE[::2]], FREQUENCIES[BASE[1::2]] = "f", "c"
# Training scenes with one class, from least to most, for the default size. Frequent classes share the other objects.
OBJECTS = {"r": (2, 9), "c": (15, 80)}
NEGATIVES = {"r": 3, "c": 4, "f": 4}  # verified absent classes of an image
REPEATED = 0.25  # of the scenes have a second object of a class
NOT_EXHAUSTIVE = 0.25  # of the scenes with several objects of a class lack one of them
SPECK = 2  # square pixels; smaller parts of an object get no polygon


def plan_scenes(seed: int, split: str, number: int) -> list[list[int]]:
    """The concepts of ``number`` scenes of "train" or "val", one to six each: indices into ``CONCEPTS``."""
    rng = np.random.default_rng((seed, STREAMS["plan"], STREAMS[split]))
    sizes = rng.integers(1, MAX_OBJECTS + 1, size=number)
    deck, fillers = np.zeros(0, int), np.arange(len(CONCEPTS))
    if split == "train":
        for frequency, limits in OBJECTS.items():
            scarce = np.flatnonzero(frequency == FREQUENCIES)
            counts = np.exp(rng.uniform(*np.log(limits), size=len(scarce))) * number / DEFAULT_SIZES["train"]
            deck = np.append(deck, np.repeat(scarce, counts.round().clip(min=1).astype(int)))
        fillers = np.flatnonzero(FREQUENCIES == "f")
    rest = np.resize(rng.permutation(fillers), max(0, sizes.sum() - len(deck)))
    deck = rng.permutation(np.append(deck, rest))
    scenes = [deck[end - size : end].tolist() for size, end in zip(sizes, sizes.cumsum(), strict=True)]
    for scene in scenes:
        if rng.random() < REPEATED and len(scene) < MAX_OBJECTS:
            scene.append(scene[0])
    return scenes


def polygons(mask: np.ndarray) -> list[list[float]]:
    """[x, y, x, y, …] in pixels around each part of a mask (H, W), not empty. pycocotools fills them to that mask.

    A polygon has no holes, so a cut without width joins each hole to the outline. Specks are left out.
    """
    doubled = np.kron(mask.astype(np.uint8), np.ones((2, 2), np.uint8))  # lines stay within the edges of the pixels
    contours, (links, *_) = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    lines = [cv2.approxPolyDP(contour, 0.5, True)[:, 0] for contour in contours]
    found = []
    for part in np.flatnonzero(links[:, 3] < 0):  # outlines, not holes
        if cv2.contourArea(contours[part]) < 4 * SPECK:
            continue
        line = lines[part]
        for hole in (lines[i] for i in np.flatnonzero(links[:, 3] == part)):
            distances = np.abs(line[:, None] - hole).sum(axis=2)
            start, first = np.unravel_index(distances.argmin(), distances.shape)
            line = np.concatenate([line[: start + 1], hole[first:], hole[: first + 1], line[start:]])
        found.append(((line + 0.5) / 2).ravel().tolist())
    return found


def draw_labelled(seed: int, split: str, index: int, concepts: list[int]) -> tuple[LabelledImage, dict, list[dict]]:
    """A scene of ``concepts``, its entry and its annotations in LVIS's format, without ids of annotations.

    In some scenes one of several objects of a class has no annotation: that class is not exhaustive.
    """
    rng = np.random.default_rng((seed, STREAMS[split], index))
    background = photo_background(rng, VAL_PHOTOS if split == "val" else PHOTOS)
    drawn = draw(background, concepts, rng, sides=SCENE_SIDES)
    absent = np.setdiff1d(np.arange(len(CONCEPTS)), drawn.concepts)
    negatives = [rng.choice(absent[FREQUENCIES[absent] == f], n, replace=False) for f, n in NEGATIVES.items()]
    copies = [i for i, concept in enumerate(drawn.concepts) if concept in drawn.concepts[:i]]
    left_out = copies[:1] if rng.random() < NOT_EXHAUSTIVE else []
    image = {
        "id": STREAMS[split] * 1_000_000 + index,
        "width": generate.CANVAS,
        "height": generate.CANVAS,
        "coco_url": f"http://mini/{split}/{index:06d}.jpg",
        "neg_category_ids": sorted((np.concatenate(negatives) + 1).tolist()),
        "not_exhaustive_category_ids": [drawn.concepts[i] + 1 for i in left_out],
    }
    annotations = []
    for i, (concept, box) in enumerate(zip(drawn.concepts, drawn.boxes().tolist(), strict=True)):
        if i not in left_out:
            mask = drawn.mask == i
            row = {"image_id": image["id"], "category_id": concept + 1, "bbox": list(map(float, box))}
            annotations.append(row | {"area": float(mask.sum()), "segmentation": polygons(mask)})
    return drawn, image, annotations


def _write_scene(task: tuple[str, int, list[int]], *, folder: Path, seed: int) -> tuple[str, dict, list[dict]]:
    split, index, concepts = task
    drawn, image, annotations = draw_labelled(seed, split, index, concepts)
    (folder / split / f"{index:06d}.jpg").write_bytes(encode_jpeg(drawn.image))
    return split, image, annotations


def _draw_pair(index: int, *, seed: int) -> tuple[bytes, str]:
    """The JPEG and the first caption of one of mini OV-COCO's pairs."""
    drawn, captions = draw_image(seed, "pairs", index, novel_in_scenes=0)
    return encode_jpeg(drawn.image), captions[0]


def build_mini_lvis(
    root: str | Path,
    *,
    seed: int = 0,
    num_train: int = DEFAULT_SIZES["train"],
    num_val: int = DEFAULT_SIZES["val"],
    num_pairs: int = DEFAULT_SIZES["pairs"],
    workers: int = 2,
) -> dict:
    """Write mini OV-LVIS to ``root/mini_lvis`` unless it is there already; rules, result and errors as build_mini's."""
    folder = Path(root) / "mini_lvis"
    arguments = {"seed": seed, "num_train": num_train, "num_val": num_val, "num_pairs": num_pairs}

    def make() -> dict[str, dict[str, int]]:
        sizes = {"train": num_train, "val": num_val}
        tasks = [(s, i, scene) for s, n in sizes.items() for i, scene in enumerate(plan_scenes(seed, s, n))]
        write = partial(_write_scene, folder=folder, seed=seed)
        counts = _write_jsons(folder / "lvis", draw_all(tasks, write, workers=workers, what="mini OV-LVIS"))
        pairs = draw_all(range(num_pairs), partial(_draw_pair, seed=seed), workers=workers, what="pairs")
        counts["pairs"] = _write_shards(folder / "pairs", list(pairs), seed=seed)
        _write_index(folder)
        return counts

    parts = ("train", "val", "pairs", "lvis")
    return generate.build_once(folder, version=VERSION, arguments=arguments, parts=parts, make=make)


def _write_jsons(folder: Path, scenes: Iterable[tuple[str, dict, list[dict]]]) -> dict[str, dict[str, int]]:
    """Write the json files of scenes (split, entry, annotations). Returns the counts."""
    images: dict[str, list] = {"train": [], "val": []}
    annotations: dict[str, list] = {"train": [], "val": []}
    for split, image, found in scenes:
        images[split].append(image)
        annotations[split] += [{"id": i, **a} for i, a in enumerate(found, start=len(annotations[split]) + 1)]
    annotations["train_norare"] = [a for a in annotations["train"] if FREQUENCIES[a["category_id"] - 1] != "r"]
    categories = _categories(annotations["train"])
    for name, kept in annotations.items():
        parts = {"images": images[name.removesuffix("_norare")], "annotations": kept, "categories": categories}
        write_json(folder / f"instances_{name}.json", {"info": {"description": generate.ATTRIBUTION}, **parts})
    write_json(folder / "instances_train_cat_info.json", categories)
    write_json(folder / "instances_train_cat_norare_info.json", _categories(annotations["train_norare"]))
    counts = {split: {"images": len(images[split]), "annotations": len(annotations[split])} for split in images}
    counts["train"]["annotations without rare"] = len(annotations["train_norare"])
    return counts


def _categories(annotations: list[dict]) -> list[dict]:
    """LVIS's categories with their counts among ``annotations``, and ``split`` as in mini OV-COCO."""
    counts = generate.class_counts(annotations)
    rows = []
    for i, (concept, frequency) in enumerate(zip(CONCEPTS, FREQUENCIES.tolist(), strict=True), start=1):
        words = {"name": concept.name, "synset": f"{concept.name}.n.01", "synonyms": [concept.name, *concept.synonyms]}
        words |= {"def": f"OpenMoji's drawing {concept.code}", "frequency": frequency}
        rows.append({"id": i, **words, "split": "novel" if concept.novel else "base", **counts[i]})
    return rows


def _write_shards(folder: Path, pairs: list[tuple[bytes, str]], *, seed: int) -> dict[str, int]:
    """Write pairs (JPEG, caption) as tar files. Returns the counts.

    As img2dataset's, keys are 10,000 x shard + row, in the order of arrival, and one row in six is lacking.
    """
    rng = np.random.default_rng((seed, STREAMS["keys"]))
    tags = 0
    for shard, start in enumerate(range(0, len(pairs), PER_SHARD)):
        rows = rng.permutation(PER_SHARD * 6 // 5).tolist()
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row, (jpeg, caption) in zip(rows, pairs[start : start + PER_SHARD], strict=False):
                key = f"{10_000 * shard + row:09d}"
                about = {"caption": caption, "key": key, "status": "success"}
                about |= dict.fromkeys(("width", "height"), generate.CANVAS)
                about["tags"] = caption_tags([caption])
                tags += len(about["tags"])
                for ending, content in (("jpg", jpeg), ("json", json.dumps(about).encode()), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return {"images": len(pairs), "tags": tags}


def _write_index(folder: Path) -> None:
    """Index the shards of mini OV-LVIS in ``folder``, if there are any."""
    from shards.build import Tagging, build_index  # it imports torch, which takes seconds

    names = sorted(path.name for path in (folder / "pairs").glob("*.tar"))
    categories = [{"id": i, "name": concept.name} for i, concept in enumerate(CONCEPTS, start=1)]
    if names:
        build_index(folder / "pairs", names, folder / "index", tagging=Tagging("mini", categories, caption_tags, True))


def write_noun_index(root: Path) -> None:
    """Write the nouns of the pairs' captions, and an index with nouns as tags, unless they are there."""
    from shards.build import build_index  # it imports torch, which takes seconds

    folder = root / "mini_lvis"
    captions, index = captions_of(folder), folder / "pairs" / "index_nouns"
    if captions and not index.is_dir():
        tagging = generate.write_nouns(folder / "metadata", captions)
        names = sorted(path.name for path in (folder / "pairs").glob("*.tar"))
        build_index(folder / "pairs", names, index, tagging=tagging)


def captions_of(folder: Path) -> list[str]:
    """The captions of all pairs of mini OV-LVIS in ``folder``."""
    from clim.data.shards import ShardRecords  # it imports torch, which takes seconds

    if not any((folder / "pairs").glob("*.tar")):
        return []
    return [pair["captions"][0] for pair in ShardRecords(folder / "index", folder / "pairs")]


def set_up_mini_lvis(root: Path, *, seed: int, **sizes) -> dict:
    """Make mini OV-LVIS and its embeddings under ``root``. Existing files stay. Returns build_mini_lvis's summary."""
    summary = build_mini_lvis(root, seed=seed, **sizes)
    generate.write_class_embeddings(root)
    if captions := captions_of(root / "mini_lvis"):
        generate.fill_caption_cache(root, captions)
    write_noun_index(root)
    return summary
