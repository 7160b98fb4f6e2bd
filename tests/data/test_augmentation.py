"""Large-scale jittering: what it does to pictures and boxes, and that it is off by default."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from clim.data.augmentation import training_augmentations
from clim.data.detection_mapper import DetectionMapper

SIZE = 64


@pytest.fixture
def lsj(load_cfg):
    """``lsj("KEY", value, …)``: the shipped config at 64 px."""
    return lambda *overrides: load_cfg("FVLM_ViTB16_CLIP_COCO.yaml", "INPUT.LSJ.SIZE", SIZE, *overrides)


def augmented(cfg, picture, seed):
    np.random.seed(seed)
    given = T.AugInput(picture)
    transforms = T.AugmentationList(training_augmentations(cfg))(given)
    return given.image, transforms


def test_off_is_detectron2s_own(load_cfg):
    resize, flip = training_augmentations(load_cfg("Detic_C4.yaml"))
    assert isinstance(resize, T.ResizeShortestEdge) and isinstance(flip, T.RandomFlip)


def test_the_shipped_numbers(load_cfg):
    resize, crop, flip = training_augmentations(load_cfg("FVLM_ViTB16_CLIM_COCO.yaml"))
    assert (resize.min_scale, resize.max_scale) == (0.1, 2.0)
    assert (resize.target_height, resize.target_width) == crop.crop_size == (640, 640)
    assert isinstance(flip, T.RandomFlip) and flip.prob == 0.5


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0])
def test_a_smaller_scale_fits_into_its_part_of_the_square(lsj, scale):
    cfg = lsj("INPUT.LSJ.SCALE", [scale, scale], "INPUT.RANDOM_FLIP", "none")
    image, _ = augmented(cfg, np.zeros((100, 200, 3), np.uint8), seed=0)
    assert image.shape[:2] == (round(SIZE * scale / 2), round(SIZE * scale))  # unpadded, ratio kept


def test_a_larger_scale_is_cut_to_the_square(lsj):
    cfg = lsj("INPUT.LSJ.SCALE", [2.0, 2.0])
    ramp = np.tile(np.linspace(0, 255, 100, dtype=np.uint8)[:, None, None], (1, 100, 3))
    means = set()
    for seed in range(5):
        image, _ = augmented(cfg, ramp, seed)
        assert image.shape[:2] == (SIZE, SIZE)
        means.add(round(float(image.mean())))
    assert len(means) > 1  # another part of the picture each time


def test_the_flip_can_be_switched_off(lsj):
    assert len(training_augmentations(lsj("INPUT.RANDOM_FLIP", "none"))) == 2


def test_boxes_follow_the_picture(lsj, make_photos):
    """A bright rectangle stays under its box, whatever scale, cut and flip; what is cut off has no box."""
    (record,) = make_photos([(80, 120)])
    picture = np.zeros((80, 120, 3), np.uint8)
    picture[20:60, 30:90] = 255
    box = {"bbox": [30, 20, 90, 60], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    mapper = DetectionMapper.from_cfg(
        lsj("INPUT.LSJ.SCALE", [0.5, 2.0]), [record | {"annotations": [box]}], seed=3, stream=0
    )
    decoded = type("Decoded", (), {"image": picture, "height": 80, "width": 120})()
    mapper.read = lambda *_: (mapper.records[0], decoded)
    kept = 0
    for epoch in range(12):
        sample = mapper(index=0, epoch=epoch)
        image, boxes = sample["image"], sample["instances"].gt_boxes.tensor
        assert max(image.shape[1:]) <= SIZE
        bright = (image[0] > 127).nonzero()
        if len(boxes) == 0:
            continue
        kept += 1
        (y0, x0), (y1, x1) = bright.amin(0).tolist(), (bright.amax(0) + 1).tolist()
        assert torch.allclose(boxes[0], torch.tensor([x0, y0, x1, y1]).float(), atol=1.01)
    assert kept >= 6
