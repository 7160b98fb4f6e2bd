"""Sequences of records that are made when they are asked for: alone, in a row with lists, with ids of their own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clim.data.captions import pairs_of
from clim.data.records import COLUMNS, PairRecords, column, concatenated, with_own_ids


class Made(PairRecords):
    """``length`` records of the files "source 0", "source 1", …, whose columns have another key, as those of shards."""

    def __init__(self, source, length, first=0):
        pairs = np.zeros(length, [("row", "<i4"), *COLUMNS])
        pairs["row"], pairs["image_id"] = np.arange(length), first + np.arange(length)
        super().__init__(pairs, np.zeros(0, np.uint8), 0)
        self.source = source

    def keys(self):
        return np.arange(len(self)) + hash(self.source) // 2

    def file_name(self, name, row):
        return f"{self.source} {row}"


def listed(length, first=0):
    return pairs([(first + i, f"list {first + i}") for i in range(length)])


def pairs(entries):
    """Records of (image id, file name)."""
    size = {"height": 1, "width": 1, "captions": ["x"]}
    return pairs_of([size | {"image_id": i, "file_name": f} for i, f in entries], "x")


PART = st.one_of(st.builds(listed, st.integers(1, 3)), st.builds(Made, st.sampled_from("ab"), st.integers(1, 3)))


@given(st.lists(PART, min_size=1, max_size=4))
def test_data_sets_in_a_row_are_like_one_list(parts):
    found, plain = concatenated(parts), [record for part in parts for record in part]
    assert len(found) == len(plain) and list(found) == plain
    assert column(found, "image_id").tolist() == [record["image_id"] for record in plain]


IDS = st.one_of(st.integers(-1, 3), st.sampled_from(["a", "7"]))
RECORDS = st.lists(st.tuples(IDS, st.sampled_from(["a.jpg", "b.jpg", "c.jpg"])), min_size=1).map(pairs)
MADE = st.lists(st.builds(Made, st.sampled_from(["one", "two"]), st.just(2), st.integers(0, 6)), max_size=2)


@given(RECORDS, MADE, RECORDS)
def test_ids_are_the_same_for_one_image_and_differ_between_two(before, made, after):
    records = concatenated([before, *made, after])
    found = with_own_ids(records)
    assert [r["file_name"] for r in found] == [r["file_name"] for r in records]
    assert column(found, "image_id").tolist() == [r["image_id"] for r in found]
    assert all(type(r["image_id"]) is int and r["image_id"] >= 0 for r in found)
    names = {(r["image_id"], r["file_name"]) for r in found}
    assert len({image_id for image_id, _ in names}) == len({name for _, name in names}) == len(names)


def test_good_ids_stay_and_an_image_of_two_sets_counts_once():
    records = pairs([(9, "a"), (4, "b"), (9, "a")])
    for good in (
        records, Made("a", 3), concatenated([records, Made("a", 3)]), concatenated([Made("a", 3), Made("a", 3)])
    ):  # fmt: skip
        assert with_own_ids(good) is good
    assert [r["image_id"] for r in with_own_ids(pairs([(3, "a"), (5, "a")]))] == [0, 0]
    records = pairs([(1, f) for f in ("a", "b", "a")])
    assert [r["image_id"] for r in with_own_ids(records)] == [0, 1, 0]
    both = with_own_ids(concatenated([Made("a", 2), records, Made("b", 2), Made("a", 2)]))
    assert [r["image_id"] for r in both] == [0, 1, 2, 3, 2, 4, 5, 0, 1]
