"""datasets/prepare_ovcoco.py on a COCO of six images: every file's content, links, repetition, mistakes."""

import json
import os
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

import prepare_ovcoco
from clim.data.categories import BASE_IDS, COCO_CATEGORIES, NOVEL_IDS
from clim.errors import UserError
from prepare_ovcoco import prepare

COCO_80 = [{"supercategory": "s", "id": key, "name": name} for key, name in COCO_CATEGORIES]
PERSON, DOG, CAT, HOT_DOG, TOOTHBRUSH = 1, 18, 17, 58, 90  # base, novel, novel, unused, base
# (annotation id, image id, category id, crowd)
TRAIN = [(11, 1, PERSON, 0), (12, 1, DOG, 0), (13, 2, DOG, 0), (14, 3, TOOTHBRUSH, 1), (15, 1, PERSON, 0)]
VAL = [(21, 4, PERSON, 0), (22, 4, CAT, 1), (23, 5, DOG, 0), (24, 6, HOT_DOG, 0)]
SENTENCES = [
    (1, "A dog."), (1, "Two dogs, one hot dog"), (2, "Grass under the sky"), (3, "a woman and her toothbrush here"),
    (1, "the man's dog\n"),
]  # fmt: skip
ZERO_SHOT = ("train2017_seen", "val2017_all", "val2017_seen", "val2017_unseen")
JSONS = {
    *(f"zero-shot/instances_{part}_2{end}.json" for part in ZERO_SHOT for end in ("", "_oriorder")),
    "zero-shot/instances_train2017_seen_2_oriorder_cat_info.json",
    *(f"wusize/instances_{part}.json" for part in ("train2017_base", "val2017_base", "val2017_novel")),
    (TAGGED := "annotations/captions_train2017_tags_allcaps.json"),
}


def images(*ids):
    return [
        {"license": 3, "file_name": f"{i:012}.jpg", "height": 40, "width": 50, "date_captured": "x", "id": i}
        for i in ids
    ]


