"""Geometry of mosaics: n x n images on one canvas, one formula for every n. Pure functions.

Shape legend: T = n * n tiles in row-major order; boxes are (T, 4) x0, y0, x1, y1 in canvas pixels.
Sources: CLIM paper §3.2 (squares filled by crops), CLIM release (keep ratio, pad, pack inwards).
"""

from collections.abc import Sequence

import numpy as np
import torch

TRIES = 10  # to find a crop that fits, as torchvision's RandomResizedCrop


def fit_size(height: int, width: int, *, short: int, long: int) -> tuple[int, int]:
    """Size that keeps the ratio, short side ``short`` unless the long one would pass ``long`` (Detectron2's rule)."""
    scale = min(short / min(height, width), long / max(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def fit_cell(height: int, width: int, *, cell: tuple[int, int]) -> tuple[int, int]:
    """Largest size of the same ratio that lies inside ``cell`` (height, width)."""
    scale = min(cell[0] / height, cell[1] / width)
    return (min(max(int(height * scale + 0.5), 1), cell[0]), min(max(int(width * scale + 0.5), 1), cell[1]))


def grid_cells(n: int, *, size: tuple[int, int]) -> np.ndarray:
    """Cells of the n x n grid on a canvas ``size`` (height, width): (T, 4) int64, without gap or overlap."""
    rows, cols = (np.rint(np.arange(n + 1) * side / n).astype(np.int64) for side in size)
    y, x = np.divmod(np.arange(n * n), n)
    return np.stack([cols[x], rows[y], cols[x + 1], rows[y + 1]], axis=1)


def inward_anchors(n: int, rng: np.random.Generator) -> np.ndarray:
    """Where an image sits in its cell, (T, 2) x and y: 0 = left or top edge, 1 = right or bottom edge.

    Columns come in pairs that face each other (right-, left-aligned); the middle of an odd number is free.
    Rows do the same up to n = 3; from n = 4 each row is pushed up or down at random (CLIM release).
    """
    free = rng.random((n, n, 2))
    half = (np.arange(n // 2) + 1) % 2  # 1, 0, 1, … from the left edge
    side = np.concatenate([half, np.full(n % 2, np.nan), 1 - half[::-1]])  # nan: free; the right half mirrors
    x = np.where(np.isnan(side)[None, :], free[..., 0], np.nan_to_num(side)[None, :])
    rows = side if n < 4 else rng.integers(0, 2, n).astype(float)
    y = np.where(np.isnan(rows)[:, None], free[..., 1], np.nan_to_num(rows)[:, None])
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def place(sizes: np.ndarray, cells: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Boxes (T, 4) int64 of images of ``sizes`` (T, 2: height, width) laid into ``cells`` at ``anchors``."""
    extent = sizes[:, ::-1]
    room = cells[:, 2:] - cells[:, :2] - extent
    assert (room >= 0).all(), f"an image is larger than its cell by {-room.min()} px"
    corner = cells[:, :2] + np.rint(anchors * room).astype(np.int64)
    return np.concatenate([corner, corner + extent], axis=1)


def compose(images: Sequence, boxes, *, size: tuple[int, int], pad_value: float = 114):
    """Paste ``images`` (each (C, h, w)) at ``boxes`` on one canvas (C, H, W) of ``size`` (H, W).

    Arrays give an array and tensors a tensor on their device; every image must have its box's size.
    """
    first, shape = images[0], (images[0].shape[0], *size)
    if isinstance(first, torch.Tensor):
        canvas = first.new_full(shape, pad_value)
    else:
        canvas = np.full(shape, pad_value, dtype=first.dtype)
    for image, (x0, y0, x1, y1) in zip(images, np.asarray(boxes).tolist(), strict=True):
        canvas[:, y0:y1, x0:x1] = image
    return canvas


def resized_crop(
    height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A crop x0, y0, x1, y1 by the rule of torchvision's RandomResizedCrop.

    Where no drawn shape fits, the largest central crop whose width / height lies within ``ratio``.
    """
    for _ in range(TRIES):
        area = height * width * rng.uniform(*scale)
        shape = np.exp(rng.uniform(*np.log(ratio)))
        w, h = round(np.sqrt(area * shape)), round(np.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            x0, y0 = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return x0, y0, x0 + w, y0 + h
    w = min(width, max(round(height * ratio[1]), 1))
    h = min(height, max(round(width / ratio[0]), 1))
    x0, y0 = (width - w) // 2, (height - h) // 2
    return x0, y0, x0 + w, y0 + h


def shortest_crop(*, scale: tuple[float, float], ratio: tuple[float, float]) -> float:
    """The shortest side that :func:`resized_crop` gives, as a part of the shorter side of the image, or less."""
    return float(np.sqrt(scale[0] / max(ratio[1], 1 / ratio[0])))
