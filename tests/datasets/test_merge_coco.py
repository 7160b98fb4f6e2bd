"""datasets/merge_coco.py on two parts of COCO with one photo in both: contents, links, repetition, mistakes."""

import json

import pytest
from detectron2.data import DatasetCatalog

from clim.data.categories import COCO_CATEGORIES, PANOPTIC_CATEGORIES
from clim.errors import UserError
from merge_coco import prepare

PERSON, DOG, TREE = 1, 18, 184  # base, novel, stuff
# (annotation id, image id, category id): image 5 lies in both, with other ids of the same boxes.
FIRST = {"train2017": [(8, 3, PERSON), (9, 3, DOG)], "val2017": [(8, 5, PERSON), (9, 5, DOG)]}
SECOND = {"train2017": [(8, 2, DOG), (9, 1, PERSON)], "val2017": [(1, 5, DOG), (2, 5, PERSON), (3, 4, DOG)]}


def make(source, boxes, *, panoptic=""):
    for part, rows in boxes.items():
        (source / part).mkdir(parents=True)
        (source / "annotations").mkdir(exist_ok=True)
        ids = list(dict.fromkeys(image for _, image, _ in rows))
        images = [{"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 6} for i in ids]
        for image in images:
            (source / part / image["file_name"]).write_text(source.name)
        categories = [{"id": key, "name": name} for key, name in COCO_CATEGORIES]
        objects = [{"id": a, "image_id": i, "category_id": c, "bbox": [0, 0, 2, 2]} for a, i, c in rows]
        content = {"images": images, "annotations": objects, "categories": categories}
        (source / f"annotations/instances_{part}.json").write_text(json.dumps(content))
        if panoptic:
            segments = [{"id": 7, "category_id": TREE}]
            found = [{"image_id": i, "file_name": f"{i}.png", "segments_info": segments} for i in ids]
            categories = [{"id": key, "name": name} for key, name in PANOPTIC_CATEGORIES]
            content = {"images": images, "annotations": found, "categories": categories}
            (source / f"annotations/panoptic_{part}.json").write_text(json.dumps(content))
            folder = source / panoptic / f"panoptic_{part}"
            folder.mkdir(parents=True)
            for i in ids:
                (folder / f"{i}.png").write_text("segments")


@pytest.fixture
def sources(tmp_path):
    make(tmp_path / "a", FIRST)
    make(tmp_path / "b", SECOND, panoptic="annotations")
    return [tmp_path / "a", tmp_path / "b"]


def boxes(folder, name):
    content = json.loads((folder / name).read_text())
    return [i["id"] for i in content["images"]], [
        (a["id"], a["image_id"], a["category_id"]) for a in content["annotations"]
    ]


def test_a_photo_of_two_parts_counts_once_and_boxes_are_numbered_anew(sources, tmp_path):
    (sources[0] / "train2017/2.jpg").write_text("not named by the annotations beside it")
    prepare(sources, tmp_path / "out")
    folder = tmp_path / "out/coco_parts"
    train = [(1, 3, PERSON), (2, 3, DOG), (3, 2, DOG), (4, 1, PERSON)]
    assert boxes(folder, "annotations/instances_train2017.json") == ([1, 2, 3], train)
    val = [(1, 5, PERSON), (2, 5, DOG), (3, 4, DOG)]
    assert boxes(folder, "annotations/instances_val2017.json") == ([4, 5], val)
    # OV-COCO's split: images without a base box are dropped, and so are boxes of novel classes.
    assert boxes(folder, "zero-shot/instances_train2017_seen_2_oriorder.json") == ([1, 3], [train[0], train[3]])
    assert boxes(folder, "zero-shot/instances_val2017_all_2_oriorder.json") == ([4, 5], val)
    photos = {path.name: path for path in folder.glob("*2017/*.jpg")}
    assert {name: path.read_text() for name, path in photos.items()} == {
        "1.jpg": "b", "2.jpg": "b", "3.jpg": "a", "4.jpg": "b", "5.jpg": "a",
    }  # fmt: skip
    assert all(path.is_symlink() for path in photos.values())


def test_a_photo_of_segments_without_a_box_is_linked_too(sources, tmp_path):
    file = sources[1] / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    for name, key in (("images", "id"), ("annotations", "image_id")):
        content[name] = [row for row in content[name] if row[key] != 4]
    file.write_text(json.dumps(content))
    prepare(sources, tmp_path / "out")
    assert boxes(tmp_path / "out/coco_parts", "annotations/instances_val2017.json")[0] == [5]
    assert (tmp_path / "out/coco_parts/val2017/4.jpg").read_text() == "b"


@pytest.mark.parametrize("place", ["annotations", "."])
def test_the_catalogue_reads_boxes_and_panoptic_segments(tmp_path, monkeypatch, place):
    make(tmp_path / "a", FIRST)
    make(tmp_path / "b", SECOND, panoptic=place)
    prepare([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    (tmp_path / "out/coco").symlink_to("coco_parts")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "out"))
    numbers = {"coco_zeroshot_train_oriorder": (2, 2), "coco_val_regions": (2, 3), "coco_panoptic_val_regions": (2, 2)}
    for name, expected in numbers.items():
        records = DatasetCatalog.get(name)
        assert (len(records), sum(len(r["annotations"]) for r in records)) == expected, name
    with open(DatasetCatalog.get("coco_panoptic_val_regions")[0]["pan_seg_file_name"]) as file:
        assert file.read() == "segments"


def test_a_second_run_changes_nothing(sources, tmp_path):
    first = prepare(sources, tmp_path / "out")
    before = {path: path.lstat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if not path.is_dir()}
    assert prepare(sources, tmp_path / "out") == first
    after = {path: path.lstat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if not path.is_dir()}
    assert after == before


def test_a_photo_to_train_and_to_test_on_is_refused(tmp_path):
    make(tmp_path / "a", FIRST)
    make(tmp_path / "b", {"train2017": [(1, 5, DOG)], "val2017": [(1, 4, DOG)]})
    with pytest.raises(UserError, match="Image 5 is in train2017 and in val2017"):
        prepare([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.json"))


def test_incomplete_sources_are_refused(sources, tmp_path):
    first, second = sources
    (second / "train2017/2.jpg").unlink()
    with pytest.raises(UserError, match=r"b/train2017/2.jpg is missing, but annotations of this source name it"):
        prepare(sources, tmp_path / "out")
    for png in (folder := second / "annotations/panoptic_train2017").iterdir():
        png.unlink()
    folder.rmdir()
    (second / "train2017/2.jpg").write_text("")
    with pytest.raises(UserError, match=r"panoptic_train2017.json needs its PNGs in "):
        prepare(sources, tmp_path / "out")
    (first / "annotations/instances_val2017.json").unlink()
    with pytest.raises(UserError, match=r"a lacks annotations/instances_val2017.json: give a folder with COCO's"):
        prepare(sources, tmp_path / "out")
