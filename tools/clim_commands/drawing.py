"""Letters and colours of drawings, and the order of channels; images are uint8 (H, W, 3)."""

import colorsys
from functools import lru_cache

import numpy as np
from PIL import ImageFont

from clim.results import FONT

GOLDEN_ANGLE = 0.381966  # of a turn: classes with neighbouring indices get very different hues
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans of ``size`` px: matplotlib contains it, and it has most alphabets."""
    return ImageFont.truetype(FONT, size)


def ordered(image: np.ndarray, input_format: str) -> np.ndarray:
    """RGB (H, W, 3) → the channel order of INPUT.FORMAT ("RGB" or "BGR"), or back; contiguous."""
    return np.ascontiguousarray(image if input_format == "RGB" else image[..., ::-1])


def class_colours(count: int) -> np.ndarray:
    """(count, 3) uint8: one strong colour for each class."""
    hues = (np.arange(count) * GOLDEN_ANGLE) % 1.0
    rows = [colorsys.hls_to_rgb(hue, (0.42, 0.55, 0.66)[i % 3], 0.95) for i, hue in enumerate(hues)]
    return (np.array(rows).reshape(-1, 3) * 255).round().astype(np.uint8)
