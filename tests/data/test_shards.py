"""Pairs in tar shards: what is written comes back, from any process; stale, absent and damaged indices are named."""

import io
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clim.data.datasets import register_own_sets
from clim.data.images import UnreadableImage, read_image
from clim.data.shards import read_shards
from clim.errors import UserError
from shards.build import Tagging, build_index

WORDS = ("dog", "cat", "kite")
TAGGING = Tagging(
    "words", [{"id": 10 * i, "name": name} for i, name in enumerate(WORDS)],
    lambda captions: [10 * i for i, name in enumerate(WORDS) if name in captions[0]], True,
)  # fmt: skip


# ---- records


def test_both_layouts_and_every_kind_of_image_come_back(indexed, tmp_path, encoded, pair):
    """img2dataset: json beside jpg and txt, its size is not believed. The copy of CC3M: no json. Keys with gaps."""
    said = {"caption": "not this one", "status": "success", "width": 9, "height": 9, "key": "000000025"}
    first = [*pair("000000025", "a dog"), ("000000025.json", json.dumps(said).encode())]
    first += [("000000031.json", b'{"caption": "a cat"}'), ("000000031.jpg", encoded((50, 20), mode="L"))]
    second = [*pair("000000007", mode="CMYK"), *pair("000000003", "x", orientation=6)]
    second += [*pair("000000900", ext="png"), *pair("000000901", ext="webp")]
    second += pair("000000902", ext="jpeg", size=(12, 99))
    records = indexed({"b.tar": first, "sub/a.tar": second}, tagging=TAGGING)
    assert [r["image_id"] for r in records] == [25, 31, 7, 3, 900, 901, 902]
    assert [r["captions"] for r in records][:4] == [["a dog"], ["a cat"], ["a dog"], ["x"]]
    assert [r["tags"] for r in records][:4] == [[0], [1], [0], []]
    sizes = [(30, 40), (20, 50), (30, 40), (40, 30), (30, 40), (30, 40), (99, 12)]
    assert [(r["height"], r["width"]) for r in records] == sizes
    members = dict(first + second)
    for record in records:
        place, member = record["file_name"].split("#")
        assert place.startswith(f"tar://{tmp_path}/shards/")
        with PathManager.open(record["file_name"], "rb") as file:
            assert file.read() == members[member]
        decoded = read_image(record["file_name"])
        assert (decoded.height, decoded.width) == (record["height"], record["width"])
    assert records[-1] == records[6] and [records[1], records[2]] == records[1:3]
    with pytest.raises(IndexError):
        records[7]


@pytest.mark.parametrize("keys", [["a", "7"], ["7", "007"], ["1" * 30, "2"]])
def test_keys_that_are_no_different_numbers_give_running_ids(indexed, pair, keys):
    records = indexed({"a.tar": [member for key in keys for member in pair(key)]})
    assert [r["image_id"] for r in records] == list(records.column("image_id")) == [0, 1]


TEXTS = st.text(min_size=1).filter(lambda text: text.replace("\0", " ").strip())


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXTS, st.booleans(), st.lists(st.sampled_from(WORDS), unique=True)), min_size=1, max_size=5))
def test_any_caption_survives(indexed, encoded, pairs):
    """From txt (UTF-8) and from json, whose half surrogate pairs are cleaned; with any tags."""
    members, wanted, image = [], [], encoded((16, 16))
    for i, (text, in_json, words) in enumerate(pairs):
        text += "".join(words)
        data = json.dumps({"caption": text + "\ud800"}) if in_json else text
        members += [(f"{i}.jpg", image), (f"{i}.{'json' if in_json else 'txt'}", data.encode())]
        wanted.append(text.replace("\0", " ") + "\ufffd" * in_json)
    records = indexed({"a.tar": members}, tagging=TAGGING)
    assert [r["captions"] for r in records] == [[text] for text in wanted]
    assert [r["tags"] for r in records] == [[i for i, word in enumerate(WORDS) if word in text] for text in wanted]


def test_workers_reopen_the_maps_and_columns_are_those_of_the_records(indexed, pair):
    records = indexed({"a.tar": [m for i in range(200) for m in pair(f"{i + 5}", size=(20 + i % 7, 23))]})
    again = pickle.loads(pickled := pickle.dumps(records))
    assert len(pickled) < 1000 and list(again) == list(records)
    assert isinstance(again.pairs.base, np.memmap) and isinstance(again.texts.base, np.memmap)
    for name in ("height", "width", "image_id"):
        assert again.column(name).tolist() == [r[name] for r in records]
    numbered = pickle.loads(pickle.dumps(records.numbered(np.arange(1000, 1200))))
    assert [r["image_id"] for r in numbered] == numbered.column("image_id").tolist() == list(range(1000, 1200))
    assert [r["file_name"] for r in numbered] == [r["file_name"] for r in records]


# ---- names of images


