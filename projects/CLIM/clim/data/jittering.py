"""Large-scale jittering (arXiv 2012.07177): resize an image at random and cut out at most a square, without padding.

"efficientdet" is official Detic's EfficientDetResizeCrop (detic §3.1), "mmdet" the CLIM release's RandomResize and
RandomCrop (detic §3.2). Three numbers are drawn: the factor of the square's side, then the parts of the free height
and of the free width that lie before the cut, in [0, 1).
"""

from typing import NamedTuple

import cv2
import numpy as np
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation

from clim.errors import UserError

from .images import ResizeScale, ResizeShortestEdge

Draws = tuple[float, float, float]


class Jitter(NamedTuple):
    """A point p of the image goes to p * scale - (x0, y0). Sizes are (height, width) in px."""

    size: tuple[int, int]  # of the resized image, at least 1
    crop: tuple[int, int, int, int]  # x0, y0, x1, y1, cut out of the resized image
    scale: tuple[float, float]  # of x and y
    vanished: bool  # whether a side would have 0 px and has 1 instead


def efficientdet(height: int, width: int, *, side: int, draws: Draws) -> Jitter:
    """Fit a square of draws[0] * side px, rounded down; coordinates take the scale before rounding."""
    scale = min(draws[0] * side / height, draws[0] * side / width)
    size = int(height * scale), int(width * scale)
    return _cut(size, [int(max(0, size[i] - side) * draws[i + 1]) for i in (0, 1)], side, (scale, scale))


def mmdet(height: int, width: int, *, side: int, draws: Draws) -> Jitter:
    """Fit a square of int(draws[0] * side) px, rounded to nearest; coordinates take the rounded size."""
    scale = int(draws[0] * side) / max(height, width)
    size = int(height * scale + 0.5), int(width * scale + 0.5)
    corner = [int((max(0, size[i] - side) + 1) * draws[i + 1]) for i in (0, 1)]
    return _cut(size, corner, side, (max(size[1], 1) / width, max(size[0], 1) / height))


def _cut(size: tuple[int, int], corner: list[int], side: int, scale: tuple[float, float]) -> Jitter:
    (y0, x0), (height, width) = corner, (max(length, 1) for length in size)
    return Jitter((height, width), (x0, y0, min(width, x0 + side), min(height, y0 + side)), scale, min(size) < 1)


STYLES = {"efficientdet": efficientdet, "mmdet": mmdet}


class JitterTransform(T.Transform):
    """Applies a :class:`Jitter`: PIL resizes for "efficientdet", cv2 for "mmdet"; masks take the nearest pixel."""

    def __init__(self, jitter: Jitter, style: str):
        super().__init__()
        self.jitter, self.style = jitter, style

    def apply_image(self, img: np.ndarray, *, nearest: bool = False) -> np.ndarray:
        (height, width), (x0, y0, x1, y1) = self.jitter.size, self.jitter.crop
        if self.style == "mmdet":
            img = cv2.resize(img, (width, height), interpolation=cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR)
        else:
            pil = T.ResizeTransform(*img.shape[:2], height, width)
            img = pil.apply_segmentation(img) if nearest else pil.apply_image(img)
        return img[y0:y1, x0:x1]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, nearest=True)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) x and y; they may lie outside of the crop."""
        return coords * self.jitter.scale - self.jitter.crop[:2]


class Jittering(T.Augmentation):
    """Jittering in ``style`` to a square of ``side`` px; ``scale`` bounds the factor. UserError for another style."""

    def __init__(self, style: str, *, side: int, scale: tuple[float, float]):
        super().__init__()
        if style not in STYLES or side < 1:
            remedy = f"choose one of {', '.join(STYLES)}, and INPUT.LSJ.SIZE or INPUT.CAPTION.JITTER_SIZE above 0"
            raise UserError(f'INPUT.LSJ.STYLE is "{style}", and the side to jitter to is {side} px: {remedy}.')
        self.style, self.side, self.scale = style, side, tuple(scale)

    def draw(self, rng=np.random) -> Draws:
        """From a generator, or from numpy's global state."""
        return rng.uniform(*self.scale), rng.uniform(), rng.uniform()

    def transform(self, height: int, width: int, draws: Draws) -> JitterTransform:
        return JitterTransform(STYLES[self.style](height, width, side=self.side, draws=draws), self.style)

    def get_transform(self, image: np.ndarray) -> JitterTransform:
        return self.transform(*image.shape[:2], self.draw())


def training_augmentations(cfg) -> list[T.Augmentation]:
    """Detectron2's resizing and flip; with INPUT.LSJ.SIZE, large-scale jittering and flip."""
    edges = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    standard = [ResizeShortestEdge(*edges), *build_augmentation(cfg, is_train=True)[1:]]
    size, (smallest, largest) = cfg.INPUT.LSJ.SIZE, cfg.INPUT.LSJ.SCALE
    if not size:
        return standard
    if cfg.INPUT.LSJ.STYLE != "detectron2":
        return [Jittering(cfg.INPUT.LSJ.STYLE, side=size, scale=cfg.INPUT.LSJ.SCALE), *standard[1:]]
    return [ResizeScale(smallest, largest, size, size), T.FixedSizeCrop((size, size), pad=False), *standard[1:]]
