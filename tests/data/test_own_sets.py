"""DATASETS.OWN: sets named in a config are registered once, and mistakes are told."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from clim.data.own_sets import register_own_sets
from clim.errors import UserError


@pytest.fixture
def files(tmp_path):
    (tmp_path / "images").mkdir()
    image = {"id": 1, "file_name": "a.jpg", "height": 4, "width": 6, "captions": ["a cat"]}
    box = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 3, 2], "iscrowd": 0, "area": 6}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 7, "name": "cat"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    return str(tmp_path / "a.json"), str(tmp_path / "images")


@pytest.mark.parametrize("kind", ["captions", "boxes", "regions"])
def test_set_is_read_under_its_name(kind, files):
    name = f"mine_{kind}"
    register_own_sets([[name, kind, *files]])
    register_own_sets([[name, kind, *files]])  # the config is read again
    (record,) = DatasetCatalog.get(name)
    assert record["file_name"].endswith("images/a.jpg")
    if kind == "captions":
        assert record["captions"] == ["a cat"]
    else:
        assert record["annotations"][0]["category_id"] == 0
        assert MetadataCatalog.get(name).thing_classes == ["cat"]
    with pytest.raises(UserError, match="another data set already"):
        register_own_sets([[name, kind, files[0], "elsewhere"]])
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("entry", [["a", "pictures", "b", "c"], ["a", "captions", "b"]])
def test_wrong_entries_are_told(entry):
    with pytest.raises(UserError, match="DATASETS.OWN holds"):
        register_own_sets([entry])


def test_taken_names_are_told(files):
    with pytest.raises(UserError, match="coco_ovd_val"):
        register_own_sets([["coco_ovd_val", "boxes", *files]])
