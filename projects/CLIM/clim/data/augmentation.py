"""Augmentations of detection pictures in training, by the config."""

from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T


def training_augmentations(cfg) -> list[T.Augmentation]:
    """Detectron2's resizing and flip; with INPUT.LSJ.SIZE large-scale jittering in the place of the resizing.

    Large-scale jittering (arXiv 2012.07177): scale to fit a square of a random part of SIZE, cut out at most
    SIZE x SIZE. The model pads to the square, so that training and test do it alike.
    """
    standard = utils.build_augmentation(cfg, is_train=True)
    size, (smallest, largest) = cfg.INPUT.LSJ.SIZE, cfg.INPUT.LSJ.SCALE
    if not size:
        return standard
    return [T.ResizeScale(smallest, largest, size, size), T.FixedSizeCrop((size, size), pad=False), *standard[1:]]
