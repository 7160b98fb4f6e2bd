"""Region sets: records of instances and panoptic jsons, the registered names, own files, clear mistakes."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import clim.data.builtin  # noqa: F401  registers the sets
from clim.data.categories import COCO_NAMES, PANOPTIC_NAMES, STUFF_NAMES, contiguous_ids, panoptic_ids
from clim.data.region_classification import RegionTestMapper
from clim.data.region_sets import register_region_set
from clim.errors import UserError

IMAGES = [{"id": identifier, "file_name": f"{identifier}.jpg", "height": 20, "width": 30} for identifier in (9, 4)]
POLYGON = [[1.0, 2.0, 9.0, 2.0, 9.0, 11.0]]
RUNS = {"size": [20, 30], "counts": [0, 600]}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "coco/val2017").mkdir(parents=True)
    (tmp_path / "coco/annotations").mkdir()
    return tmp_path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_instances(path, **changes):
    annotations = [
        {"image_id": 9, "category_id": 18, "bbox": [1, 2, 8, 9], "segmentation": POLYGON},
        {"image_id": 9, "category_id": 1, "bbox": [0, 0, 30, 20], "iscrowd": 1, "segmentation": RUNS},
        {"image_id": 9, "category_id": 90, "bbox": [3, 3, 2, 2], "segmentation": []},
    ]
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    write(path, {"images": IMAGES, "annotations": annotations, "categories": categories} | changes)


def write_panoptic(root, *, category_id=199):
    segments = [
        {"id": 77, "category_id": category_id, "iscrowd": 0, "bbox": [0, 0, 5, 5], "area": 9},
        {"id": 5, "category_id": 18, "iscrowd": 1, "bbox": [1, 2, 8, 9], "area": 9},
    ]
    annotations = [
        {"image_id": 9, "file_name": "9.png", "segments_info": segments},
        {"image_id": 4, "file_name": "4.png", "segments_info": []},
    ]
    write(root / "coco/annotations/panoptic_val2017.json", {"images": IMAGES, "annotations": annotations})


def test_instances_by_image_with_crowds_in_the_files_order(root):
    write_instances(root / "coco/annotations/instances_val2017.json")
    empty, full = DatasetCatalog.get("coco_val_regions")
    size = {"height": 20, "width": 30}
    assert empty == size | {"file_name": str(root / "coco/val2017/4.jpg"), "image_id": 4, "annotations": []}
    assert full == size | {
        "file_name": str(root / "coco/val2017/9.jpg"),
        "image_id": 9,
        "annotations": [
            {"category_id": 16, "iscrowd": 0, "bbox": [1, 2, 8, 9], "segmentation": POLYGON},
            {"category_id": 0, "iscrowd": 1, "bbox": [0, 0, 30, 20], "segmentation": RUNS},
            {"category_id": 79, "iscrowd": 0, "bbox": [3, 3, 2, 2]},
        ],
    }


@pytest.mark.parametrize("folder", ["coco/panoptic_val2017", "coco/annotations/panoptic_val2017"])
def test_panoptic_segments_stuff_without_box(root, folder):
    (root / folder).mkdir()
    write_panoptic(root)
    empty, full = DatasetCatalog.get("coco_panoptic_val_regions")
    assert empty["annotations"] == [] and empty["pan_seg_file_name"] == str(root / folder / "4.png")
    assert full["pan_seg_file_name"] == str(root / folder / "9.png")
    assert full["file_name"] == str(root / "coco/val2017/9.jpg")
    assert full["annotations"] == [
        {"category_id": 131, "iscrowd": 0, "segment_id": 77},
        {"category_id": 16, "iscrowd": 1, "segment_id": 5, "bbox": [1, 2, 8, 9]},
    ]


def test_a_panoptic_image_becomes_an_input(root):
    write_panoptic(root)
    (root / "coco/panoptic_val2017").mkdir()
    segments = np.zeros((20, 30, 3), np.uint8)
    segments[4:15, 10:26, 0] = 77
    Image.fromarray(segments).save(root / "coco/panoptic_val2017/9.png")
    Image.fromarray(segments + 99).save(root / "coco/val2017/9.jpg")
    records = DatasetCatalog.get("coco_panoptic_val_regions")
    sample = RegionTestMapper(size=60)(records[1])
    assert sample["boxes"].tensor.tolist() == [[20, 8, 50, 28], [2, 4, 18, 22]]
    assert sample["gt_classes"].tolist() == [131, 16]


def test_the_133_classes_are_80_things_then_53_stuff():
    index = panoptic_ids()
    assert PANOPTIC_NAMES == (*COCO_NAMES, *STUFF_NAMES) and len(PANOPTIC_NAMES) == 133
    assert list(index) == sorted(index) and list(index.values()) == list(range(133))
    assert {key: value for key, value in index.items() if value < 80} == contiguous_ids()
    assert PANOPTIC_NAMES[index[92]] == "banner" and PANOPTIC_NAMES[index[200]] == "rug-merged"
    metadata = MetadataCatalog.get("coco_panoptic_val_regions")
    assert metadata.thing_classes == list(COCO_NAMES) and metadata.stuff_classes == list(STUFF_NAMES)


def test_registered_sets_are_scored_as_regions(root):
    for name in ("coco_val_regions", "coco_panoptic_val_regions", "mini_val_regions"):
        assert MetadataCatalog.get(name).evaluator_type == "regions"
    mini = MetadataCatalog.get("mini_val_regions")
    assert mini.json_file == str(root / "mini/annotations/instances_val_all.json")
    (root / "mini/val").mkdir(parents=True)
    split = [{"id": 90, "name": "key"}, {"id": 1, "name": "dog", "split": "novel"}, {"id": 18, "name": "owl"}]
    write_instances(root / "mini/annotations/instances_val_all.json", categories=split)
    assert mini.thing_classes == ["dog", "owl", "key"] and mini.novel_classes == ["dog"]
    assert [a["category_id"] for a in DatasetCatalog.get("mini_val_regions")[1]["annotations"]] == [1, 0, 2]


def test_missing_files_are_named_in_one_sentence(root):
    messages = []
    for name in ("coco_val_regions", "coco_panoptic_val_regions", "mini_val_regions"):
        with pytest.raises(UserError) as error:
            DatasetCatalog.get(name)
        messages.append(str(error.value))
    instances, panoptic, mini = messages
    assert instances.endswith(f"make it with: python datasets/prepare_ovcoco.py --source COCO --output {root}")
    assert panoptic == (
        f"{root}/coco/annotations/panoptic_val2017.json not found: get COCO's panoptic annotations, see "
        "datasets/README.md"
    )
    assert mini.endswith(f"make it with: python tools/make_mini.py --output {root}")
    write_panoptic(root)
    with pytest.raises(UserError, match="no folder of panoptic PNGs at coco/panoptic_val2017 or .*README.md$"):
        DatasetCatalog.get("coco_panoptic_val_regions")


def test_a_category_outside_the_set_is_refused(root):
    (root / "coco/panoptic_val2017").mkdir()
    write_panoptic(root, category_id=12)
    with pytest.raises(UserError, match="image 9 of .* category 12, .* 133 categories"):
        DatasetCatalog.get("coco_panoptic_val_regions")


def test_an_own_set_takes_its_classes_from_its_file(root):
    name = f"own_regions_{root.name}"
    (root / "images").mkdir()
    register_region_set(name, "own/instances.json", str(root / "images"), stuff_classes=[])
    try:
        with pytest.raises(UserError, match=f"instances.json not found: register '{name}'"):
            DatasetCatalog.get(name)
        write_instances(root / "own/instances.json")
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == ["person", "dog", "toothbrush"]
        assert metadata.evaluator_type == "regions" and metadata.stuff_classes == []
        records = DatasetCatalog.get(name)
        assert [a["category_id"] for a in records[1]["annotations"]] == [1, 0, 2]
        assert records[0]["file_name"] == str(root / "images/4.jpg")
        with pytest.raises(UserError, match="is registered already"):
            register_region_set(name, "own/instances.json", "images")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
