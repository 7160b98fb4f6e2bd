"""Boxes of YOLO and VOC, captions of tables and of text files: values by hand, and mistakes in one sentence."""

import logging
import os

import pytest
from detectron2.structures import BoxMode
from PIL import Image

from clim.data.formats import read_caption_files, read_caption_table, read_table, read_voc, read_yolo, voc_classes
from clim.errors import UserError


@pytest.fixture
def images(tmp_path):
    """A folder with a.jpg, "sub dir/ü.x.PNG" and none.jpg of 40 x 20 px, and files that are no images."""
    for name in ("a.jpg", "sub dir/ü.x.PNG", "none.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20)).save(path)
    (tmp_path / "images/readme.md").touch()
    return tmp_path / "images"


@pytest.fixture
def label(tmp_path):
    """``label(name, text)`` writes labels/name and returns the folder labels."""

    def write(name, text):
        path = tmp_path / "labels" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8-sig"))
        return str(tmp_path / "labels")

    return write


def voc(*objects):
    tags = ("xmin", "ymin", "xmax", "ymax")
    boxes = [(name, "".join(f"<{t}>{v}</{t}>" for t, v in zip(tags, box, strict=True))) for name, box in objects]
    polygon = "<polygon><x1>9</x1></polygon>"  # damaged, and not read
    parts = (f"<object><name>{name}</name><bndbox>{box}</bndbox>{polygon}</object>" for name, box in boxes)
    return f"<annotation>{''.join(parts)}</annotation>"


FORMS = {
    ".txt": (read_yolo, {0: 0, 1: 1}, "1 .5 .5 .5 1\n\n0 .25 .25 .5 .25 .5 1\n", "0 0.5 0.5 1 1"),
    ".xml": (read_voc, {"dog": 0, "cat": 1}, voc((" cat ", (11, 1, 30, 20)), ("dog", (1, 6, 20.5, 20))),
             voc(("dog", (1, 1, 40, 20)))),
}  # fmt: skip


@pytest.mark.parametrize("suffix", FORMS)
def test_boxes_are_pixels_and_images_without_a_file_have_none(images, label, suffix, caplog):
    read, index, two, one = FORMS[suffix]
    label(f"sub dir/ü.x{suffix}", one)
    folder = label(f"a{suffix}", two)
    (images / "zz.jpg").write_bytes(b"no image")
    with caplog.at_level(logging.INFO, logger="clim"):
        records = read(folder, str(images), index=index, remedy="make tea")
    names = ["a.jpg", "none.jpg", "sub dir/ü.x.PNG"]
    same = {"height": 20, "width": 40}
    assert [{k: r[k] for k in ("file_name", "height", "width", "image_id")} for r in records] == [
        same | {"file_name": str(images / name), "image_id": i} for i, name in enumerate(names)
    ]
    second = [10, 5, 10, 15] if suffix == ".txt" else [0, 5, 20.5, 15]  # a polygon; VOC counts pixels from 1
    boxes = {"a.jpg": [(1, [10, 0, 20, 20]), (0, second)], "none.jpg": [], "sub dir/ü.x.PNG": [(0, [0, 0, 40, 20])]}
    for record, name in zip(records, names, strict=True):
        assert [(a["category_id"], a["bbox"]) for a in record["annotations"]] == boxes[name]
        assert all(a["bbox_mode"] == BoxMode.XYWH_ABS for a in record["annotations"])
    assert "skipped 1 unreadable images, first" in caplog.text and "zz.jpg" in caplog.text
    assert "Loaded 3 images (1 without a file) with 3 boxes" in caplog.text


@pytest.mark.parametrize(
    "suffix, text, message",
    [
        (".txt", "2 .5 .5 1 1", "line 1 of .*labels/a.txt has class 2, .* add it to names"),
        (".txt", "0 .5 .5 1 1\n\n-1 .5 .5 1 1", "line 3 of .*labels/a.txt is '-1 .*the class '-1' must be a number"),
        (".txt", "0 .5 .5 1", "line 1 of .*labels/a.txt is .*: 3 numbers follow the class, but 4 are a box"),
        (".txt", "0 .5 nan 1 1", "line 1 of .*labels/a.txt is .*: nan is no part"),
        (".txt", "0 .5 .5 -.1 1", "line 1 of .*labels/a.txt is .*: a box has no negative width"),
        (".txt", "dog .5 .5 1 1", "line 1 of .*labels/a.txt is .*: the class 'dog' must be a number"),
        (".xml", voc(("cow", (1, 1, 2, 2))), "the name of an object of .*labels/a.xml is 'cow', but it is none of"),
        (".txt", "0 50 40 20 10", "line 1 of .*labels/a.txt is .*: 50 is no part of an image's width or height"),
        (".txt", "0 .5 .5 .2 .2 .5 .5 2", "line 1 of .*labels/a.txt is .*: 7 numbers follow the class"),  # a key point
        (".xml", voc(("dog", (9, 1, 2, 2))), "labels/a.xml cannot be read .xmin of an object is larger than its xmax"),
        (".xml", "<annotation>", "labels/a.xml cannot be read"),
        (".xml", "<html/>", "labels/a.xml begins with <html> in place of <annotation>"),
        (".xml", '<?xml version="1.0" encoding="x"?><annotation/>', "labels/a.xml cannot be read .unknown encoding"),
        (".xml", "<annotation><object><name>dog</name></object></annotation>", "labels/a.xml cannot be read .*bndbox"),
    ],
)
def test_broken_labels_are_named(images, label, suffix, text, message):
    read, index, _, _ = FORMS[suffix]
    with pytest.raises(UserError, match=message):
        read(label(f"a{suffix}", text), str(images), index=index, remedy="make tea")


def test_a_folder_in_place_of_labels_is_named(images, label):
    folder = label("b.txt", "0 .5 .5 1 1")
    os.mkdir(os.path.join(folder, "a.txt"))
    with pytest.raises(UserError, match="labels/a.txt is a folder, a pipe or a device, but must be a file: make tea"):
        read_yolo(folder, str(images), index={0: 0}, remedy="make tea")


def test_folders_that_do_not_belong_together(images, label, tmp_path):
    folder = label("b.txt", "0 .5 .5 1 1")
    with pytest.raises(UserError, match="No image of .*images has a .txt file in .*labels: make tea"):
        read_yolo(folder, str(images), index={0: 0}, remedy="make tea")
    with pytest.raises(UserError, match="There is no image in .*labels: an image ends in .bmp"):
        read_yolo(folder, folder, index={0: 0}, remedy="make tea")
    with pytest.raises(UserError, match="image folder .*nowhere not found"):
        read_yolo(folder, str(tmp_path / "nowhere"), index={0: 0}, remedy="make tea")


def test_classes_of_voc_are_the_names_of_its_objects(label):
    label("a.xml", voc(("dog", (1, 1, 2, 2)), ("cat", (1, 1, 2, 2))))
    folder = label("sub/b.xml", voc((" dog", (1, 1, 2, 2))))
    assert voc_classes(folder) == {"dog", "cat"}
    for broken in ("<annotation>", "<annotation>\0</annotation>", '<!DOCTYPE a [<!ENTITY x "y">]><annotation/>'):
        label("c.xml", broken)
        with pytest.raises(UserError, match="c.xml cannot be read"):
            voc_classes(folder)


def test_boxes_beyond_their_images_are_counted(images, label, caplog):
    folder = label("a.txt", "0 .95 .5 .2 .2\n0 .51 .5 1 1\n")
    records = read_yolo(folder, str(images), index={0: 0}, remedy="make tea")
    assert records[0]["annotations"][0]["bbox"] == pytest.approx([34, 8, 8, 4])
    assert f"{folder}: 1 boxes reach beyond their images, first in {images / 'a.jpg'}" in caplog.text


# ---- captions


@pytest.mark.parametrize(
    "text, captions",
    [
        ("a.jpg\ta dog\nb c.jpg\t a \"cat\", two\na.jpg\tone more\nd.jpg\t \n",
         {"a.jpg": ["a dog", "one more"], "b c.jpg": ['a "cat", two']}),
        ("caption\tfile\na dog\ta.jpg", {"a.jpg": ["a dog"]}),
        ('image,caption\r\na.jpg,"a dog, brown"\r\n\r\nü.jpg,two\nb.jpg,"two\nlines"',
         {"a.jpg": ["a dog, brown"], "ü.jpg": ["two"], "b.jpg": ["two\nlines"]}),
        ('image;caption\na.jpg;"a dog; brown"', {"a.jpg": ["a dog; brown"]}),
        ("id,Caption,Filename\n1,a dog,a.jpg", {"a.jpg": ["a dog"]}),
        ("filepath\ttitle\nx/a.jpg\ta dog", {"x/a.jpg": ["a dog"]}),  # open_clip's
        ("1_2.jpg#0\ta dog .\n1_2.jpg#1\ta , b\na#1.jpg\tc", {"1_2.jpg": ["a dog .", "a , b"], "a#1.jpg": ["c"]}),
        ("image_name| comment_number| comment\na.jpg| 0| Two, young\n", {"a.jpg": ["Two, young"]}),  # Flickr30k's
    ],
)  # fmt: skip
def test_tables_of_many_hands(tmp_path, text, captions):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "a.txt").write_bytes(text.encode(encoding))
        assert read_table(tmp_path / "a.txt", remedy="make tea") == captions


