"""One way to bring a picture of any shape onto a square, shared by training on boxes and by classifying them."""

import numpy as np
from PIL import Image


def letterbox(image: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """The longest side becomes ``size``, black fills the square on the right and at the bottom (CLIM release).

    Args:
        image: uint8 (H, W, 3), channels in any order.
        size: px, side of the square.

    Returns:
        uint8 (size, size, 3), and the scale: boxes of ``image`` times it are boxes on the square. Resized by
        PIL's bicubic filter, which averages where it shrinks, as torchvision resizes PIL pictures.
    """
    height, width = image.shape[:2]
    new_height, new_width = letterbox_size(height, width, size)
    if (new_height, new_width) != (height, width):
        resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC)
        image = np.asarray(resized)
    square = np.zeros((size, size, 3), dtype=np.uint8)
    square[:new_height, :new_width] = image
    return square, size / max(height, width)


def letterbox_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) in px that a picture gets on its square, at least 1."""
    scale = size / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)
