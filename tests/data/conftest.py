"""A data root of a test's own, its json files, data sets that are removed after the test, photos and mappers."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from clim.data import mappers
from clim.data.categories import COCO_CATEGORIES
from clim.data.images import read_image
from clim.data.shards import read_shards
from shards.build import build_index

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


@pytest.fixture(scope="module")
def photos(make_photos):
    """24 records with captions, boxes (one reaches outside, one is empty, one is a crowd) and pseudo-labels."""
    records = make_photos([(60, 90), (90, 60), (64, 64), (40, 120), (50, 70), (80, 30)] * 4)
    for i, record in enumerate(records):
        h, w = record["height"], record["width"]
        boxes = [[1, 2, w / 2, h / 3], [w / 4, h / 4, w, h], [5, 5, 0, 4], [0, 0, w / 3, h / 2]]
        record["annotations"] = [
            {"bbox": b, "bbox_mode": BoxMode.XYWH_ABS, "category_id": c, "iscrowd": int(c == 3)}
            for c, b in enumerate(boxes)
        ]
        corners = np.arange(1 + i % 3)[:, None] * [2, 3] + [1, 4]
        record["boxes"] = np.hstack([corners, corners + [7.5, 12 + i]]).astype(np.float32)
        record["nouns"] = np.arange(1 + i % 3) * 10 + i
    return records


@pytest.fixture(scope="session")
def broken():
    """``broken(records, index, …)``: copies of the records, in which the images of these indices do not exist."""

    def copies(records, *indices):
        return [r | ({"file_name": r["file_name"] + ".gone"} if i in indices else {}) for i, r in enumerate(records)]

    return copies


@pytest.fixture(scope="session")
def canvases():
    """``canvases(records, key=value, …)``: a CanvasMapper of 2x2 tiles on 96 x 96 px."""
    options = {"grids": [2], "short": 96, "long": 96, "flip": 0.5, "seed": 1, "stream": 2}
    return lambda records, **changes: mappers.CanvasMapper(records, **options | changes)


@pytest.fixture
def decodes(monkeypatch):
    """(height, width) of every decoded image from now on."""
    sizes = []

    def reading(file_name, **kwargs):
        decoded = read_image(file_name, **kwargs)
        sizes.append(decoded.image.shape[:2])
        return decoded

    monkeypatch.setattr(mappers, "read_image", reading)
    return sizes


@pytest.fixture
def indexed(tmp_path, write_shard):
    """``indexed({shard: [(name, bytes), …]}, tagging=…)``: the records of their index."""

    def make(content, **options):
        for name, members in content.items():
            write_shard(tmp_path / "shards" / name, *members)
        build_index(tmp_path / "shards", list(content), tmp_path / "index", **options)
        return read_shards(str(tmp_path / "index"), str(tmp_path / "shards"), remedy="index it")

    return make
