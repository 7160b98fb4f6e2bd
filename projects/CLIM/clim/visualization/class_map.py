"""A class for every pixel, as colours and names over the picture (CLIM, Fig. 5): pure functions.

Pictures are uint8 (H, W, 3) RGB, class maps int64 (H, W) with values below K, the number of classes.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from . import lettering
from .draw import BLACK, WHITE
from .response import upsample

STRENGTH = 0.6  # of the colours over the picture
STROKE = 2  # px around letters


def class_map(scores: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The best of K classes for every pixel: scores (K, h, w) of cells, bilinear to ``size``, then the argmax."""
    return upsample(scores, size).argmax(dim=0).numpy()


def shares(classes: np.ndarray, count: int) -> np.ndarray:
    """(count,) part of the pixels that each class holds."""
    return np.bincount(classes.ravel(), minlength=count) / classes.size


def paint(picture: np.ndarray, classes: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Colours (K, 3) over the picture in grey, with white lines between classes."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None]
    painted = (STRENGTH * colours[classes] + (1 - STRENGTH) * grey).round().astype(np.uint8)
    border = np.zeros(classes.shape, bool)
    border[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    border[1:] |= classes[1:] != classes[:-1]
    painted[border] = WHITE
    return painted


def name_regions(picture: np.ndarray, classes: np.ndarray, names: Sequence[str], *, size: int) -> np.ndarray:
    """A copy with the name of a class in each of its regions that has room for it, in letters of ``size`` px.

    So a map can be read without telling its colours apart.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    font = lettering.font(size, text="".join(names))
    for k in np.unique(classes):
        width = font.getlength(names[k]) + 2 * STROKE
        _, parts, stats, _ = cv2.connectedComponentsWithStats((classes == k).astype(np.uint8), connectivity=4)
        for part, (x, y, w, h, _) in enumerate(stats[1:], start=1):
            place = _room(parts[y : y + h, x : x + w] == part, width=width, height=1.2 * size + 2 * STROKE)
            if place is not None:
                at = (x + place[0], y + place[1])
                draw.text(
                    at, names[k], fill=WHITE, font=font, anchor="mm", stroke_width=STROKE, stroke_fill=BLACK
                )
    return np.asarray(image)


def _room(inside: np.ndarray, *, width: float, height: float) -> tuple[int, int] | None:
    """Centre of a text ``width`` x ``height`` that lies in ``inside`` as far from its border as it can, or None."""
    # Erosion by the text's rectangle leaves the centres at which it fits.
    kernel = np.ones((max(1, round(height)), max(1, round(width))), np.uint8)
    if any(room < side for room, side in zip(inside.shape, kernel.shape, strict=True)):
        return None
    padded = np.pad(inside.astype(np.uint8), 1)
    fits = cv2.erode(padded, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)[1:-1, 1:-1]
    if not fits.any():
        return None
    depth = np.where(fits, cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1], -1)
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)
