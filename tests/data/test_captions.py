"""Image-text pairs of jsons and of users' functions: flat records, cleaned texts, and mistakes with their place."""

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clim.data import captions
from clim.data.captions import MOST_CHARACTERS, packed, pairs_of, read_captions
from clim.data.categories import COCO_INDEX
from clim.data.loader import caption_records
from clim.data.schemas import Pair
from clim.errors import UserError

SIZE = {"height": 20, "width": 30}


@pytest.fixture
def read(root):
    """``read(json, index=COCO's)``: records of a json whose images lie in the folder images."""

    def read(path, **index):
        return read_captions(str(path), str(root / "images"), **{"index": COCO_INDEX, "remedy": "make tea"} | index)

    return read


def pair(identifier, *without, **fields):
    entry = {"id": identifier, "file_name": f"{identifier}.jpg", "captions": ["A dog."]} | SIZE | fields
    return {key: value for key, value in entry.items() if key not in without}


def test_a_record_has_captions_and_contiguous_tags(root, write, read):
    texts = ["A dog.", "It runs. "]
    path = write("a.json", pair(7, captions=texts, pos_category_ids=[18.0, 90]), pair(2, file_name="/elsewhere/2.jpg"),
                 categories=[{"id": i, "name": "x"} for i in (90, 1, 18)])  # fmt: skip
    record, elsewhere = read(path, index=None)
    assert record == SIZE | {
        "file_name": str(root / "images/7.jpg"), "image_id": 7, "captions": texts,
        "tags": [1, 2],  # categories 1, 18, 90 count from 0 in ascending order, however the file lists them
    }  # fmt: skip
    assert elsewhere["file_name"] == "/elsewhere/2.jpg"


def test_images_without_captions_are_skipped_and_counted(write, read, caplog):
    images = [pair(1), pair(2, "captions"), pair(3, captions=[" \n", "A cat."]), pair(4, captions=[""])]
    with caplog.at_level(logging.INFO, logger="clim"):
        records = read(write("a.json", *images))
    assert [(r["image_id"], r["captions"], r["tags"]) for r in records] == [(1, ["A dog."], []), (3, ["A cat."], [])]
    assert "2 images" in caplog.text and "skipped 2 without" in caplog.text
    for images in ([], [pair(9, "captions")]):
        with pytest.raises(UserError, match="gives no image with a caption.*: make tea"):
            read(write("a.json", *images))


def test_cocos_own_file_keeps_captions_apart(write, read, caplog):
    texts = enumerate([(2, "A cat."), (1, "B."), (2, "C."), (7, "D.")])
    annotations = [{"id": n, "image_id": i, "caption": caption} for n, (i, caption) in texts]
    path = write("a.json", *(pair(i, "captions") for i in (1, 2, 3)), annotations=annotations)
    records = read(path)
    assert [(r["image_id"], r["captions"], r["tags"]) for r in records] == [(1, ["B."], []), (2, ["A cat.", "C."], [])]
    assert "left out 1 captions whose image_id is not among its images" in caplog.text


def test_missing_sizes_come_from_the_header_upright(root, write, read, caplog):
    path = write("a.json", *(pair(i, "height", "width") for i in (1, 2, 3, 4)))
    image, exif = Image.new("RGB", (30, 20)), Image.Exif()
    image.save(root / "images/1.jpg")
    exif[0x0112] = 6  # rotate by 90 degrees to view
    image.save(root / "images/2.jpg", exif=exif)
    (root / "images/3.jpg").write_bytes(b"no image")
    records = read(path)
    assert [(r["height"], r["width"]) for r in records] == [(20, 30), (30, 20)]
    assert f"skipped 2 unreadable images, first {root / 'images/3.jpg'}" in caplog.text
    with pytest.raises(UserError, match="4.jpg: missing"):
        read(write("a.json", pair(4, "width")))


