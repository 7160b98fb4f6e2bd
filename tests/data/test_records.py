"""Sequences of records that are made when they are asked for: alone, in a row with lists, with ids of their own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset

from clim.data.records import column, concatenated, with_own_ids
from clim.data.shards import ShardRecords


class Made(ShardRecords):
    """``length`` records of the files "source 0", "source 1", …, without an index."""

    source = ""

    def __init__(self, source, length, first=0):
        self.source, self.length, self.first = source, length, first

    def __len__(self):
        return self.length

    def record(self, index):
        return {"file_name": f"{self.source} {index}", "image_id": self.first + index}

    def column(self, name):
        return np.array([record[name] for record in self])

    def numbered_from(self, first):
        return Made(self.source, self.length, first)


def listed(length, first=0):
    return [{"file_name": f"list {first + i}", "image_id": first + i} for i in range(length)]


PART = st.one_of(st.builds(listed, st.integers(0, 3)), st.builds(Made, st.sampled_from("ab"), st.integers(1, 3)))


@given(st.lists(PART, min_size=1, max_size=4))
def test_data_sets_in_a_row_are_like_one_list(parts):
    found, plain = concatenated(parts), [record for part in parts for record in part]
    assert isinstance(found, ConcatDataset if any(isinstance(part, Made) for part in parts) else list)
    assert len(found) == len(plain) and list(found) == plain
    if plain:
        assert column(found, "image_id").tolist() == [record["image_id"] for record in plain]


IDS = st.one_of(st.integers(-1, 3), st.sampled_from(["a", "7"]))
RECORDS = st.lists(st.fixed_dictionaries({"image_id": IDS, "file_name": st.sampled_from(["a.jpg", "b.jpg", "c.jpg"])}))
MADE = st.lists(st.builds(Made, st.sampled_from(["one", "two"]), st.just(2), st.integers(0, 6)), max_size=2)


@given(RECORDS, MADE, RECORDS)
def test_ids_are_the_same_for_one_image_and_differ_between_two(before, made, after):
    made = [Made(part.source, 2, made[0].first if part.source == made[0].source else part.first) for part in made]
    records = concatenated([before, *made, after])
    found = with_own_ids(records)
    assert [r["file_name"] for r in found] == [r["file_name"] for r in records]
    assert all(type(r["image_id"]) is int and r["image_id"] >= 0 for r in found)
    names = {(r["image_id"], r["file_name"]) for r in found}
    assert len({image_id for image_id, _ in names}) == len({name for _, name in names}) == len(names)


def test_good_ids_stay_and_an_image_of_two_sets_counts_once():
    records = [{"image_id": i, "file_name": f} for i, f in ((9, "a"), (4, "b"), (9, "a"))]
    assert with_own_ids(records) is records
    for good in (Made("a", 3), concatenated([records, Made("a", 3)]), concatenated([Made("a", 3), Made("a", 3)])):
        assert with_own_ids(good) is good
    assert [r["image_id"] for r in with_own_ids([{"image_id": i, "file_name": "a"} for i in (3, 5)])] == [0, 0]
    records = [{"image_id": 1, "file_name": f} for f in ("a", "b", "a")]
    assert [r["image_id"] for r in with_own_ids(records)] == [0, 1, 0]
    both = with_own_ids(concatenated([Made("a", 2), records, Made("b", 2), Made("a", 2)]))
    assert [r["image_id"] for r in both] == [2, 3, 0, 1, 0, 4, 5, 2, 3]
