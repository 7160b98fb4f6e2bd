"""Data sets of pseudo-labelled boxes, from jsons of any origin."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

import clim.data.builtin  # noqa: F401  registers the data sets
from clim.data.pseudo_sets import register_pseudo_labels
from clim.errors import UserError
from clim.files import write_json


def test_ids_become_contiguous_and_boxes_without_area_go(tmp_path):
    """A file by other hands: any ids in any order; an image whose boxes are all empty is left out."""
    boxes = [(100, 90, [1, 2, 3, 4]), (100, 7, [5, 5, 0, 9]), (101, 7, [1, 1, 9, 0]), (102, 7, [0, 0, 8, 9])]
    content = {
        "images": [{"id": i, "file_name": f"{i - 100}.png", "height": 1, "width": 1} for i in (102, 100, 101)],
        "annotations": [{"id": n, "image_id": i, "category_id": c, "bbox": b} for n, (i, c, b) in enumerate(boxes)],
        "categories": [{"id": 90, "name": "z"}, {"id": 7, "name": "a"}],
    }
    write_json(tmp_path / "labels.json", content)
    register_pseudo_labels("other_labels", str(tmp_path / "labels.json"), str(tmp_path))
    try:
        loaded = DatasetCatalog.get("other_labels")
        classes = MetadataCatalog.get("other_labels").thing_classes
    finally:
        DatasetCatalog.remove("other_labels")
        MetadataCatalog.remove("other_labels")
    assert [(r["image_id"], r["boxes"].tolist(), r["nouns"].tolist()) for r in loaded] == [
        (100, [[1, 2, 4, 6]], [1]),
        (102, [[0, 0, 8, 9]], [0]),
    ]
    assert classes == ["a", "z"]


def test_a_missing_json_is_told():
    for known in ("coco_pseudo_regions", "mini_pseudo_regions"):
        assert known in DatasetCatalog.list()
    with pytest.raises(UserError, match="pseudo_regions.json not found: make it with tools/pseudo_label.py"):
        DatasetCatalog.get("mini_pseudo_regions")
