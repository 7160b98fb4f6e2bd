"""An index of neighbours comes back as it was saved; one that does not fit the data set is refused."""

import hashlib
import json
import os

import numpy as np
import pytest

from clim.data import partners
from clim.data.partners import load_neighbours
from clim.errors import UserError
from neighbours.search import save_neighbours

RECORDS = [{"image_id": i} for i in (7, 8, 9)]


@pytest.fixture
def saved(tmp_path):
    rows = np.int32([[1, 2], [0, 2], [1, 0]])
    path = tmp_path / "deep" / "index.npy"
    save_neighbours(path, rows, records=RECORDS, by="text", dataset="pairs")
    return path, rows


def test_round_trip_is_memory_mapped_below_the_data_root_too(saved, monkeypatch):
    path, rows = saved
    monkeypatch.setenv("DETECTRON2_DATASETS", str(path.parent))
    for name in (path, "index.npy"):
        index = load_neighbours(name, RECORDS)
        assert isinstance(index, np.memmap)
        np.testing.assert_array_equal(index, rows)
    assert sorted(p.name for p in path.parent.iterdir()) == ["index.json", "index.npy"]


def test_other_images_and_other_tables_are_refused(saved):
    for ids in ([7, 8], [7, 9, 8], [7, 8, 10], [7, 8, 9, 10], []):
        with pytest.raises(UserError, match="built for 3 images of pairs"):
            load_neighbours(saved[0], [{"image_id": i} for i in ids])
    for rows in (
        np.int64([[1], [2], [0]]), np.int32([1, 2, 0]), np.zeros((3, 0), np.int32), np.float32([[1], [2], [0]]),
        np.int32([[1], [-1], [0]]), np.int32([[1], [3], [0]]),
    ):  # fmt: skip
        np.save(saved[0], rows)
        with pytest.raises(UserError, match="int32 table"):
            load_neighbours(saved[0], RECORDS)


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".npy", None, r"index\.npy is not a file"), (".npy", b"", "cannot be read"), (".npy", b"x", "cannot be read"),
        (".npy", b"\x93NUMPY\1\0\1\0{", "cannot be read"),  # half a dictionary
        (".json", None, r"index\.json not found"), (".json", b"{", "not valid"), (".json", b"{}", "has no dataset"),
        (".json", b"[]", "must be an object"),
    ],
)  # fmt: skip
def test_missing_and_damaged_files_are_named(saved, suffix, content, message):
    file = saved[0].with_suffix(suffix)
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_neighbours(saved[0], RECORDS)


def test_a_pipe_is_no_table(saved):
    saved[0].unlink()
    os.mkfifo(saved[0])
    with pytest.raises(UserError, match=r"index\.npy is not a file"):
        load_neighbours(saved[0], RECORDS)


def test_an_interrupted_save_leaves_nothing_that_loads(saved, monkeypatch):
    monkeypatch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError):
        save_neighbours(*saved, records=RECORDS, by="text", dataset="pairs")
    with pytest.raises(UserError, match="not found"):
        load_neighbours(saved[0], RECORDS)


def test_a_flipped_bit_is_found(saved):
    data = bytearray(saved[0].read_bytes())
    data[-4] ^= 1  # another image of the set
    saved[0].write_bytes(data)
    with pytest.raises(UserError, match="is damaged"):
        load_neighbours(saved[0], RECORDS)


def test_the_hash_is_that_of_the_whole_json_list(monkeypatch):
    monkeypatch.setattr(partners, "_CHUNK", 3)
    for ids in ([], [5], list(range(7)), ["a", 'b"', 3, "é"]):
        whole = hashlib.sha256(json.dumps([str(i) for i in ids]).encode()).hexdigest()
        assert partners.image_ids_hash([{"image_id": i} for i in ids]) == whole