def test_a_shard_that_is_gone_or_cut_is_a_damaged_image(indexed, pair):
    record = indexed({"a.tar": pair("a") + pair("b")})[1]
    shard = Path(record["file_name"].removeprefix("tar://").partition("?")[0])
    with open(shard, "r+b") as file:
        file.truncate(3 * 512)
    with pytest.raises(UnreadableImage, match="ends before this image"):
        read_image(record["file_name"])
    shard.unlink()
    with pytest.raises(UnreadableImage, match="missing"):
        read_image(record["file_name"])
    for name, mode in (("tar://a.tar", "rb"), (record["file_name"], "wb")):
        with pytest.raises(OSError, match="OFFSET"):
            PathManager.open(name, mode)


# ---- registered sets


def test_an_own_set_and_the_copy_of_cc3m_are_found_below_the_data_root(root, write_shard, pair):
    for folder, shard in (("mine", "0.tar"), ("cc3m-wds", "cc3m-train-0000.tar")):
        write_shard(root / folder / shard, *pair("12", "a kite"))
    register_own_sets([["set_of_shards", "shards", "mine/index", "mine"]])
    try:
        for name, folder in (("set_of_shards", "mine"), ("cc3m_wds_train_tags", "cc3m-wds")):
            with pytest.raises(UserError, match=rf"{folder}/index/facts.json not found: .*index_pairs.py shards "):
                DatasetCatalog.get(name)
            build_index(root / folder, [p.name for p in (root / folder).glob("*.tar")], root / folder / "index")
            (record,) = DatasetCatalog.get(name)
            assert (record["image_id"], record["captions"], record["tags"]) == (12, ["a kite"], [])
    finally:
        DatasetCatalog.remove("set_of_shards")
        MetadataCatalog.remove("set_of_shards")


def test_a_copied_shard_stays_and_a_changed_one_is_noticed(indexed, pair, tmp_path):
    indexed({"a.tar": pair("1"), "b.tar": pair("2")})
    path = tmp_path / "shards" / "b.tar"

    def opened():
        return read_shards(str(tmp_path / "index"), str(tmp_path / "shards"), remedy="index it")

    os.utime(path, (1, 1))
    assert len(opened()) == 2
    content = path.read_bytes()
    for change in (content + bytes(10240), content.replace(b"a dog", b"a cat"), None):
        path.unlink() if change is None else path.write_bytes(change)
        with pytest.raises(UserError, match="b.tar (has changed since|not found, but).* index it"):
            opened()


def test_damaged_indices_are_named(indexed, pair, tmp_path):
    indexed({"a.tar": pair("1") + pair("2")})
    index = tmp_path / "index"
    shutil.copytree(index, tmp_path / "good")
    facts, pairs = json.loads((index / "facts.json").read_text()), np.load(index / "pairs.npy")

    def changed(**fields):
        return json.dumps(facts | fields).encode()

    def moved(field, value):  # as in an index without checksums
        rows = pairs.copy()
        rows[field][1] = value
        np.save(file := io.BytesIO(), rows)
        return {"pairs.npy": file.getvalue(), "facts.json": changed(checksums={})}

    flipped = (index / "texts.bin").read_bytes().replace(b"dog", b"dig")
    points = "row 1 of pairs.npy points beyond"
    for files, message in (
        ({"facts.json": b"{"}, "not valid json"), ({"facts.json": changed(version=0)}, "version"),
        ({"facts.json": changed(shards=[{"name": 1}])}, r"shards\[0\].name of"), ({"facts.json": b"[]"}, "an object"),
        ({"pairs.npy": None}, "damaged"), ({"pairs.npy": b""}, "damaged"), ({"texts.bin": b""}, "damaged"),
        ({"pairs.npy": b"\x93NUMPY\1\0\1\0{"}, "damaged"),  # half a dictionary
        ({"pairs.npy": (index / "pairs.npy").read_bytes()[:-9]}, "damaged"), ({"texts.bin": b"abc"}, "damaged"),
        ({"pairs.npy": b"".join(npy(np.zeros(2)))}, "damaged"), ({"texts.bin": flipped}, "texts.bin has changed"),
        (moved("offset", 2**62), points), (moved("start", 2**63 - 1), points), (moved("size", -1), points),
        (moved("shard", 1), points), (moved("caption", 10**9), points), (moved("tags", 3), points),
        (moved("height", 0), points),
    ):  # fmt: skip
        shutil.rmtree(index)
        shutil.copytree(tmp_path / "good", index)
        for file, content in files.items():
            (index / file).unlink() if content is None else (index / file).write_bytes(content)
        with pytest.raises(UserError, match=f"{message}.*: index it"):
            read_shards(str(index), str(tmp_path / "shards"), remedy="index it")
    for file in ("pairs.npy", "texts.bin"):
        shutil.rmtree(index)
        shutil.copytree(tmp_path / "good", index)
        (index / file).unlink()
        os.mkfifo(index / file)
        with pytest.raises(UserError, match=f"{file} is missing, or no file"):
            read_shards(str(index), str(tmp_path / "shards"), remedy="index it")


def test_a_pipe_in_place_of_a_shard_is_a_damaged_image(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    for name in (f"tar://{tmp_path}/a.tar?0+9#x.jpg", "tar:///dev/zero?0+999999999999#x.jpg", "tar://x"):
        with pytest.raises(UnreadableImage):
            read_image(name)


def npy(array):
    np.save(file := io.BytesIO(), array)
    yield file.getvalue()
