"""Boxes, mosaics and panels drawn on pictures: pure functions, array in, array out.

Pictures are uint8 (H, W, 3) RGB; boxes are (N, 4) x0, y0, x1, y1 in pixels of the picture they come with.
"""

import colorsys
from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image, ImageDraw

from clim.data.images import ordered

from . import lettering
from .lettering import shortened

GOLDEN_ANGLE = 0.381966  # of a turn: neighbouring class indices get hues far apart
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def class_colours(count: int) -> np.ndarray:
    """(count, 3) uint8: one colour a class, strong enough to stand out on a photo."""
    rows = [
        colorsys.hls_to_rgb((i * GOLDEN_ANGLE) % 1.0, (0.42, 0.55, 0.66)[i % 3], 0.95) for i in range(count)
    ]
    return (np.array(rows).reshape(-1, 3) * 255).round().astype(np.uint8)


def enlarge(image: np.ndarray, *, side: int) -> tuple[np.ndarray, float]:
    """The picture with a long side of at least ``side`` px, and its scale; never made smaller."""
    scale = max(side / max(image.shape[:2]), 1.0)
    if scale == 1.0:
        return image, 1.0
    height, width = (round(extent * scale) for extent in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)), scale


def draw_boxes(
    image: np.ndarray,
    boxes,
    labels: Sequence[str],
    *,
    colours: Sequence,
    marked: Collection[int] = (),
    labels_inside: bool = False,
    side: int = 640,
) -> np.ndarray:
    """A copy with boxes and labels; pictures with a long side below ``side`` px are enlarged to it.

    Later boxes lie on top. Lines and letters grow with the picture; labels avoid each other where they can.

    Args:
        labels: N texts; "" draws the box alone.
        colours: N RGB triples.
        marked: indices of boxes that get a star and a white rim (novel classes).
        labels_inside: put each label into its own box, where boxes tile the picture.
    """
    image, scale = enlarge(image, side=side)
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    long = max(canvas.size)
    line = max(2, round(long / 300))
    font = lettering.font(max(13, round(long / 46)), text="".join(labels))
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4) * scale
    colours = [tuple(int(v) for v in colour) for colour in colours]
    for i, (box, colour) in enumerate(zip(boxes, colours, strict=True)):
        if i in marked:
            _outline(draw, box, canvas.size, grow=line, width=3 * line, colour=WHITE)
        _outline(draw, box, canvas.size, grow=0, width=line, colour=colour)
    taken: list[tuple] = []
    # From the top box down, so that the most important label gets the best place.
    for i in reversed(range(len(boxes))):
        if labels[i]:
            others = None if labels_inside else taken
            label = {"text": labels[i], "font": font, "colour": colours[i], "star": i in marked}
            taken.append(_label(draw, boxes[i], canvas.size, others=others, **label))
    return np.asarray(canvas)


