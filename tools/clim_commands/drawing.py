"""Draw boxes with names, and masks, on images: uint8 (H, W, 3) RGB; boxes (N, 4) are x0, y0, x1, y1 in pixels."""

import colorsys
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

GOLDEN_ANGLE = 0.381966  # of a turn: classes with neighbouring indices get very different hues
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans of ``size`` px: matplotlib contains it, and it has most alphabets."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def ordered(image: np.ndarray, input_format: str) -> np.ndarray:
    """RGB (H, W, 3) → the channel order of INPUT.FORMAT ("RGB" or "BGR"), or back; contiguous."""
    return np.ascontiguousarray(image if input_format == "RGB" else image[..., ::-1])


def class_colours(count: int) -> np.ndarray:
    """(count, 3) uint8: one strong colour for each class."""
    hues = (np.arange(count) * GOLDEN_ANGLE) % 1.0
    rows = [colorsys.hls_to_rgb(hue, (0.42, 0.55, 0.66)[i % 3], 0.95) for i, hue in enumerate(hues)]
    return (np.array(rows).reshape(-1, 3) * 255).round().astype(np.uint8)


def enlarge(image: np.ndarray, *, side: int) -> tuple[np.ndarray, float]:
    """The image with a long side of at least ``side`` px, and its scale, 1 or more."""
    scale = max(side / max(image.shape[:2]), 1.0)
    return (image if scale == 1.0 else np.asarray(ImageOps.scale(Image.fromarray(image), scale))), scale


def label_size(image: np.ndarray) -> int:
    """Size of the letters of :func:`draw_boxes` on this image, in px."""
    return max(13, round(max(image.shape[:2]) / 50))


def draw_boxes(
    image: np.ndarray, boxes, labels: Sequence[str], *, colours: Sequence, marked: Collection[int] = (),
    labels_inside: bool = False, side: int = 640, letters: int | None = None,
) -> np.ndarray:  # fmt: skip
    """A copy with boxes and labels, enlarged to a long side of at least ``side`` px.

    Later boxes lie on top. Labels avoid each other where they can; "" draws the box alone. ``colours`` are N RGB
    triples. ``marked`` are the indices of boxes that get a star and a white rim (novel classes). ``letters``: the
    size of the labels in px of the result, by default :func:`label_size`.
    """
    image, scale = enlarge(image, side=side)
    page = Image.fromarray(image)
    draw = ImageDraw.Draw(page)
    line, letters = max(2, round(max(page.size) / 300)), font(letters or label_size(image))
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4) * scale
    colours = [tuple(int(v) for v in colour) for colour in colours]
    for i, (box, colour) in enumerate(zip(boxes, colours, strict=True)):
        if i in marked:
            _outline(draw, box + line * np.array([-1, -1, 1, 1]), page.size, width=3 * line, colour=WHITE)
        _outline(draw, box, page.size, width=line, colour=colour)
    taken = np.zeros((0, 4))
    for i in reversed(range(len(boxes))):  # the label of the top box gets the best place
        if labels[i]:
            text = f"★ {labels[i]}" if i in marked else labels[i]
            size = np.array([letters.getlength(text), letters.size]) + letters.size / 2.5
            place = _label_place(boxes[i], size, page.size, taken, inside=labels_inside)
            taken = np.vstack([taken, place])
            ink = BLACK if np.dot(colours[i], (0.299, 0.587, 0.114)) > 140 else WHITE
            draw.rectangle(place.tolist(), fill=colours[i])
            draw.text(tuple((place[:2] + place[2:]) / 2), text, fill=ink, font=letters, anchor="mm")
    return np.asarray(page)


def draw_objects(
    image: np.ndarray,
    boxes,
    classes: Sequence[int],
    *,
    names: Sequence[str],
    novel=(),
    scores=None,
    masks=None,
    letters: int | None = None,
) -> np.ndarray:
    """A copy with objects, a colour for each class; the first object lies on top.

    ``classes`` are N indices into ``names``; those in ``novel`` get a star. The N ``scores`` stand after the names.
    ``masks`` (N, H, W) bool are tinted. ``letters`` as in :func:`draw_boxes`.
    """
    labels = [names[c] for c in classes]
    if scores is not None:
        labels = [f"{label} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)[::-1]
    colours = class_colours(len(names))[list(classes)[::-1]]
    marked = {i for i, c in enumerate(reversed(classes)) if c in novel}
    if masks is not None:
        image = tint(image, masks[::-1], colours)
    return draw_boxes(image, boxes, labels[::-1], colours=colours, marked=marked, letters=letters)


def tint(image: np.ndarray, masks, colours) -> np.ndarray:
    """A copy in which pixels of ``masks`` (N, H, W) bool are half of their mask's colour; later masks lie on top."""
    tinted = image.copy()
    for mask, colour in zip(masks, colours, strict=True):
        tinted[mask] = (image[mask] + np.asarray(colour, dtype=float)) / 2
    return tinted


def _outline(draw, box: np.ndarray, page: tuple[int, int], *, width: int, colour) -> None:
    """A rectangle drawn inwards from ``box``, kept visible at the image's border."""
    low, high = np.clip(box.reshape(2, 2), 0, np.array(page) - 1)
    draw.rectangle([*low, *np.maximum(low, high)], outline=colour, width=width)


def _label_place(box, size, page: tuple[int, int], taken: np.ndarray, *, inside: bool) -> np.ndarray:
    """(4,) rectangle at ``box`` for a label of ``size``: the one that covers least of the ``taken`` ones (N, 4)."""
    (x0, y0, x1, y1), (width, height) = box, size
    outside = [(x, y) for x in (x0, x1 - width) for y in (y0 - height, y1)]
    corners = [(x0, y0)] if inside else [*outside, (x0, y0), (x0, y1 - height)]
    corners = np.clip(corners, 0, np.maximum(page - size, 0))
    places = np.hstack([corners, corners + size])
    shared = np.minimum(places[:, None, 2:], taken[:, 2:]) - np.maximum(places[:, None, :2], taken[:, :2])
    return places[shared.clip(min=0).prod(axis=2).sum(axis=1).argmin()]
