"""Rows on disk: what one object adds another finds, newer rows win, and half a row is no row."""

import numpy as np
import pytest

from clim.text.store import KEY_BYTES, RowStore

DIM = 3


def key(name):
    return name.encode().ljust(KEY_BYTES, b".")


def rows(*firsts):
    """A row (DIM,) that begins with each number."""
    return np.array([[first, first + 0.25, -first] for first in firsts], np.float32).reshape(-1, DIM)


def added(folder, names, *firsts):
    store = RowStore(folder, dim=DIM)
    store.add([key(name) for name in names], rows(*firsts))
    return store


def found(store, names):
    return store.gather([key(name) for name in names])


def test_rows_come_back_in_the_order_of_their_keys(tmp_path):
    store = added(tmp_path, "abc", 1, 2, 3)
    store.add([key("d")], rows(4))
    for opened in (store, RowStore(tmp_path, dim=DIM)):
        np.testing.assert_array_equal(found(opened, "dbbac"), rows(4, 2, 2, 1, 3))
        assert len(opened) == 4 and key("c") in opened and key("e") not in opened


def test_nothing_is_written_before_something_is_added(tmp_path):
    store = RowStore(tmp_path, dim=DIM)
    assert len(store) == 0 and found(store, "").shape == (0, DIM)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError):
        found(store, "a")


def test_objects_write_files_of_their_own_and_read_those_of_all(tmp_path):
    added(tmp_path, "ab", 1, 2)
    added(tmp_path, "c", 3)
    added(tmp_path, "")  # an empty shard starts where the next one does
    last = added(tmp_path, "d", 4)
    assert len(list(tmp_path.glob("*.rows"))) == 4
    for opened in (last, RowStore(tmp_path, dim=DIM)):
        np.testing.assert_array_equal(found(opened, "cadb"), rows(3, 1, 4, 2))


def test_a_newer_row_replaces_an_older(tmp_path):
    store = added(tmp_path, "ab", 1, 2)
    store.add([key("a")], rows(5))
    np.testing.assert_array_equal(found(store, "ab"), rows(5, 2))
    added(tmp_path, "b", 7)
    np.testing.assert_array_equal(found(RowStore(tmp_path, dim=DIM), "ab"), rows(5, 7))
    np.testing.assert_array_equal(found(store, "ab"), rows(5, 2))  # as it was when opened


def test_what_comes_back_is_a_copy(tmp_path):
    store = added(tmp_path, "a", 1)
    found(store, "a")[:] = 0
    np.testing.assert_array_equal(found(store, "a"), rows(1))


@pytest.mark.parametrize(
    "suffix, kept_bytes, known",
    [("rows", 2 * 4 * DIM + 5, 2), ("keys", KEY_BYTES + 1, 1), ("rows", 0, 0), ("keys", 0, 0)],
)
def test_half_written_rows_are_unknown(tmp_path, suffix, kept_bytes, known):
    added(tmp_path, "abc", 1, 2, 3)
    (file,) = tmp_path.glob(f"*.{suffix}")
    with open(file, "r+b") as opened:
        opened.truncate(kept_bytes)
    store = RowStore(tmp_path, dim=DIM)
    assert [key(name) in store for name in "abc"] == [True] * known + [False] * (3 - known)
    np.testing.assert_array_equal(found(store, "abc"[:known]), rows(1, 2, 3)[:known])


def test_what_a_failed_write_left_is_cut_off_by_the_next(tmp_path):
    store = added(tmp_path, "a", 1)
    for suffix in ("rows", "keys"):
        (file,) = tmp_path.glob(f"*.{suffix}")
        with open(file, "ab") as opened:
            opened.write(b"half")
    store.add([key("b")], rows(2))
    for opened in (store, RowStore(tmp_path, dim=DIM)):
        np.testing.assert_array_equal(found(opened, "ba"), rows(2, 1))
