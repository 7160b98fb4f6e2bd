"""The registered data sets: names, files, classes and metadata below DETECTRON2_DATASETS; sets of a user's own."""

import copy
import importlib.util
import json
import pickle

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.data.detection_utils import get_fed_loss_cls_weights

from clim.data import datasets
from clim.data.categories import BASE_NAMES, COCO_INDEX, COCO_NAMES, LVIS_NAMES, NOVEL_NAMES, SPLIT_NAMES, STUFF_NAMES
from clim.data.datasets import register_own_set, register_own_sets
from clim.errors import UserError

# name: (image folder, json file below the data root, evaluator)
BOXES = {
    "coco_zeroshot_train_oriorder": ("train2017", "zero-shot/instances_train2017_seen_2_oriorder", None),
    "coco_generalized_zeroshot_val": ("val2017", "zero-shot/instances_val2017_all_2_oriorder", "ov_coco"),
    "coco_zeroshot_val": ("val2017", "zero-shot/instances_val2017_unseen_2", "ov_coco"),
    "coco_not_zeroshot_val": ("val2017", "zero-shot/instances_val2017_seen_2", "ov_coco"),
    "coco_ovd_base_train": ("train2017", "wusize/instances_train2017_base", None),
    "coco_ovd_val": ("val2017", "annotations/instances_val2017", "ov_coco"),
    "coco_ovd_base_val": ("val2017", "wusize/instances_val2017_base", "ov_coco"),
    "coco_ovd_novel_val": ("val2017", "wusize/instances_val2017_novel", "ov_coco"),
    "coco_val_regions": ("val2017", "annotations/instances_val2017", "regions"),
}
TAGS = "captions_train2017_tags_allcaps"
CAPTIONS = {
    "coco_caption_train_tags": ("train2017", f"annotations/{TAGS}", None),
    "coco_caption_train": ("train2017", "annotations/captions_train2017", None),
}
MINI = {
    "mini_ov_train": ("train", "instances_train_base", None),
    "mini_ov_val": ("val", "instances_val_all", "ov_coco"),
    "mini_val_regions": ("val", "instances_val_all", "regions"),
    "mini_ov_captions": ("pairs", "captions_pairs_tags", None),
    "mini_ov_captions_cluttered": ("cluttered", "captions_cluttered_tags", None),
}
PLACES = {name: (f"coco/{i}", f"coco/{j}.json", e) for name, (i, j, e) in (BOXES | CAPTIONS).items()}
PLACES |= {name: (f"mini/{i}", f"mini/annotations/{j}.json", e) for name, (i, j, e) in MINI.items()}

IMAGE = {"id": 9, "file_name": "9.jpg", "height": 20, "width": 30}
PAIR = IMAGE | {"captions": ["A dog."], "pos_category_ids": [18, 90]}


def box(category_id=18):
    return {"id": 5, "image_id": 9, "category_id": category_id, "bbox": [1, 2, 8, 9], "area": 72, "iscrowd": 0}


@pytest.mark.parametrize("name", PLACES)
def test_every_set_reads_its_file_with_its_classes(root, write, name):
    folder, json_file, evaluator = PLACES[name]
    split = [{"id": 90, "name": "z", "split": "novel"}, {"id": 18, "name": "dog", "split": "base"}]
    classes = {"categories": split} if name in MINI else {}
    path = write(json_file, PAIR, images_in=folder, annotations=[] if "captions" in json_file else [box()], **classes)
    metadata = MetadataCatalog.get(name)
    assert (metadata.json_file, metadata.image_root) == (str(path), str(root / folder))
    assert metadata.get("evaluator_type") == evaluator
    (record,) = DatasetCatalog.get(name)
    assert (record["file_name"], record["image_id"]) == (str(root / folder / "9.jpg"), 9)
    dog, last = (0, 1) if name in MINI else (16, 79)
    if "captions" in json_file:
        assert (record["captions"], record["tags"]) == (["A dog."], [dog, last])
    else:
        assert [a["category_id"] for a in record["annotations"]] == [dog]
    names = (["dog", "z"], ["dog"], ["z"]) if name in MINI else (COCO_NAMES, BASE_NAMES, NOVEL_NAMES)
    assert (metadata.thing_classes, metadata.base_classes, metadata.novel_classes) == tuple(map(list, names))


