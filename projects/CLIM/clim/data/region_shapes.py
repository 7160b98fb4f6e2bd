"""What stands for a region of a picture: its box, its mask and its crop, as the CLIM release makes them.

H, W: the original picture, S: side of a square, R: regions.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from .letterbox import letterbox, letterbox_size


def segment_ids(image: np.ndarray) -> Tensor:
    """int64 (H, W) of a panoptic PNG, RGB (H, W, 3): red + 256 green + 65536 blue (COCO's format)."""
    red, green, blue = image.astype(np.int64).transpose(2, 0, 1)
    return torch.from_numpy(red + 256 * green + 65536 * blue)


def bitmask(segmentation: list | Mapping, height: int, width: int) -> Tensor:
    """bool (H, W) of COCO's polygons, or of its run lengths, packed or not."""
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    return torch.from_numpy(coco_mask.decode(segmentation).astype(bool))


def extent(mask: Tensor) -> Tensor | None:
    """(4,) double x0, y0, x1, y1 of a bool mask (H, W): indices of its first and last pixels; None: empty.

    As in the release: a box this way is one pixel narrower than the mask, and a single row has no area.
    """
    rows, columns = (mask.any(dim=axis).nonzero().flatten() for axis in (1, 0))
    if not len(rows):
        return None
    return torch.stack([columns[0], rows[0], columns[-1], rows[-1]]).double()


def letterbox_masks(masks: Tensor, size: int) -> Tensor:
    """bool (R, H, W) → (R, S, S), R > 0: where the bicubic value, unsmoothed, is positive (CLIM release).

    That looks at 4 x 4 pixels a cell, so a small or thin region can vanish; it then gets the one cell that
    holds most of it, where the release would average over nothing. An empty mask stays empty.
    """
    full = masks[:, None].float()
    height, width = letterbox_size(*masks.shape[1:], size)
    inside = F.interpolate(full, (height, width), mode="bicubic", align_corners=False)[:, 0] > 0
    lost = masks.flatten(1).any(dim=1) & ~inside.flatten(1).any(dim=1)
    for i in lost.nonzero().flatten().tolist():
        inside[i].view(-1)[F.adaptive_avg_pool2d(full[i], (height, width)).argmax()] = True
    return F.pad(inside, (0, size - width, 0, size - height))


def crop_letterboxed(image: np.ndarray, box: np.ndarray, size: int, *, enlarged: float = 1.0) -> np.ndarray:
    """uint8 (H, W, 3) → (S, S, 3): what ``box`` shows, its longest side S, black on both sides of it.

    Args:
        box: (x0, y0, x1, y1) in pixels; its sides grow by ``enlarged`` about its centre, end at the picture's
            and are rounded to whole pixels, at least one.
    """
    height, width = image.shape[:2]
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * enlarged
    low = np.rint(np.clip(centre - half, 0, [width - 1, height - 1])).astype(int)
    high = np.maximum(np.rint(np.minimum(centre + half, [width, height])).astype(int), low + 1)
    square, _ = letterbox(np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]]), size)
    height, width = letterbox_size(high[1] - low[1], high[0] - low[0], size)
    return np.roll(square, ((size - height) // 2, (size - width) // 2), axis=(0, 1))
