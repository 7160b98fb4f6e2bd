"""A data root of a test's own, its json files, and data sets that are removed after the test."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from clim.data.categories import COCO_CATEGORIES

COCO_80 = [{"id": identifier, "name": name} for identifier, name in COCO_CATEGORIES]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty data root, set long after the import."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def write(root):
    """``write(json file, images, …, images_in=folder, key=value)``: a json below the root, with COCO's categories."""

    def written(json_file, *images, images_in="images", **content):
        (root / images_in).mkdir(parents=True, exist_ok=True)
        path = root / json_file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": [], "categories": COCO_80} | content))
        return path

    return written


@pytest.fixture
def registered():
    """``registered(record, …)``: the name of a data set of these records."""
    names = []

    def register(*records):
        names.append(f"records_of_a_test_{len(names)}")
        DatasetCatalog.register(names[-1], lambda: list(records))
        return names[-1]

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