@pytest.mark.parametrize(
    "text, message",
    [
        (b"a.jpg\tx\nb.jpg x", "line 2 of .*a.csv has 1 columns: give FILE<TAB>CAPTION"),
        (b"image,caption\na.jpg,x,y", "line 2 of .*a.csv has 3 columns: give 2 as the first line"),
        (b"image,caption\na.jpg,\"one\nb.jpg,two", "line 2 of .*a.csv cannot be read .*: make tea"),
        (b"image,caption\na.jpg,\"one\nb.jpg,\"two\"\n", "line 2 of .*a.csv cannot be read .*: make tea"),
        (b"a.jpg\tx\n \ty", "line 2 of .*a.csv names no file"),
        (b"a.jpg,x", 'first line of .*a.csv does not name the columns: write "image,caption"'),
        (b"a.jpg\tB\xe4r", "a.csv is not text in UTF-8 .*: make tea"),
        (b"image,caption\na.jpg,\"" + b"x" * 140_000, "line 2 of .*a.csv cannot be read .*: make tea"),
    ],
)  # fmt: skip
def test_broken_tables_are_named(tmp_path, text, message):
    (tmp_path / "a.csv").write_bytes(text)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / "a.csv", remedy="make tea")


def test_pairs_of_tables_and_of_text_files(images, label, tmp_path, caplog):
    (tmp_path / "a.tsv").write_text("a.jpg\ta dog\nsub dir/ü.x.PNG\ta cat\na.jpg\tone more\ngone.jpg\tx\n", "utf-8")
    label("sub dir/ü.x.txt", "a cat\n")
    label("none.txt", " \n")
    files = read_caption_files(label("a.txt", "a dog\n\none more\n"), str(images), remedy="make tea")
    table = read_caption_table(str(tmp_path / "a.tsv"), str(images), remedy="make tea")
    expected = {"a.jpg": ["a dog", "one more"], "sub dir/ü.x.PNG": ["a cat"]}
    for records in (files, table):
        assert {r["file_name"]: r["captions"] for r in records} == {str(images / k): v for k, v in expected.items()}
        assert all((r["height"], r["width"], r["tags"]) == (20, 40, []) for r in records)
        assert len({r["image_id"] for r in records}) == 2
    assert f"skipped 1 unreadable images, first {images / 'gone.jpg'}" in caplog.text
    with pytest.raises(UserError, match="image folder .*nowhere not found"):
        read_caption_table(str(tmp_path / "a.tsv"), str(tmp_path / "nowhere"), remedy="make tea")
    (tmp_path / "a.tsv").write_text("")
    with pytest.raises(UserError, match="a.tsv gives no image with a caption .*: make tea"):
        read_caption_table(str(tmp_path / "a.tsv"), str(images), remedy="make tea")