def test_cc3m_lies_where_detics_scripts_put_it(root, write):
    write("cc3m/train_image_info.json", IMAGE | {"captions": ["a photo"]}, images_in="cc3m/training")
    (record,) = DatasetCatalog.get("cc3m_v1_train")
    assert (record["file_name"], record["tags"]) == (str(root / "cc3m/training/9.jpg"), [])


def test_vldets_65_classes_are_numbered_anew_from_cocos_ids(root, write):
    """vldet §2: the plain file counts where the one with all categories is missing."""
    for name, part, stem in (
        ("coco_zeroshot_train_del", "train2017", "instances_train2017_seen_2"),
        ("coco_generalized_del_val", "val2017", "instances_val2017_all_2"),
    ):
        metadata = MetadataCatalog.get(name)
        for order in ("", "_oriorder"):
            path = write(f"coco/zero-shot/{stem}{order}.json", IMAGE, images_in=f"coco/{part}", annotations=[box(90)])
            assert metadata.json_file == str(path)
        assert DatasetCatalog.get(name)[0]["annotations"][0]["category_id"] == 64
        assert metadata.get("evaluator_type") == (None if "train" in name else "ov_coco")
        assert metadata.thing_classes == list(SPLIT_NAMES)
        assert (metadata.base_classes, metadata.novel_classes) == (list(BASE_NAMES), list(NOVEL_NAMES))
        write(f"coco/zero-shot/{stem}_oriorder.json", IMAGE, annotations=[box(10)])
        with pytest.raises(UserError, match="annotations.0..category_id of .* is 10, but it is none of the 65"):
            DatasetCatalog.get(name)


@pytest.mark.parametrize(
    "name, json_file",
    [
        ("coco_caption_nouns_train_4764tags", "coco/VLDet/nouns_captions_train2017_4764tags_allcaps.json"),
        ("cc3m_v1_nouns_train_6250tags", "cc3m/VLDet/nouns_train_image_info_6250tags.json"),
        ("mini_ov_captions_nouns", "mini/annotations/captions_pairs_nouns.json"),
    ],
)
def test_tags_of_nouns_are_rows_of_their_embeddings(root, write, name, json_file):
    with pytest.raises(UserError, match="not found: make it with"):
        DatasetCatalog.get(name)
    nouns = [{"id": i, "name": f"noun {i}"} for i in (3, 1, 2)]
    folder = MetadataCatalog.get(name).image_root.removeprefix(f"{root}/")
    write(json_file, IMAGE | {"captions": ["x"], "pos_category_ids": [1, 3]}, images_in=folder, categories=nouns)
    assert DatasetCatalog.get(name)[0]["tags"] == [0, 2]


LVIS_IMAGE = {"id": 9, "coco_url": "http://images.cocodataset.org/train2017/9.jpg", "height": 20, "width": 30}


