"""Maps over images: responses (CLIM, Figs. 3 and 4) and a class for every pixel (Fig. 5), as pure functions.

Images are uint8 (H, W, 3) RGB, boxes x0, y0, x1, y1 in their pixels, class maps int64 (H, W) below K, the number of
classes. Responses are viridis, which people of any colour vision can order. It has no red; outlines are red.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from .drawing import BLACK, WHITE, font

RED = (214, 39, 40)
STRENGTH = 0.7  # of the colours of responses over the image
CLASS_STRENGTH = 0.6
STROKE = 2  # px around letters


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(Q, h, w) locations of an image → (Q, H, W) of ``size``, bilinear between the locations' centres."""
    return F.interpolate(maps[None].float(), size=size, mode="bilinear", align_corners=False)[0]


def min_max(response: np.ndarray) -> np.ndarray:
    """(H, W), scaled so that its lowest value is 0 and its highest 1; zeros for a constant map."""
    low, high = float(response.min()), float(response.max())
    if high <= low:
        return np.zeros(response.shape, np.float32)
    return ((response - low) / (high - low)).astype(np.float32)


def heat(unit: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] → colours."""
    levels = (np.clip(unit, 0, 1) * 255).round().astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def overlay(image: np.ndarray, unit: np.ndarray, *, strength: float = STRENGTH) -> np.ndarray:
    """Colours of ``unit`` (H, W) in [0, 1] over the grey image."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return (strength * heat(unit) + (1 - strength) * grey).round().astype(np.uint8)


def outline(image: np.ndarray, box, *, colour=RED, width: int = 3, rim: int = 1) -> np.ndarray:
    """A copy with the box, drawn inwards between two thin white rims."""
    page = Image.fromarray(image)
    draw = ImageDraw.Draw(page)
    x0, y0, x1, y1 = (round(float(v)) for v in box)
    corners = [max(x0, 0), max(y0, 0), min(x1, page.width) - 1, min(y1, page.height) - 1]
    corners[2:] = [max(low, high) for low, high in zip(corners[:2], corners[2:], strict=True)]
    draw.rectangle(corners, outline=WHITE, width=width + 2 * rim)
    inner = [corners[0] + rim, corners[1] + rim, corners[2] - rim, corners[3] - rim]
    if inner[0] <= inner[2] and inner[1] <= inner[3]:
        draw.rectangle(inner, outline=colour, width=width)
    return np.asarray(page)


def peak(response: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """x, y of the centre of the highest of (h, w) locations, in an image of ``size`` (height, width)."""
    highest = np.unravel_index(int(response.argmax()), response.shape)
    y, x = ((i + 0.5) / n * side for i, n, side in zip(highest, response.shape, size, strict=True))
    return int(x), int(y)


def mark_peak(image: np.ndarray, point: tuple[int, int]) -> np.ndarray:
    """A copy with a ring around ``point``, white with a dark rim."""
    drawn = image.copy()
    radius = max(4, round(max(image.shape[:2]) / 45))
    for colour, width in ((BLACK, 4), (WHITE, 2)):
        cv2.circle(drawn, point, radius, colour, width, cv2.LINE_AA)
    return drawn


def colour_bar(width: int, height: int) -> np.ndarray:
    """From the lowest response on the left to the highest on the right."""
    return heat(np.repeat(np.linspace(0, 1, width)[None], height, axis=0))


def class_map(scores: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The best of K classes for every pixel: scores (K, h, w), bilinear to ``size``, then the argmax."""
    return upsample(scores, size).argmax(dim=0).numpy()


def shares(classes: np.ndarray, count: int) -> np.ndarray:
    """(count,) shares of the pixels, by class."""
    return np.bincount(classes.ravel(), minlength=count) / classes.size


def paint(image: np.ndarray, classes: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Colours (K, 3) over the image in grey, with white lines between classes."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    painted = (CLASS_STRENGTH * colours[classes] + (1 - CLASS_STRENGTH) * grey).round().astype(np.uint8)
    border = np.zeros(classes.shape, bool)
    border[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    border[1:] |= classes[1:] != classes[:-1]
    painted[border] = WHITE
    return painted


def name_regions(image: np.ndarray, classes: np.ndarray, names: Sequence[str], *, size: int) -> np.ndarray:
    """A copy with the class name in each area that has room for it, in letters of ``size`` px, for the colour-blind."""
    page = Image.fromarray(image)
    draw, letters = ImageDraw.Draw(page), font(size)
    for k in np.unique(classes):
        width = letters.getlength(names[k]) + 2 * STROKE
        _, parts, stats, _ = cv2.connectedComponentsWithStats((classes == k).astype(np.uint8), connectivity=4)
        for part, (x, y, w, h, _) in enumerate(stats[1:], start=1):
            place = _room(parts[y : y + h, x : x + w] == part, width=width, height=1.2 * size + 2 * STROKE)
            if place is not None:
                at = (x + place[0], y + place[1])
                draw.text(at, names[k], fill=WHITE, font=letters, anchor="mm", stroke_width=STROKE, stroke_fill=BLACK)
    return np.asarray(page)


def _room(inside: np.ndarray, *, width: float, height: float) -> tuple[int, int] | None:
    """The centre for a text ``width`` x ``height`` in ``inside``, as far from the border as possible, or None."""
    # Erosion by the text's rectangle leaves the centres where the text fits.
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
