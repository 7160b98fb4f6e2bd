"""Records with boxes → training inputs: equal to Detectron2's mapper, and what happens to broken pictures."""

import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from clim.data.detection_mapper import DetectionMapper

SIZES = [(60, 90), (90, 60), (64, 64), (40, 120)]


def annotated(records):
    """The same pictures with boxes: ordinary, reaching outside, degenerate, and a crowd."""
    for r in records:
        h, w = r["height"], r["width"]
        boxes = [[1, 2, w / 2, h / 3], [w / 4, h / 4, w, h], [5, 5, 0, 4], [0, 0, w / 3, h / 2]]
        r["annotations"] = [
            {"bbox": b, "bbox_mode": BoxMode.XYWH_ABS, "category_id": i, "iscrowd": int(i == 3)}
            for i, b in enumerate(boxes)
        ]
    return records


def detections(records, augmentations):
    return DetectionMapper(records, augmentations=augmentations, seed=1, stream=0)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_detections_equal_detectron2s_mapper(make_photos, flip):
    records = annotated(make_photos(SIZES))
    augmentations = [T.ResizeShortestEdge(80, 130), T.RandomFlip(prob=flip)]
    theirs = DatasetMapper(True, augmentations=augmentations, image_format="BGR")
    for index, record in enumerate(records):
        ours, expected = detections(records, augmentations)(index=index, epoch=0), theirs(record)
        assert torch.equal(ours["image"], expected["image"])
        assert torch.equal(ours["instances"].gt_boxes.tensor, expected["instances"].gt_boxes.tensor)
        assert torch.equal(ours["instances"].gt_classes, expected["instances"].gt_classes)
        assert ours["instances"].gt_classes.tolist() == [0, 1]  # neither the crowd nor the empty box
        assert ours["instances"].image_size == expected["instances"].image_size
        keys = ("height", "width", "image_id", "file_name")
        assert [ours[k] for k in keys] == [record[k] for k in keys] == [expected[k] for k in keys]


def test_random_flips_differ_by_sample_and_repeat_exactly(make_photos):
    records = annotated(make_photos([(40, 60)] * 12))
    augmentations = [T.ResizeShortestEdge([30, 40, 50], 130, "choice"), T.RandomFlip()]
    samples = [detections(records, augmentations)(index=i, epoch=0) for i in range(12)]
    again = [detections(records, augmentations)(index=i, epoch=0) for i in reversed(range(12))][::-1]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(samples, again, strict=True))
    assert {s["image"].shape[1] for s in samples} == {30, 40, 50}
    flipped = {bool(s["instances"].gt_boxes.tensor[0, 0] > s["image"].shape[2] / 4) for s in samples}
    assert flipped == {True, False}


def test_a_detection_leaves_records_and_random_states_alone(make_photos):
    records = annotated(make_photos([(40, 60)]))
    boxes = [list(a["bbox"]) for a in records[0]["annotations"]]
    np.random.seed(3)
    random.seed(3)
    expected = np.random.random(), random.random()
    np.random.seed(3)
    random.seed(3)
    detections(records, [T.RandomFlip()])(index=0, epoch=0)
    assert (np.random.random(), random.random()) == expected
    assert [a["bbox"] for a in records[0]["annotations"]] == boxes


@pytest.mark.parametrize("annotations", [{}, {"annotations": []}])
def test_a_picture_without_boxes(make_photos, annotations):
    (photo,) = make_photos([(60, 90)])
    sample = detections([photo | annotations], [T.ResizeShortestEdge(40, 90)])(index=0, epoch=0)
    assert len(sample["instances"]) == 0
    assert sample["instances"].gt_boxes.tensor.shape == (0, 4)
    assert sample["instances"].gt_classes.dtype == torch.int64


def test_an_unreadable_detection_is_replaced_with_its_boxes(make_photos):
    records = annotated(make_photos(SIZES))
    for record in records[:3]:
        record["file_name"] += ".gone"
    sample = detections(records, [])(index=1, epoch=0)
    assert sample["image_id"] == records[3]["image_id"] and sample["image"].shape[1:] == SIZES[3]
    assert set(sample["skipped"]) <= {(records[i]["file_name"], "missing") for i in range(3)}
    assert sample["skipped"][0] == (records[1]["file_name"], "missing")


def test_a_picture_of_another_size_than_its_boxes_were_drawn_on_is_replaced(make_photos):
    records = annotated(make_photos([(40, 60), (50, 50)]))
    records[0] |= {"height": 400, "width": 600}
    sample = detections(records, [])(index=0, epoch=0)
    assert sample["image_id"] == records[1]["image_id"]
    assert set(sample["skipped"]) == {(records[0]["file_name"], "60x40 px, but annotated as 600x400")}
