"""Response maps as pictures: pure functions, array in, array out (CLIM, Figs. 3 and 4).

Pictures are uint8 (H, W, 3) RGB, boxes x0, y0, x1, y1 in their pixels. Colours are viridis, which people with any
colour vision can order, and which has no red: outlines do.
"""

import cv2
import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from .draw import BLACK, WHITE

RED = (214, 39, 40)
STRENGTH = 0.7  # of the colours over the picture


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(Q, h, w) cells that tile a picture → (Q, H, W) at ``size``: bilinear, a cell's value at its centre."""
    return F.interpolate(maps[None].float(), size=size, mode="bilinear", align_corners=False)[0]


def min_max(response: np.ndarray) -> np.ndarray:
    """(H, W) from its own lowest and highest value to 0 and 1; a constant map gives zeros."""
    low, high = float(response.min()), float(response.max())
    if high <= low:
        return np.zeros(response.shape, np.float32)
    return ((response - low) / (high - low)).astype(np.float32)


def heat(unit: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] → colours."""
    levels = (np.clip(unit, 0, 1) * 255).round().astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def overlay(picture: np.ndarray, unit: np.ndarray, *, strength: float = STRENGTH) -> np.ndarray:
    """Colours of ``unit`` (H, W) in [0, 1] over the picture in grey, so that no colour comes from the picture."""
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return (strength * heat(unit) + (1 - strength) * grey).round().astype(np.uint8)


def outline(picture: np.ndarray, box, *, colour=RED, width: int = 3, rim: int = 1) -> np.ndarray:
    """A copy with the box drawn inwards between two thin white rims, which keep it visible on anything."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    x0, y0, x1, y1 = (round(float(v)) for v in box)
    corners = [max(x0, 0), max(y0, 0), min(x1, image.width) - 1, min(y1, image.height) - 1]
    corners[2:] = [max(low, high) for low, high in zip(corners[:2], corners[2:], strict=True)]
    draw.rectangle(corners, outline=WHITE, width=width + 2 * rim)
    inner = [corners[0] + rim, corners[1] + rim, corners[2] - rim, corners[3] - rim]
    if inner[0] <= inner[2] and inner[1] <= inner[3]:
        draw.rectangle(inner, outline=colour, width=width)
    return np.asarray(image)


def peak(cells: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """x, y in a picture of ``size`` (height, width): the centre of the highest of the (h, w) cells that tile it."""
    row, column = np.unravel_index(int(cells.argmax()), cells.shape)
    y, x = ((i + 0.5) / n * side for i, n, side in zip((row, column), cells.shape, size, strict=True))
    return int(x), int(y)


def mark_peak(picture: np.ndarray, point: tuple[int, int]) -> np.ndarray:
    """A copy with a ring around ``point``, white with a dark rim."""
    drawn = picture.copy()
    radius = max(4, round(max(picture.shape[:2]) / 45))
    for colour, width in ((BLACK, 4), (WHITE, 2)):
        cv2.circle(drawn, point, radius, colour, width, cv2.LINE_AA)
    return drawn


def colour_bar(width: int, height: int) -> np.ndarray:
    """From the lowest response on the left to the highest on the right."""
    return heat(np.repeat(np.linspace(0, 1, width)[None], height, axis=0))
