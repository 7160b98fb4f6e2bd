"""The registered data sets: names, files, indices, metadata under DETECTRON2_DATASETS, clear mistakes."""

import copy
import importlib.util
import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from clim.data import builtin
from clim.data.categories import BASE_NAMES, COCO_CATEGORIES, COCO_NAMES, NOVEL_NAMES, contiguous_ids
from clim.errors import UserError

COCO_80 = [{"id": identifier, "name": name} for identifier, name in COCO_CATEGORIES]
# name: (images, json file, is a validation set)
DETECTION = {
    "coco_zeroshot_train_oriorder": ("train2017", "zero-shot/instances_train2017_seen_2_oriorder", False),
    "coco_generalized_zeroshot_val": ("val2017", "zero-shot/instances_val2017_all_2_oriorder", True),
    "coco_zeroshot_val": ("val2017", "zero-shot/instances_val2017_unseen_2", True),
    "coco_not_zeroshot_val": ("val2017", "zero-shot/instances_val2017_seen_2", True),
    "coco_ovd_base_train": ("train2017", "wusize/instances_train2017_base", False),
    "coco_ovd_val": ("val2017", "annotations/instances_val2017", True),
    "coco_ovd_base_val": ("val2017", "wusize/instances_val2017_base", True),
    "coco_ovd_novel_val": ("val2017", "wusize/instances_val2017_novel", True),
}
MINI = {
    "mini_ov_train": "instances_train_base.json",
    "mini_ov_val": "instances_val_all.json",
    "mini_ov_captions": "captions_pairs_tags.json",
    "mini_ov_captions_cluttered": "captions_cluttered_tags.json",
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty data root, set long after the import."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def write_instances(root, image_root, json_file, *, categories=COCO_80, category_id=18, **fields):
    (root / image_root).mkdir(parents=True, exist_ok=True)
    path = root / json_file
    path.parent.mkdir(parents=True, exist_ok=True)
    annotation = {
        "id": 5,
        "image_id": 9,
        "category_id": category_id,
        "bbox": [1.0, 2.0, 8.0, 9.0],
        "area": 72.0,
        "iscrowd": 0,
        "segmentation": [[1.0, 2.0, 9.0, 2.0, 9.0, 11.0, 1.0, 11.0]],
    }
    content = {
        "images": [{"id": 9, "file_name": "9.jpg", "height": 20, "width": 30}],
        "annotations": [annotation | fields],
        "categories": categories,
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", DETECTION)
def test_detection_sets_read_their_file(root, name):
    folder, stem, is_val = DETECTION[name]
    path = write_instances(root, f"coco/{folder}", f"coco/{stem}.json")
    assert DatasetCatalog.get(name) == [
        {
            "file_name": str(root / f"coco/{folder}/9.jpg"),
            "height": 20,
            "width": 30,
            "image_id": 9,
            "annotations": [
                {"iscrowd": 0, "bbox": [1.0, 2.0, 8.0, 9.0], "category_id": 16, "bbox_mode": BoxMode.XYWH_ABS}
            ],
        }
    ]
    metadata = MetadataCatalog.get(name)
    assert metadata.json_file == str(path) and metadata.image_root == str(root / f"coco/{folder}")
    assert metadata.get("evaluator_type") == ("ov_coco" if is_val else None)


@pytest.mark.parametrize("name", [*DETECTION, "coco_caption_train", "coco_caption_train_tags"])
def test_coco_metadata_needs_no_files(root, name):
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == list(COCO_NAMES)
    assert metadata.thing_dataset_id_to_contiguous_id == contiguous_ids()
    assert metadata.base_classes == list(BASE_NAMES) and metadata.novel_classes == list(NOVEL_NAMES)


def test_indices_do_not_depend_on_the_categories_that_a_file_lists(root):
    dog_and_cat = [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]  # OVR-CNN's file would say 1 for dog
    stem = "coco/zero-shot/instances_val2017_unseen_2"
    write_instances(root, "coco/val2017", f"{stem}.json", categories=dog_and_cat)
    assert DatasetCatalog.get("coco_zeroshot_val")[0]["annotations"][0]["category_id"] == 16


def test_the_file_with_80_categories_is_preferred(root):
    stem = "coco/zero-shot/instances_val2017_unseen_2"
    write_instances(root, "coco/val2017", f"{stem}.json", category_id=17)
    write_instances(root, "coco/val2017", f"{stem}_oriorder.json", category_id=18)
    assert MetadataCatalog.get("coco_zeroshot_val").json_file == str(root / f"{stem}_oriorder.json")
    assert DatasetCatalog.get("coco_zeroshot_val")[0]["annotations"][0]["category_id"] == 16


def test_crowds_are_kept(root):
    write_instances(
        root, "coco/val2017", "coco/zero-shot/instances_val2017_all_2_oriorder.json", iscrowd=1, segmentation=[]
    )
    (record,) = DatasetCatalog.get("coco_generalized_zeroshot_val")
    assert [annotation["iscrowd"] for annotation in record["annotations"]] == [1]


def test_detectron2s_warning_about_bad_polygons_is_heard(root, caplog):
    write_instances(root, "coco/val2017", "coco/wusize/instances_val2017_base.json", segmentation=[[1.0, 2.0]])
    with caplog.at_level(logging.WARNING):
        assert DatasetCatalog.get("coco_ovd_base_val")[0]["annotations"] == []
    assert "Filtered out 1 instances without valid segmentation" in caplog.text


CAPTIONS = {
    "images": [
        {"id": 9, "file_name": "9.jpg", "height": 20, "width": 30, "captions": ["A dog."], "pos_category_ids": [18, 90]}
    ],
    "categories": COCO_80,
    "annotations": [],
}


@pytest.mark.parametrize("folder", ["coco/annotations", "coco"])
def test_the_caption_file_is_found_in_both_of_detics_places(root, folder):
    (root / "coco/train2017").mkdir(parents=True)
    (root / folder).mkdir(exist_ok=True)
    path = root / folder / "captions_train2017_tags_allcaps.json"
    path.write_text(json.dumps(CAPTIONS))
    (record,) = DatasetCatalog.get("coco_caption_train_tags")
    assert record["captions"] == ["A dog."] and record["tags"] == [16, 79]
    assert record["file_name"] == str(root / "coco/train2017/9.jpg")
    assert MetadataCatalog.get("coco_caption_train_tags").json_file == str(path)


def test_all_captions_come_from_cocos_own_file(root):
    (root / "coco/train2017").mkdir(parents=True)
    (root / "coco/annotations").mkdir()
    image = {"id": 9, "file_name": "9.jpg", "height": 20, "width": 30}
    content = {"images": [image], "annotations": [{"id": 1, "image_id": 9, "caption": "A dog."}]}
    (root / "coco/annotations/captions_train2017.json").write_text(json.dumps(content))
    (record,) = DatasetCatalog.get("coco_caption_train")
    assert (record["captions"], record["tags"]) == (["A dog."], [])
    assert record["file_name"] == str(root / "coco/train2017/9.jpg")


def test_of_two_caption_files_the_one_in_annotations_counts(root):
    (root / "coco/train2017").mkdir(parents=True)
    (root / "coco/annotations").mkdir()
    name = "captions_train2017_tags_allcaps.json"
    (root / "coco/annotations" / name).write_text(json.dumps(CAPTIONS))
    (root / "coco" / name).write_text("{}")
    assert len(DatasetCatalog.get("coco_caption_train_tags")) == 1


def test_the_data_root_is_read_at_every_load(root, monkeypatch, tmp_path_factory):
    name, (folder, stem, _) = "coco_ovd_base_val", DETECTION["coco_ovd_base_val"]
    write_instances(root, f"coco/{folder}", f"coco/{stem}.json", category_id=1)
    assert DatasetCatalog.get(name)[0]["annotations"][0]["category_id"] == 0
    other = tmp_path_factory.mktemp("other")
    write_instances(other, f"coco/{folder}", f"coco/{stem}.json", category_id=90)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(other))
    assert DatasetCatalog.get(name)[0]["annotations"][0]["category_id"] == 79
    assert MetadataCatalog.get(name).image_root == str(other / f"coco/{folder}")


@pytest.mark.parametrize("name", [*DETECTION, "coco_caption_train", "coco_caption_train_tags", *MINI])
def test_a_missing_json_is_one_sentence_with_the_command(root, name):
    command = "tools/make_mini.py" if name in MINI else "datasets/prepare_ovcoco.py --source COCO"
    with pytest.raises(UserError) as error:
        DatasetCatalog.get(name)
    message = str(error.value)
    assert MetadataCatalog.get(name).json_file in message and "\n" not in message
    assert message.endswith(f"make it with: python {command} --output {root}")


def test_other_mistakes_in_a_detection_set(root):
    stem = "coco/wusize/instances_val2017_base.json"
    path = write_instances(root, "coco/val2017", stem, categories=[{"id": 91, "name": "x"}], category_id=91)
    with pytest.raises(UserError, match="image 9 of .* category 91, which is none of .* 80 categories"):
        DatasetCatalog.get("coco_ovd_base_val")
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read .*: make it again with: python datasets/prepare_ovcoco.py"):
        DatasetCatalog.get("coco_ovd_base_val")
    (root / "coco/val2017").rmdir()
    with pytest.raises(UserError, match="image folder .*val2017 not found"):
        DatasetCatalog.get("coco_ovd_base_val")


def test_mini_metadata_names_its_files_before_they_exist(root):
    for name, json_file in MINI.items():
        assert MetadataCatalog.get(name).json_file == str(root / "mini/annotations" / json_file)
    assert MetadataCatalog.get("mini_ov_val").evaluator_type == "ov_coco"
    assert MetadataCatalog.get("mini_ov_train").get("evaluator_type") is None


def test_a_mini_set_without_its_split_must_be_made_again(root):
    path = write_instances(root, "mini/val", "mini/annotations/instances_val_all.json")
    with pytest.raises(UserError) as error:
        DatasetCatalog.get("mini_ov_val")
    assert str(error.value) == (
        f"{path} does not say which categories are novel: make it again with: python tools/make_mini.py --output {root}"
    )


def test_mini_categories_come_from_the_json_and_follow_its_rewriting(root):
    json_file = "mini/annotations/instances_val_all.json"
    categories = [{"id": 4, "name": "dog", "split": "novel"}, {"id": 2, "name": "horse", "split": "base"}]
    path = write_instances(root, "mini/val", json_file, categories=categories, category_id=4)
    metadata = MetadataCatalog.get("mini_ov_val")
    assert metadata.thing_classes == ["horse", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {2: 0, 4: 1}
    assert (metadata.base_classes, metadata.novel_classes) == (["horse"], ["dog"])
    assert DatasetCatalog.get("mini_ov_val")[0]["annotations"][0]["category_id"] == 1
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories[:1]}))
    assert metadata.thing_classes == ["dog"]


