"""Caption files: records, what is skipped, sizes from headers, mistakes told in one sentence."""

import json
import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from clim.data.captions import load_captions_json, register_captions
from clim.errors import UserError

CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]


def image(identifier, **fields):
    return {
        "id": identifier,
        "file_name": f"{identifier}.jpg",
        "height": 20,
        "width": 30,
        "captions": ["A dog."],
        "pos_category_ids": [18],
    } | fields


def write(folder, images, **fields):
    path = folder / "captions.json"
    path.write_text(json.dumps({"images": images, "categories": CATEGORIES, "annotations": []} | fields))
    return path


def test_a_record_has_captions_and_contiguous_tags(tmp_path):
    path = write(tmp_path, [image(7, captions=["A dog.", "It runs. "], pos_category_ids=[18, 90])])
    assert load_captions_json(path, tmp_path) == [
        {
            "file_name": str(tmp_path / "7.jpg"),
            "height": 20,
            "width": 30,
            "image_id": 7,
            "captions": ["A dog.", "It runs. "],
            "tags": [1, 2],  # categories 1, 18, 90 count from 0 in ascending order, however the file lists them
        }
    ]


def test_a_given_vocabulary_decides_the_indices(tmp_path):
    path = write(tmp_path, [image(7)])
    (record,) = load_captions_json(path, tmp_path, category_index={17: 15, 18: 16})
    assert record["tags"] == [16]


def test_images_without_captions_are_skipped_and_counted(tmp_path, caplog):
    images = [image(1), image(2, captions=[]), image(3, captions=[" \n", "A cat."]), image(4, captions=[""])]
    del images[1]["captions"]
    with caplog.at_level(logging.INFO, logger="clim"):
        records = load_captions_json(write(tmp_path, images), tmp_path)
    assert [(r["image_id"], r["captions"]) for r in records] == [(1, ["A dog."]), (3, ["A cat."])]
    assert "2 images" in caplog.text and "skipped 2 without" in caplog.text


def test_a_caption_file_without_tags(tmp_path):
    untagged = image(1)
    del untagged["pos_category_ids"]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": [untagged]}))
    assert load_captions_json(path, tmp_path)[0]["tags"] == []


def test_cocos_own_file_keeps_captions_apart(tmp_path):
    images = [image(i) for i in (1, 2, 3)]
    for entry in images:
        del entry["captions"], entry["pos_category_ids"]
    annotations = [
        {"id": n, "image_id": i, "caption": c} for n, (i, c) in enumerate([(2, "A cat."), (1, "B."), (2, "C.")])
    ]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    records = load_captions_json(path, tmp_path)
    assert [(r["image_id"], r["captions"], r["tags"]) for r in records] == [(1, ["B."], []), (2, ["A cat.", "C."], [])]


def test_relative_and_absolute_file_names(tmp_path):
    absolute = str(tmp_path / "elsewhere.jpg")
    images = [image(1, file_name="part/1.jpg"), image(2, file_name=absolute)]
    records = load_captions_json(write(tmp_path, images), tmp_path / ".")
    assert [r["file_name"] for r in records] == [str(tmp_path / "part/1.jpg"), absolute]


def test_missing_sizes_come_from_the_header_upright(tmp_path):
    plain, sideways = image(1), image(2)
    for record in plain, sideways:
        del record["height"], record["width"]
    picture = Image.new("RGB", (30, 20))
    picture.save(tmp_path / "1.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    picture.save(tmp_path / "2.jpg", exif=exif)
    records = load_captions_json(write(tmp_path, [plain, sideways]), tmp_path)
    assert [(r["height"], r["width"]) for r in records] == [(20, 30), (30, 20)]


def test_headers_are_not_read_where_sizes_are_given(tmp_path):
    assert len(load_captions_json(write(tmp_path, [image(1)]), tmp_path)) == 1  # there is no 1.jpg


def test_unreadable_headers_are_skipped_with_a_warning(tmp_path, caplog):
    lost, broken = image(2), image(3)
    for record in lost, broken:
        del record["width"]
    (tmp_path / "3.jpg").write_bytes(b"no picture")
    records = load_captions_json(write(tmp_path, [image(1), lost, broken]), tmp_path)
    assert [r["image_id"] for r in records] == [1]
    assert f"skipped 2 unreadable images, first {tmp_path / '2.jpg'}" in caplog.text
    with pytest.raises(UserError, match="2.jpg cannot be read"):
        load_captions_json(write(tmp_path, [lost]), tmp_path)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(UserError, match=r"none.json not found: make it with: python datasets/prepare_ovcoco.py"):
        load_captions_json(tmp_path / "none.json", tmp_path)
    with pytest.raises(UserError, match="make it with: make tea$"):
        load_captions_json(tmp_path / "none.json", tmp_path, made_by="make tea")


def test_mistakes_are_told(tmp_path):
    good = write(tmp_path, [image(1)])
    with pytest.raises(UserError, match="image folder .*nowhere not found"):
        load_captions_json(good, tmp_path / "nowhere")
    with pytest.raises(UserError, match="image 1 of .* has tag 17, which is none of this data set's 3 categories"):
        load_captions_json(write(tmp_path, [image(1, pos_category_ids=[18, 17])]), tmp_path)
    with pytest.raises(UserError, match=r"gives no image with a caption \(no images\[\*\].captions\)"):
        load_captions_json(write(tmp_path, [{"id": 1, "file_name": "1.jpg"}]), tmp_path)  # COCO's own file
    with pytest.raises(UserError, match="gives no image with a caption"):
        load_captions_json(write(tmp_path, []), tmp_path)
    broken = tmp_path / "broken.json"
    broken.write_text('{"images": [')
    with pytest.raises(UserError, match="broken.json is not valid json"):
        load_captions_json(broken, tmp_path)
    broken.write_text("[]")
    with pytest.raises(UserError, match="is no caption file"):
        load_captions_json(broken, tmp_path)


@pytest.fixture
def name():
    yield "test_captions_of_a_user"
    if "test_captions_of_a_user" in DatasetCatalog:
        DatasetCatalog.remove("test_captions_of_a_user")
        MetadataCatalog.remove("test_captions_of_a_user")


def test_register_captions_reads_under_the_data_root_when_asked(tmp_path, monkeypatch, name):
    register_captions(name, "mine/captions.json", "mine", thing_classes=["person", "dog", "toothbrush"])
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine", [image(1)])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (record,) = DatasetCatalog.get(name)
    assert record["file_name"] == str(tmp_path / "mine/1.jpg") and record["tags"] == [1]
    assert MetadataCatalog.get(name).thing_classes == ["person", "dog", "toothbrush"]


def test_register_captions_refuses_a_name_that_is_taken(name):
    register_captions(name, "a.json", "a")
    with pytest.raises(UserError, match="registered already"):
        register_captions(name, "b.json", "b")
    assert MetadataCatalog.get(name).json_file == "a.json"