def draw_objects(
    image: np.ndarray,
    boxes,
    classes: Sequence[int],
    *,
    names: Sequence[str],
    novel: Collection[int] = (),
    scores: Sequence[float] | None = None,
    side: int = 640,
) -> np.ndarray:
    """Detections, or ground truth where ``scores`` is None; the first object lies on top.

    Args:
        classes: N indices into ``names``, each with a colour of its own.
        novel: class indices that are marked.
    """
    labels = [names[c] for c in classes]
    if scores is not None:
        labels = [f"{label} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    last = len(labels) - 1
    return draw_boxes(
        image,
        np.asarray(boxes, dtype=float).reshape(-1, 4)[::-1],
        labels[::-1],
        colours=class_colours(len(names))[list(classes)[::-1]],
        marked={last - i for i, c in enumerate(classes) if c in novel},
        side=side,
    )


def draw_canvas(canvas: dict, *, image_format: str, side: int = 768, captions: bool = True) -> np.ndarray:
    """What the network saw of a mosaic (data/canvas_mapper.py): the canvas, its tiles' boxes and drawn captions.

    Args:
        canvas: ``image`` (3, H, W) uint8 tensor and ``tiles``.
        image_format: the channel order that it was made with, ``INPUT.FORMAT``.
    """
    image = canvas["image"].permute(1, 2, 0).numpy()
    tiles = canvas["tiles"]
    image, scale = enlarge(ordered(image, image_format), side=side)
    boxes = tiles.boxes.numpy() * scale
    font = lettering.font(max(13, round(side / 46)), text="".join(tiles.drawn))
    texts = [
        shortened(text, width=box[2] - box[0] - font.size, font=font) if captions else ""
        for text, box in zip(tiles.drawn, boxes, strict=True)
    ]
    return draw_boxes(image, boxes, texts, colours=class_colours(len(tiles)), labels_inside=True, side=side)


def side_by_side(
    panels: Sequence[np.ndarray], titles: Sequence[str], *, gap: int = 12, background=WHITE, ink=BLACK
) -> np.ndarray:
    """Pictures in a row under their titles, all scaled to the height of the first one."""
    height = panels[0].shape[0]
    font = lettering.font(max(14, round(height / 32)), text="".join(titles))
    head = round(font.size * 1.8)
    pictures = [Image.fromarray(panel) for panel in panels]
    pictures = [p.resize((round(p.width * height / p.height), height)) for p in pictures]
    width = sum(p.width for p in pictures) + gap * (len(pictures) + 1)
    sheet = Image.new("RGB", (width, head + height + gap), background)
    draw = ImageDraw.Draw(sheet)
    x = gap
    for picture, title in zip(pictures, titles, strict=True):
        text = shortened(title, width=picture.width, font=font)
        draw.text((x, head / 2), text, fill=ink, font=font, anchor="lm")
        sheet.paste(picture, (x, head))
        x += picture.width + gap
    return np.asarray(sheet)


def _outline(draw, box, size, *, grow: int, width: int, colour) -> None:
    """A rectangle drawn inwards from ``box`` grown by ``grow`` px, kept visible at the picture's border."""
    x0, y0 = (min(max(v - grow, 0), limit - 1) for v, limit in zip(box[:2], size, strict=True))
    x1, y1 = (
        min(max(v + grow, low), limit - 1) for v, limit, low in zip(box[2:], size, (x0, y0), strict=True)
    )
    draw.rectangle((x0, y0, x1, y1), outline=colour, width=width)


def _label(draw, box, size, *, text: str, font, colour, star: bool, others: list | None) -> tuple:
    """Write ``text`` where it hides least of ``others``, or into the box (None); the rectangle it takes."""
    pad = max(2, font.size // 5)
    mark = round(font.size * 1.25) if star else 0
    width, height = font.getlength(text) + 2 * pad + mark, font.size + 2 * pad
    x0, y0, x1, y1 = box
    corners = [(x0, y0)]
    if others is not None:
        corners = [
            (x0, y0 - height),
            (x0, y1),
            (x1 - width, y0 - height),
            (x1 - width, y1),
            (x0, y0),
            (x0, y1 - height),
        ]
    places = []
    for x, y in corners:
        x = min(max(x, 0), max(size[0] - width, 0))
        y = min(max(y, 0), max(size[1] - height, 0))
        places.append((x, y, x + width, y + height))
    rectangle = min(places, key=lambda place: sum(_overlap(place, other) for other in others or ()))
    draw.rectangle(rectangle, fill=colour)
    ink = BLACK if np.dot(colour, (0.299, 0.587, 0.114)) > 140 else WHITE
    middle = (rectangle[1] + rectangle[3]) / 2
    if star:
        _star(draw, (rectangle[0] + pad + font.size / 2, middle), font.size / 2, ink)
    draw.text((rectangle[0] + pad + mark, middle), text, fill=ink, font=font, anchor="lm")
    return rectangle


def _overlap(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def _star(draw, centre, radius: float, colour) -> None:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, radius, radius * 0.42)
    points = np.stack([centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)], axis=1)
    draw.polygon([tuple(point) for point in points], fill=colour)
