"""datasets/prepare_ovlvis.py on an LVIS of three images: every file's content, links, repetition, mistakes."""

import json
import os

import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

import prepare_ovlvis
from clim.data.categories import LVIS_RARE_IDS
from clim.errors import UserError
from prepare_ovlvis import prepare

RARE, COMMON, FREQUENT = 31, 1, 2
CATEGORIES = [category | {"image_count": 0, "instance_count": 0} for category in LVIS_CATEGORIES]
ROWS = [(11, 1, COMMON), (12, 1, RARE), (13, 2, COMMON), (14, 2, COMMON), (15, 3, RARE)]  # id, image, category
CAPTIONS = ["an airplane over the sea", "clouds", "a bow on a box of tea bags"]
COUNTED = {"image_count": 2, "instance_count": 3}


def images(*ids):
    url = "http://images.cocodataset.org/train2017/{:012}.jpg"
    return [{"id": i, "height": 40, "width": 50, "coco_url": url.format(i), "neg_category_ids": [5]} for i in ids]


def instances(image_ids, rows):
    same = {"segmentation": [[1.5, 2.0, 9.0, 2.0, 9.0, 11.0]], "area": 30.0, "bbox": [1.5, 2.0, 7.5, 9.0]}
    rows = [same | dict(zip(("id", "image_id", "category_id"), row, strict=True)) for row in rows]
    return {"info": {}, "images": images(*image_ids), "annotations": rows, "categories": CATEGORIES}


@pytest.fixture(params=["lvis/", ""], ids=["data root", "unpacked zips"])
def source(tmp_path, request):
    folder = tmp_path / "source"
    for name in ("lvis", "coco/train2017", "coco/val2017", "cc3m/training"):
        (folder / name).mkdir(parents=True)
    (folder / "coco/train2017/000000000001.jpg").write_bytes(b"photo")
    pairs = [{"id": i, "file_name": f"{i}.jpg", "height": 9, "width": 9, "captions": [CAPTIONS[i], "a zebra here"]}
             for i in range(3)]  # fmt: skip
    for name, content in (
        (f"{request.param}lvis_v1_train.json", instances((1, 2, 3), ROWS)),
        (f"{request.param}lvis_v1_val.json", instances((1,), ROWS[1:2])),
        ("cc3m/train_image_info.json", {"images": pairs, "annotations": [], "categories": []}),
    ):
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture
def output(tmp_path):
    return tmp_path / "datasets"


def read(output, name):
    return json.loads((output / name).read_text())


def snapshot(folder):
    """{path: (content or link target, time of writing)} of everything in a folder."""
    return {
        path: os.readlink(path) if path.is_symlink() else (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_only_rare_annotations_go_and_counts_are_those_of_the_file(source, output, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(output))
    prepare_ovlvis.main(["--source", str(source)])
    base, full = read(output, "lvis/lvis_v1_train_norare.json"), instances((1, 2, 3), ROWS)
    assert base == full | {"annotations": [a for a in full["annotations"] if a["category_id"] != RARE]}
    rare = {"image_count": 2, "instance_count": 2}
    for names, counts in (
        (prepare_ovlvis.COUNTS, {COMMON: COUNTED, RARE: rare}),
        (prepare_ovlvis.BASE_COUNTS, {COMMON: COUNTED}),
    ):
        expected = [category | counts.get(category["id"], {}) for category in CATEGORIES]
        assert all(read(output, name) == expected for name in names)
    printed = capsys.readouterr().out
    assert "train: 3 images, a part of the 100,170 of LVIS v1" in printed
    assert "build_text_embeddings.py classes --dataset lvis --prompt a" in printed


def test_pairs_get_tags_of_their_first_caption_and_the_catalogue_reads_all(source, output, monkeypatch):
    prepare(source, output)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(output))
    tagged = read(output, "cc3m/train_image_info_tags.json")
    names = {category["id"]: category["name"] for category in LVIS_CATEGORIES}
    assert tagged["categories"] == CATEGORIES and tagged["annotations"] == []
    found = {image["id"]: {names[key] for key in image["pos_category_ids"]} for image in tagged["images"]}
    assert found == {0: {"airplane"}, 2: {"bow_(weapon)", "bow_(decorative_ribbons)", "box"}}
    for name, expected in {"lvis_v1_train": (3, 5), "lvis_v1_train_norare": (3, 3), "lvis_v1_val": (1, 1)}.items():
        records = DatasetCatalog.get(name)
        assert (len(records), sum(len(r["annotations"]) for r in records)) == expected
    assert open(DatasetCatalog.get("lvis_v1_val")[0]["file_name"], "rb").read() == b"photo"
    assert [r["image_id"] for r in DatasetCatalog.get("cc3m_v1_train_tags")] == [0, 2]


def test_a_second_run_and_a_run_in_place_change_nothing_that_was_there(source, output):
    before = snapshot(source)
    first = prepare(source, output)
    made = snapshot(output)
    assert (output / "lvis/lvis_v1_val.json").is_symlink() and snapshot(source) == before
    assert prepare(source, output) == first and snapshot(output) == made
    prepare(source, source)
    assert before.items() <= snapshot(source).items() and not list(source.rglob("*.partial"))


def test_counts_that_came_with_detic_stay(source, output):
    theirs = output / "metadata/lvis_v1_train_cat_info.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("[]")
    assert "metadata/lvis_v1_train_cat_info.json" not in prepare(source, output) and theirs.read_text() == "[]"
    (output / "lvis/lvis_v1_train_norare.json").unlink()
    assert prepare(source, output).keys() >= {"lvis/lvis_v1_train_norare.json"}


def test_images_and_pairs_may_be_elsewhere(source, output):
    (output / "coco").mkdir(parents=True)
    for part in ("train2017", "val2017"):
        (source / "coco" / part).rename(output / "coco" / part)
    (source / "cc3m/train_image_info.json").unlink()
    assert set(prepare(source, output)) == {
        "lvis/lvis_v1_train_norare.json", *prepare_ovlvis.COUNTS, *prepare_ovlvis.BASE_COUNTS
    }  # fmt: skip


def test_mistakes_are_one_sentence(source, output, monkeypatch):
    path = next(source.rglob("lvis_v1_train.json"))
    content = instances((1, 2, 3), ROWS)
    for wrong, message in (
        (
            content | {"categories": CATEGORIES[:1000]},
            r"not LVIS v1 \(\d+ base and \d+ rare classes instead of 866 and",
        ),
        ({"images": [], "categories": CATEGORIES}, "has no annotations, so it is a file of another kind: get LVIS v1"),
        ([], r"is \[\]: it must be an object: get LVIS v1"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=message):
            prepare(source, output)
    path.write_text(json.dumps(content))
    monkeypatch.setattr(prepare_ovlvis, "FULL_SET", {"train": 3, "val": 1})
    with pytest.raises(UserError, match="all 3 images, but class aerosol_can is not on 0 of them"):
        prepare(source, output)
    path.unlink()
    with pytest.raises(UserError, match=r"lacks lvis/lvis_v1_train.json: get LVIS v1"):
        prepare(source, output)
    path.write_text(json.dumps(content))
    (source / "coco/val2017").rmdir()
    with pytest.raises(UserError, match="lacks coco/val2017, and so does --output"):
        prepare(source, output.parent / "new")
    assert RARE in LVIS_RARE_IDS
