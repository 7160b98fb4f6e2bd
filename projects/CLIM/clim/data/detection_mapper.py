"""Records with boxes → what Detectron2's detectors train on."""

import copy
import random
from contextlib import contextmanager

import numpy as np
import torch
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from .augmentation import training_augmentations
from .record_mapper import RecordMapper


class DetectionMapper(RecordMapper):
    """Detection records → Detectron2's {image, height, width, image_id, instances}, training only.

    Detectron2's own augmentations, on pictures that may be unreadable.
    """

    annotated = True

    def __init__(self, records, *, augmentations, seed, stream, image_format="BGR"):
        super().__init__(records, seed=seed, stream=stream, image_format=image_format)
        self.augmentations = T.AugmentationList(augmentations)

    @classmethod
    def from_cfg(cls, cfg, records, *, seed, stream):
        return cls(
            records, augmentations=training_augmentations(cfg), seed=seed, stream=stream,
            image_format=cfg.INPUT.FORMAT,
        )  # fmt: skip

    def map(self, index, rng, skipped):
        record, decoded = self.read(index, rng, skipped, self.any_record(rng))
        record = copy.deepcopy(record)
        aug_input = T.AugInput(decoded.image)
        with _numpy_seeded(int(rng.integers(2**31))):
            transforms = self.augmentations(aug_input)
        size = aug_input.image.shape[:2]
        annotations = [
            utils.transform_instance_annotations(a, transforms, size)
            for a in record.pop("annotations", [])
            if a.get("iscrowd", 0) == 0
        ]
        return {
            "image": torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))),
            "height": decoded.height,
            "width": decoded.width,
            "image_id": record["image_id"],
            "file_name": record["file_name"],
            "instances": utils.filter_empty_instances(utils.annotations_to_instances(annotations, size)),
        }


@contextmanager
def _numpy_seeded(seed: int):
    """Detectron2's augmentations read the global NumPy state; lend them one of the sample's own."""
    states = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