@pytest.mark.parametrize(
    "content, message",
    [
        ([], r"a.json is \[\]: it must be an object: make tea"),
        ({"annotations": []}, "a.json has no images, so it is a file of another kind: make tea"),
        ({"images": [pair(1), 5]}, r"images\[1\] of .*a.json is 5: it must be an object"),
        ({"images": [pair(1), pair(2, captions=["a", None])]}, r"images\[1\].captions of .* \(id 2\) is .* texts"),
        ({"images": [pair(1), pair(2, captions=[["a"]])]}, r"images\[1\].captions of"),
        ({"images": [pair(1, captions=7)]}, r"images\[0\].captions of"),
        ({"images": [pair(1, height="20")]}, r"images\[0\].height of .* pixels"),
        ({"images": [pair(1, width=-20)]}, r"images\[0\].width of .* pixels"),
        ({"images": [pair(1, width=2**31)]}, r"images\[0\].width of .* pixels"),
        ({"images": [pair(1, "id")]}, r"images\[0\] of .* has no id"),
        ({"images": [pair(1, pos_category_ids=["1"])]}, r"images\[0\].pos_category_ids of .* category ids"),
        ({"images": [pair(1, pos_category_ids=[-1])]}, "image 1 of .*a.json has -1 in pos_category_ids, but"),
        ({"images": [pair(4, "file_name")]}, "image 4 of .*a.json has no file_name"),
        ({"images": [pair(4, file_name=" ")]}, "image 4 of .*a.json has no file_name"),
        ({"images": [pair(1)], "annotations": [{"caption": "x"}]}, r"annotations\[0\] of .* has no image_id"),
        ({"images": [pair(1), pair(1, "captions"), pair(1, "captions", file_name="b.jpg")],
          "annotations": [{"image_id": 1, "caption": "x"}]}, "a.json has the id 1 twice: .*(1|b).jpg and"),
        ({"images": [pair(3), pair(1), pair(2), pair(1, file_name="b.jpg")]},
         r"a.json has the id 1 twice: .*(/1.jpg and .*b.jpg|b.jpg and .*/1.jpg) need ids of their own: make tea"),
        ({"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}, "a.json gives no image with a caption"),
        ({"images": []}, "a.json gives no image with a caption .none of its 0 images has captions.: make tea"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_place(write, read, content, message):
    path = write("a.json")
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read(path)


def test_categories_of_one_id_are_refused_where_they_number_the_tags(write, read):
    categories = [{"id": 1, "name": name} for name in "ab"]
    with pytest.raises(UserError, match="a.json has the id 1 twice: .*: make tea"):
        read(write("a.json", pair(1), categories=categories), index=None)


DAMAGED = {  # caption: what is left of it
    "half an emoji \ud83d": "half an emoji \ufffd", "\udc00 x": "\ufffd x", "a whole \U0001f415": "a whole \U0001f415",
    "ze\0ro": "ze ro", "\0": None, " \n": None,
    "long " * MOST_CHARACTERS: ("long " * MOST_CHARACTERS)[:MOST_CHARACTERS],
}  # fmt: skip


@pytest.mark.parametrize("listed", [True, False])
def test_texts_are_cleaned_and_counted_from_a_json_and_from_a_function(write, read, caplog, listed):
    pairs = [pair(1, captions=list(DAMAGED)), pair(2, captions="A dog.")]
    records = read(write("a.json", *pairs)) if listed else pairs_of(pairs, "x")
    assert [record["captions"] for record in records] == [[text for text in DAMAGED.values() if text], ["A dog."]]
    assert "cleaned 5 captions" in caplog.text
    "".join(records[0]["captions"]).encode()


@given(st.lists(st.text(st.characters(), max_size=9), max_size=4))
def test_sound_texts_stay_and_all_others_can_be_read(texts):
    data, changed = captions._encoded(texts)
    sound = [t for t in texts if t.strip() and "\0" not in t and not any("\ud800" <= c <= "\udfff" for c in t)]
    found = data.decode().split("\0") if data else []
    assert [text for text in found if text in sound] == sound and changed >= len(found) - len(sound)


def test_unknown_sizes_come_from_the_header_and_names_of_no_file_are_skipped(root, write, read, caplog):
    sizes = [{"height": 0}, {"width": None}, {"height": 20.0}]
    names = [{"file_name": "a\0.jpg"}, {"file_name": "\ud83d.jpg"}, {"file_name": "new\nline.jpg"}]
    images = [pair(i, file_name="1.jpg", **size) for i, size in enumerate(sizes)]
    path = write("a.json", *images, *(pair(9 + i, **name) for i, name in enumerate(names)))
    Image.new("RGB", (30, 20)).save(root / "images/1.jpg")
    records = read(path)
    assert [(r["height"], r["width"]) for r in records] == [(20, 30)] * 4
    assert records[3]["file_name"].endswith("images/new\nline.jpg")
    assert "skipped 2 unreadable images" in caplog.text


def test_ids_that_are_no_numbers_become_numbers(read, write, registered):
    path = write("a.json", *(pair(key, file_name=f"{i % 3}.jpg") for i, key in enumerate(["a", 2**70, -5, "a", 1.5])))
    name = registered()
    DatasetCatalog.remove(name)
    DatasetCatalog.register(name, lambda: read(path))
    assert [record["image_id"] for record in caption_records([name])] == [0, 1, 2, 0, 1]


def test_a_function_may_give_values_of_numpy_and_paths(tmp_path):
    given = {"file_name": tmp_path / "a.jpg", "height": np.int64(4), "width": np.float32(5), "image_id": np.uint8(7)}
    (record,) = pairs_of(iter([given | {"captions": np.array(["a", "b"]), "tags": np.array([3, 0]), "more": 1}]), "x")
    wanted = {"file_name": str(tmp_path / "a.jpg"), "height": 4, "width": 5, "image_id": 7}
    assert record == wanted | {"captions": ["a", "b"], "tags": [3, 0]}


@pytest.mark.parametrize(
    "records, message",
    [
        (None, "DATASETS.CAPTIONS x gives NoneType: its function must return a list"),
        ({"a": 1}, "DATASETS.CAPTIONS x gives dict"),
        ([pair(1), None], "DATASETS.CAPTIONS x holds images without captions, first record 1: put pairs into"),
        ([pair(1), pair(2, captions=[3])], r"record 1 of data set x does not fit \(.*captions\[0\]"),
        ([pair(1, tags=[-1])], "data set x has tags .* from 0"),
        ([pair(1, tags=[2**31])], "data set x has tags .* from 0"),
        ([pair(1, "file_name")], "data set x has no file_name"),
        ([], "data set x gives no image with a caption"),
    ],
)
def test_wrong_records_of_a_function_are_named(records, message):
    with pytest.raises(UserError, match=message):
        pairs_of(records, "x")


def test_records_are_a_sequence_that_other_processes_receive_as_bytes(write, read, root):
    """No list of dicts hides in it; a byte-order mark, UTF-16 and half an emoji elsewhere change nothing."""
    path = write("a.json", *(pair(i, captions=[f"ü {i}", "b"], pos_category_ids=[1, 18][: i % 3]) for i in range(5)))
    records, text = read(path), path.read_text()
    plain = list(records)
    assert plain[3] == {"file_name": f"{root}/images/3.jpg", "image_id": 3, "captions": ["ü 3", "b"], "tags": []} | SIZE
    assert plain[2]["tags"] == [0, 16] and records[-1] == plain[4] and records[1:3] == plain[1:3]
    again = pickle.loads(pickle.dumps(records.changed_by(dict).numbered(np.arange(7, 12))))
    assert [record["image_id"] for record in again] == again.column("image_id").tolist() == [7, 8, 9, 10, 11]
    with pytest.raises(IndexError):
        records[5]
    for data in (text.encode("utf-8-sig"), text.encode("utf-16"), text.replace("{", '{"x": "\\ud83d", ', 1).encode()):
        Path(path).write_bytes(data)
        assert list(read(path)) == plain


def test_tags_of_a_pair_are_their_ids_without_an_index():
    (record,) = packed([Pair(3, "/a.jpg", captions="x", height=1, width=2, pos_category_ids=[5.0, 0])], "x", remedy="")
    assert record["tags"] == [5, 0] and record["file_name"] == "/a.jpg"
