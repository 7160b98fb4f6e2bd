"""Geometry of mosaics: pure functions that put n x n images on one canvas, for every n.

T = n * n tiles in row-major order; boxes are (T, 4) x0, y0, x1, y1 in canvas pixels. Sources: CLIM paper §3.2 (crops
fill the cells) and CLIM release (images keep their ratio, are padded and packed inwards).
"""

from collections.abc import Sequence

import numpy as np
import torch

COPY_SIDE = 400  # px, longest side of the small copies of INPUT.COPIES


def fit_size(height: int, width: int, *, short: int, long: int) -> tuple[int, int]:
    """Size of the same ratio: the short side is ``short``, or less if the long side would exceed ``long``."""
    scale = min(short / min(height, width), long / max(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def fit_cell(height: int, width: int, *, cell: tuple[int, int]) -> tuple[int, int]:
    """Largest size of the same ratio that fits into ``cell`` (height, width)."""
    scale = min(cell[0] / height, cell[1] / width)
    return (min(max(int(height * scale + 0.5), 1), cell[0]), min(max(int(width * scale + 0.5), 1), cell[1]))


def grid_cells(n: int, *, size: tuple[int, int]) -> np.ndarray:
    """Cells (T, 4) int64 of the n x n grid on a canvas of ``size`` (height, width), without gap or overlap."""
    rows, cols = (np.rint(np.arange(n + 1) * side / n).astype(np.int64) for side in size)
    y, x = np.divmod(np.arange(n * n), n)
    return np.stack([cols[x], rows[y], cols[x + 1], rows[y + 1]], axis=1)


def inward_anchors(n: int, rng: np.random.Generator) -> np.ndarray:
    """Position of each image in its cell, (T, 2) x and y: 0 = left or top edge, 1 = right or bottom edge.

    Two neighbouring columns face each other: the left one aligns right, the right one left. The middle column of an
    odd n is random. Rows do the same up to n = 3; from n = 4 each row moves up or down at random (CLIM release).
    """
    free = rng.random((n, n, 2))
    half = (np.arange(n // 2) + 1) % 2  # 1, 0, 1, … from the left edge
    side = np.concatenate([half, np.full(n % 2, np.nan), 1 - half[::-1]])  # nan: free; the right half mirrors
    x = np.where(np.isnan(side)[None, :], free[..., 0], np.nan_to_num(side)[None, :])
    rows = side if n < 4 else rng.integers(0, 2, n).astype(float)
    y = np.where(np.isnan(rows)[:, None], free[..., 1], np.nan_to_num(rows)[:, None])
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def place(sizes: np.ndarray, cells: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Boxes (T, 4) int64 of images with ``sizes`` (T, 2: height, width) in ``cells`` (T, 4) at ``anchors`` (T, 2)."""
    extent = sizes[:, ::-1]
    room = cells[:, 2:] - cells[:, :2] - extent
    assert (room >= 0).all(), f"an image is larger than its cell by {-room.min()} px"
    corner = cells[:, :2] + np.rint(anchors * room).astype(np.int64)
    return np.concatenate([corner, corner + extent], axis=1)


def compose(images: Sequence, boxes, *, size: tuple[int, int], pad_value: float = 114):
    """Paste T arrays or tensors (C, h, w) into ``boxes`` (T, 4) of their sizes on one (C, H, W) of ``size`` (H, W)."""
    first, shape = images[0], (images[0].shape[0], *size)
    canvas = first.new_full(shape, pad_value) if torch.is_tensor(first) else np.full(shape, pad_value, first.dtype)
    for image, (x0, y0, x1, y1) in zip(images, np.asarray(boxes).tolist(), strict=True):
        canvas[:, y0:y1, x0:x1] = image
    return canvas


def resized_crop(
    height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random crop x0, y0, x1, y1 by the rule of torchvision's RandomResizedCrop.

    If no drawn crop fits, it is the largest central crop whose width / height lies within ``ratio``.
    """
    for _ in range(10):  # as often as torchvision
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
    """A lower bound of the shortest side of a :func:`resized_crop`, as a part of the image's shorter side."""
    return float(np.sqrt(scale[0] / max(ratio[1], 1 / ratio[0])))