def test_lvis_replaces_detectron2s_sets_and_keeps_their_metadata(root, write):
    theirs = get_lvis_instances_meta("lvis_v1")
    differ = [i for i, (a, b) in enumerate(zip(theirs["thing_classes"], LVIS_NAMES, strict=True)) if a != b]
    assert [LVIS_NAMES[i] for i in differ] == ["bull"]  # Detectron2 calls it by its first synonym
    theirs["thing_classes"] = list(LVIS_NAMES)
    for name in ("lvis_v1_train", "lvis_v1_train_norare", "lvis_v1_val"):
        metadata = MetadataCatalog.get(name)
        with pytest.raises(UserError, match=f"{name}.json not found: .*prepare_ovlvis.py .* --output {root}"):
            DatasetCatalog.get(name)
        write(f"lvis/{name}.json", LVIS_IMAGE, images_in="coco", annotations=[box(1203)])
        (record,) = DatasetCatalog.get(name)
        assert record["file_name"] == str(root / "coco/train2017/9.jpg")
        assert record["annotations"][0]["category_id"] == 1202
        assert (metadata.evaluator_type, metadata.image_root) == ("lvis", str(root / "coco"))
        assert {key: getattr(metadata, key) for key in theirs} == theirs
        base, novel = metadata.base_classes, metadata.novel_classes
        assert (len(base), len(novel)) == (866, 337) and sorted(base + novel) == sorted(metadata.thing_classes)
        assert get_fed_loss_cls_weights([name], 0.5)[0] == 8  # 64 images
    pair = PAIR | {"pos_category_ids": [1, 1203]}
    write("cc3m/train_image_info_tags.json", pair, images_in="cc3m/training")
    assert DatasetCatalog.get("cc3m_v1_train_tags")[0]["tags"] == [0, 1202]
    assert MetadataCatalog.get("cc3m_v1_train_tags").thing_classes == theirs["thing_classes"]


def test_an_own_lvis_set_has_its_rare_classes_as_novel_ones_or_its_split(write, name):
    frequencies = [{"id": 5, "name": "a", "frequency": "r", "image_count": 2}, {"id": 3, "name": "b", "frequency": "c"}]
    path = write("a.json", LVIS_IMAGE, annotations=[box(5)], categories=frequencies)
    register_own_set(name, "lvis", path, path.parent / "images")
    metadata = MetadataCatalog.get(name)
    assert DatasetCatalog.get(name)[0]["annotations"][0]["category_id"] == 1
    assert (metadata.base_classes, metadata.novel_classes, metadata.evaluator_type) == (["b"], ["a"], "lvis")
    assert metadata.class_image_count is None  # not said of "b"
    frequencies = [frequencies[0] | {"split": "base"}, frequencies[1] | {"split": "novel", "image_count": 9}]
    path.write_text(json.dumps({"categories": frequencies}))
    assert (metadata.base_classes, metadata.novel_classes) == (["a"], ["b"])
    assert get_fed_loss_cls_weights([name], 1).tolist() == [9, 2]


def test_coco_metadata_needs_no_files_and_a_missing_json_names_the_remedy(root):
    for name in (*BOXES, *CAPTIONS, "coco_panoptic_val_regions"):
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == list(COCO_NAMES)
        assert metadata.thing_dataset_id_to_contiguous_id == COCO_INDEX
        assert metadata.get("stuff_classes") == (list(STUFF_NAMES) if "panoptic" in name else None)
    for name in (*PLACES, "coco_panoptic_val_regions", "mini_pseudo_regions", "cc3m_v1_train"):
        with pytest.raises(UserError, match="not found: ") as error:
            DatasetCatalog.get(name)
        assert str(error.value).startswith(MetadataCatalog.get(name).json_file)
        if name in PLACES:
            command = "tools/make_mini.py" if name in MINI else "datasets/prepare_ovcoco.py --source COCO"
            assert str(error.value).endswith(f"python {command} --output {root}")


def test_of_two_files_the_better_one_counts(root, write):
    for name, better, worse in (
        ("coco_zeroshot_val", "zero-shot/instances_val2017_unseen_2_oriorder", "zero-shot/instances_val2017_unseen_2"),
        ("coco_not_zeroshot_val", "zero-shot/instances_val2017_seen_2_oriorder", "zero-shot/instances_val2017_seen_2"),
        ("coco_caption_train_tags", f"annotations/{TAGS}", TAGS),
    ):
        for stem in (worse, better):
            write(f"coco/{stem}.json")
            assert MetadataCatalog.get(name).json_file == str(root / f"coco/{stem}.json")
    # OVR-CNN's file lists few categories, but the indices are those of all 80.
    listed = [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]
    write("coco/zero-shot/instances_val2017_unseen_2_oriorder.json", IMAGE, annotations=[box()], categories=listed,
          images_in="coco/val2017")  # fmt: skip
    assert DatasetCatalog.get("coco_zeroshot_val")[0]["annotations"][0]["category_id"] == 16