def instances(image_ids, rows):
    same = {"segmentation": [[1.5, 2.0, 9.0, 2.0, 9.0, 11.0]], "area": 30.0, "bbox": [1.5, 2.0, 7.5, 9.0]}
    rows = [same | dict(zip(("id", "image_id", "category_id", "iscrowd"), row, strict=True)) for row in rows]
    images_ = images(*image_ids)
    return {"info": {"year": 2017}, "images": images_, "annotations": rows, "categories": COCO_80[::-1]}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    for name in ("annotations", "train2017", "val2017"):
        (folder / name).mkdir(parents=True)
    (folder / "train2017/000000000001.jpg").write_bytes(b"photo")
    captions = [{"image_id": i, "id": 100 + n, "caption": text} for n, (i, text) in enumerate(SENTENCES)]
    for name, content in (
        ("instances_train2017", instances((3, 1, 2), TRAIN)),
        ("instances_val2017", instances((4, 5, 6), VAL)),
        ("captions_train2017", {"info": {}, "images": images(3, 1, 2), "annotations": captions}),
    ):
        (folder / f"annotations/{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def output(tmp_path):
    return tmp_path / "datasets"


def read(output, name):
    return json.loads((output / "coco" / name).read_text())


def image_ids(content):
    return [image["id"] for image in content["images"]]


def annotation_ids(content):
    return [annotation["id"] for annotation in content["annotations"]]


def snapshot(folder):
    """{path: (content or link target, time of writing)} of everything in a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[path] = os.readlink(path)
        elif path.is_file():
            found[path] = (path.read_bytes(), path.stat().st_mtime_ns)
    return found


# ---- contents ----


def test_every_file_is_made_and_reported_by_the_command_too(source, output, monkeypatch, capsys):
    report = prepare(source, output)
    assert set(report) == JSONS and all((output / "coco" / name).is_file() for name in report)
    assert report["zero-shot/instances_train2017_seen_2.json"]["images"] == 2
    monkeypatch.setenv("DETECTRON2_DATASETS", str(output))  # the default of --output
    prepare_ovcoco.main(["--source", str(source)])
    printed = capsys.readouterr().out
    assert all(name in printed and row["sha256"] in printed for name, row in report.items())


def test_train_seen_keeps_base_annotations_with_crowds_and_unchanged_ids(source, output):
    prepare(source, output)
    content = read(output, "zero-shot/instances_train2017_seen_2_oriorder.json")
    original = json.loads((source / "annotations/instances_train2017.json").read_text())
    # Image 2 shows a novel object only, image 3 a base crowd only. Image 1 stays; its dog is unlabelled.
    assert content["images"] == [original["images"][0], original["images"][1]] == images(3, 1)
    assert content["annotations"] == [original["annotations"][i] for i in (0, 3, 4)]
    assert annotation_ids(content) == [11, 14, 15]
    assert content["categories"] == COCO_80
    assert list(content) == list(original) and content["info"] == original["info"]
    info = read(output, "zero-shot/instances_train2017_seen_2_oriorder_cat_info.json")
    counts = {PERSON: (1, 2), TOOTHBRUSH: (1, 1)}
    assert info == [
        c | dict(zip(("image_count", "instance_count"), counts.get(c["id"], (0, 0)), strict=True)) for c in COCO_80
    ]


def test_splits_and_the_categories_of_files_before_oriorder(source, output):
    prepare(source, output)
    for name, expected_images, expected_annotations in (
        ("zero-shot/instances_val2017_all_2_oriorder", [4, 5], [21, 22, 23]),
        ("zero-shot/instances_val2017_seen_2_oriorder", [4], [21]),
        ("zero-shot/instances_val2017_unseen_2_oriorder", [4, 5], [22, 23]),
        ("wusize/instances_train2017_base", [3, 1, 2], [11, 14, 15]),  # CLIM's files keep all images
        ("wusize/instances_val2017_base", [4, 5, 6], [21]),
        ("wusize/instances_val2017_novel", [4, 5, 6], [22, 23]),
    ):
        content = read(output, f"{name}.json")
        assert (image_ids(content), annotation_ids(content)) == (expected_images, expected_annotations), name
        assert content["categories"] == COCO_80  # by id, whatever the order in the source
    for part in ZERO_SHOT:
        plain, reordered = (read(output, f"zero-shot/instances_{part}_2{end}.json") for end in ("", "_oriorder"))
        kept = {"all": BASE_IDS + NOVEL_IDS, "unseen": NOVEL_IDS}.get(part.split("_")[1], BASE_IDS)
        listed = [c | {"split": "seen" if c["id"] in BASE_IDS else "unseen"} for c in COCO_80 if c["id"] in kept]
        assert plain == reordered | {"categories": listed}


def test_captions_with_tags_by_the_released_rule(source, output):
    prepare(source, output)
    content = read(output, TAGGED)
    assert list(content) == ["images", "categories", "annotations"] and content["annotations"] == []
    woman = {"captions": ["a woman and her toothbrush here"], "pos_category_ids": [PERSON, TOOTHBRUSH]}
    # In file order "A dog. Two dogs, one hot dog the man's dog\n": "hot dog" is a dog, "man's" nobody.
    dog = {"captions": ["A dog.", "Two dogs, one hot dog", "the man's dog\n"], "pos_category_ids": [DOG]}
    three, one = images(3, 1)
    assert content["images"] == [three | woman, one | dog]  # image 2 names nothing
    by_id = {category["id"]: category for category in content["categories"]}
    assert list(by_id) == [c["id"] for c in COCO_80]
    assert by_id[HOT_DOG] == COCO_80[52] | {"synonyms": ["sausage"], "frequency": "f"}
    assert by_id[6]["synonyms"][0] == "bus_(vehicle)"


def test_the_catalogue_reads_what_was_made(source, output, monkeypatch):
    prepare(source, output)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(output))
    numbers = {
        "coco_zeroshot_train_oriorder": (2, 3), "coco_generalized_zeroshot_val": (2, 3), "coco_zeroshot_val": (2, 2),
        "coco_not_zeroshot_val": (1, 1), "coco_ovd_base_train": (3, 3), "coco_ovd_base_val": (3, 1),
        "coco_ovd_novel_val": (3, 2),
    }  # fmt: skip
    for name, expected in numbers.items():
        records = DatasetCatalog.get(name)
        assert (len(records), sum(len(r["annotations"]) for r in records)) == expected, name
    captions = {r["image_id"]: r["tags"] for r in DatasetCatalog.get("coco_caption_train_tags")}
    assert captions == {3: [0, 79], 1: [16]}
    record = DatasetCatalog.get("coco_zeroshot_train_oriorder")[0]
    assert Path(record["file_name"]).read_bytes() == b"photo"


# ---- links, copies, repetition ----


def test_links_or_copies_of_a_source_that_is_only_read(source, output):
    before = snapshot(source)
    prepare(source, output)
    names = ("train2017", "val2017", "annotations/instances_train2017.json")
    assert all((output / "coco" / name).is_symlink() for name in names)
    assert all((output / "coco" / name).resolve() == source / name for name in names)
    assert not (output / "coco/annotations").is_symlink()
    assert not (output / "coco/annotations/captions_val2017.json").exists()  # optional, absent here
    prepare(source, output, copy=True)  # replaces the links
    assert not any((output / "coco" / name).is_symlink() for name in names)
    assert (output / "coco/train2017/000000000001.jpg").read_bytes() == b"photo"
    assert (output / "coco" / names[2]).read_bytes() == (source / names[2]).read_bytes()
    assert snapshot(source) == before and not list(output.rglob("*.partial"))


def test_a_second_run_changes_nothing(source, output, tmp_path):
    first = prepare(source, output)
    before = snapshot(output)
    assert prepare(source, output) == first and snapshot(output) == before
    elsewhere = prepare(source, tmp_path / "again")
    assert {n: row["sha256"] for n, row in first.items()} == {n: row["sha256"] for n, row in elsewhere.items()}


def test_changed_input_rule_or_output_is_made_again_after_an_interrupted_run_too(source, output, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_ovcoco, "tag_captions", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, output)
    assert not (output / "coco" / TAGGED).exists()
    name = "wusize/instances_val2017_novel.json"
    (output / "coco" / name).write_text("spoiled")
    prepare(source, output)
    assert annotation_ids(read(output, name)) == [22, 23] and (output / "coco" / TAGGED).exists()
    (output / "coco" / name).unlink()
    (source / "annotations/instances_val2017.json").write_text(json.dumps(instances((4, 5, 6), VAL[:2])))
    prepare(source, output)
    assert annotation_ids(read(output, name)) == [22]
    report, tagged = prepare(source, output, rule="words"), read(output, TAGGED)
    assert report[TAGGED]["images"] == len(tagged["images"]) == 2
    assert tagged["images"][1]["pos_category_ids"] == [PERSON, DOG, HOT_DOG]


def test_in_place(source, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    source.rename(root / "coco")
    originals = snapshot(root)
    prepare(root / "coco", root)
    assert originals.items() <= snapshot(root).items()
    assert not (root / "coco/train2017").is_symlink()
    assert image_ids(read(root, "zero-shot/instances_train2017_seen_2.json")) == [3, 1]


# ---- mistakes ----


def test_an_incomplete_source_and_other_categories_are_refused(source, output):
    path = source / "annotations/instances_val2017.json"
    original = path.read_text()
    path.write_text(json.dumps(instances((4, 5, 6), VAL) | {"categories": COCO_80[:65]}))
    with pytest.raises(UserError, match="instances_val2017.json does not list COCO's 80 categories"):
        prepare(source, output)
    path.write_text(original)
    with pytest.raises(UserError, match=f"did you mean --source {source.parent / 'root/coco'}"):
        (source.parent / "root").mkdir()
        (source.parent / "root/coco").symlink_to(source)
        prepare(source.parent / "root", output)
    (source / "annotations/captions_train2017.json").unlink()
    (source / "val2017").rmdir()
    with pytest.raises(UserError, match=r"lacks annotations/captions_train2017.json, val2017: get COCO 2017"):
        prepare(source, output)
    assert not output.exists()


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_full_set_with_other_counts_is_refused(source, output, monkeypatch, part):
    # With three images as "the full set": 2 of train and 2 of val remain.
    right = {"train": (3, 2), "val": (3, 2)}
    monkeypatch.setattr(prepare_ovcoco, "FULL_SET", right)
    prepare(source, output)
    monkeypatch.setattr(prepare_ovcoco, "FULL_SET", right | {part: (3, 1)})
    before = snapshot(output)
    with pytest.raises(UserError, match=f"{part}2017 has all 3 images but the split keeps 2 instead of 1"):
        prepare(source, output, rule="words")
    assert snapshot(output) == before


def test_files_of_other_scripts_are_not_overwritten(source, output):
    (output / "coco/zero-shot").mkdir(parents=True)
    theirs = output / "coco/zero-shot/instances_val2017_all_2.json"
    theirs.write_text('{"categories": [{"embedding": {}}]}')
    with pytest.raises(UserError, match="instances_val2017_all_2.json is there already, differs"):
        prepare(source, output)
    assert theirs.read_text() == '{"categories": [{"embedding": {}}]}'
    theirs.unlink()
    same, other = (output / "coco/annotations" / f"instances_{part}2017.json" for part in ("train", "val"))
    for path, content in ((same, (source / "annotations" / same.name).read_text()), (other, "{}")):
        path.unlink(missing_ok=True)
        path.write_text(content)
    with pytest.raises(UserError, match="instances_val2017.json is there already and differs"):
        prepare(source, output)
    assert other.read_text() == "{}" and not same.is_symlink()


def test_links_into_the_source_and_a_read_only_source_are_not_written_to(source, output, tmp_path):
    (output / "coco").mkdir(parents=True)
    (output / "coco/annotations").symlink_to(source / "annotations")
    before = snapshot(source)
    with pytest.raises(UserError, match="annotations lies in the source .* which is only read"):
        prepare(source, output)
    with pytest.raises(UserError, match="lies in the source"):
        prepare(source, source)  # --output is the data root, not coco/
    (tmp_path / "root").mkdir()
    (tmp_path / "root/coco").symlink_to(source)
    source.chmod(0o555)
    try:
        with pytest.raises(UserError, match="is read-only: choose another --output"):
            prepare(source, tmp_path / "root")
    finally:
        source.chmod(0o755)
    assert snapshot(source) == before


def test_what_others_have_made_is_not_replaced(source, output):
    prepare(source, output)
    for content in ("", "{", "[]", '{"files": 3}'):
        (output / "coco" / prepare_ovcoco.STAMP).write_text(content)
        with pytest.raises(UserError, match=f"{prepare_ovcoco.STAMP}.*: remove it, and move away"):
            prepare(source, output)
    (output / "coco" / prepare_ovcoco.STAMP).unlink()
    photos = output / "coco/train2017"
    photos.unlink()
    photos.symlink_to(output)
    with pytest.raises(UserError, match="is a link to another place"):
        prepare(source, output)
    assert photos.resolve() == output.resolve()