def test_mini_captions(root):
    for name, folder in (("mini_ov_captions", "pairs"), ("mini_ov_captions_cluttered", "cluttered")):
        (root / "mini" / folder).mkdir(parents=True)
        (root / "mini/annotations").mkdir(exist_ok=True)
        path = root / "mini/annotations" / MINI[name]
        categories = [{"split": "base"} | category for category in COCO_80]
        path.write_text(json.dumps(CAPTIONS | {"categories": categories}))
        (record,) = DatasetCatalog.get(name)
        assert record["file_name"] == str(root / "mini" / folder / "9.jpg") and record["tags"] == [16, 79]


def test_a_second_import_registers_nothing_twice():
    before = {name: MetadataCatalog.get(name) for name in (*DETECTION, *MINI, "coco_caption_train_tags")}
    # A second module object, as two import paths would make; a reload would replace the classes of the first.
    spec = importlib.util.spec_from_file_location("builtin_again", builtin.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert all(MetadataCatalog.get(name) is metadata for name, metadata in before.items())


def test_importing_reads_no_file_and_needs_no_folder(tmp_path):
    code = "import clim.data.builtin as b; print('mini_ov_val' in b.DatasetCatalog)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={"DETECTRON2_DATASETS": str(tmp_path / "nowhere"), "OMP_NUM_THREADS": "1", "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"]


def test_metadata_behaves_like_detectron2s(root):
    metadata = MetadataCatalog.get("coco_ovd_novel_val")
    assert metadata.as_dict()["name"] == "coco_ovd_novel_val"
    assert {"json_file", "thing_classes", "evaluator_type", "novel_classes"} <= set(metadata.as_dict())
    assert "_entries" not in metadata.as_dict()
    assert not hasattr(metadata, "keypoint_names") and metadata.get("keypoint_names", 3) == 3
    with pytest.raises(AssertionError, match="cannot be set"):
        metadata.thing_classes = ["other"]
    for other in (pickle.loads(pickle.dumps(metadata)), copy.deepcopy(metadata)):
        assert other.as_dict() == metadata.as_dict()


def test_cc3m_is_read_where_detics_scripts_put_it(tmp_path, monkeypatch, make_photos):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (photo,) = make_photos([(30, 40)])
    (tmp_path / "cc3m").mkdir()
    (tmp_path / "cc3m/training").symlink_to(Path(photo["file_name"]).parent)
    images = [{"id": 3, "file_name": Path(photo["file_name"]).name, "captions": ["a photo"]}]
    (tmp_path / "cc3m/train_image_info.json").write_text(json.dumps({"images": images}))
    (record,) = DatasetCatalog.get("cc3m_v1_train")
    assert (record["image_id"], record["height"], record["width"]) == (3, 30, 40)
    assert record["captions"] == ["a photo"] and record["tags"] == []