def test_the_data_root_and_the_classes_of_a_json_are_read_at_every_load(write, monkeypatch, tmp_path):
    folder, json_file, _ = PLACES["mini_ov_val"]
    metadata, horse = MetadataCatalog.get("mini_ov_val"), {"id": 2, "name": "horse", "split": "base"}
    path = write(json_file, images_in=folder, categories=[horse, {"id": 4, "name": "dog", "split": "novel"}])
    assert metadata.thing_dataset_id_to_contiguous_id == {2: 0, 4: 1}
    path.write_text(json.dumps({"categories": [horse | {"name": "foal"}]}))
    assert metadata.thing_classes == ["foal"]
    write(json_file)
    with pytest.raises(UserError, match="does not say which categories are novel: .*make_mini.py"):
        DatasetCatalog.get("mini_ov_val")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "other"))
    assert metadata.image_root == str(tmp_path / "other" / folder)
    with pytest.raises(UserError, match="other/mini/annotations"):
        DatasetCatalog.get("mini_ov_val")


def test_a_second_import_registers_nothing_twice():
    before = {name: MetadataCatalog.get(name) for name in PLACES}
    # A second module object, as two import paths would make; a reload would replace the classes of the first.
    spec = importlib.util.spec_from_file_location("clim.data.datasets_again", datasets.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert all(MetadataCatalog.get(name) is metadata for name, metadata in before.items())


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


# ---- own sets


@pytest.fixture
def name():
    yield "set_of_a_user"
    if "set_of_a_user" in DatasetCatalog:
        DatasetCatalog.remove("set_of_a_user")
        MetadataCatalog.remove("set_of_a_user")


@pytest.mark.parametrize("kind", ["captions", "boxes", "lvis", "regions", "pseudo_labels"])
def test_an_own_set_is_read_below_the_data_root_when_asked_for(root, write, name, kind):
    entry = [name, kind, "mine/a.json", "mine/images"]
    register_own_sets([entry])
    register_own_sets([entry])  # the config is read again
    with pytest.raises(UserError, match=f"a.json not found: check the paths of data set {name}"):
        DatasetCatalog.get(name)
    categories = [{"id": 90, "name": "z"}, {"id": 18, "name": "dog"}]
    write("mine/a.json", PAIR, images_in="mine/images", annotations=[box()], categories=categories)
    (record,) = DatasetCatalog.get(name)
    assert record["file_name"] == str(root / "mine/images/9.jpg")
    if kind == "captions":
        assert (record["captions"], record["tags"]) == (["A dog."], [0, 1])
    else:
        assert MetadataCatalog.get(name).thing_classes == ["dog", "z"]
        indices = record["nouns"] if kind == "pseudo_labels" else [a["category_id"] for a in record["annotations"]]
        assert list(indices) == [0]
    evaluator = {"boxes": "ov_coco", "lvis": "lvis", "regions": "regions"}.get(kind)
    assert MetadataCatalog.get(name).get("evaluator_type") == evaluator
    with pytest.raises(UserError, match="another data set already"):
        register_own_sets([[*entry[:3], "elsewhere"]])


def test_further_metadata_and_absolute_paths(tmp_path, write, name):
    register_own_set(name, "captions", write("a.json", PAIR), tmp_path / "images", thing_classes=["dog"])
    assert MetadataCatalog.get(name).thing_classes == ["dog"]
    assert DatasetCatalog.get(name)[0]["file_name"] == str(tmp_path / "images/9.jpg")


def test_wrong_entries_are_refused():
    for entry, message in (
        (["a", "images", "b", "c"], "DATASETS.OWN holds"),
        (["a", "captions", "b"], "DATASETS.OWN holds"),
        (["coco_ovd_val", "boxes", "b", "c"], "coco_ovd_val is another data set already"),
    ):
        with pytest.raises(UserError, match=message):
            register_own_sets([entry])
