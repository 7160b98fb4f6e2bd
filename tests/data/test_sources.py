"""Records of a source: ids that tell pictures apart, whatever the data sets call them."""

from hypothesis import given
from hypothesis import strategies as st

from clim.data.sources import with_own_ids

RECORDS = st.lists(
    st.fixed_dictionaries(
        {
            "image_id": st.one_of(st.integers(-1, 3), st.sampled_from(["a", "7"])),
            "file_name": st.sampled_from(["a.jpg", "b.jpg", "c.jpg"]),
        }
    )
)


@given(RECORDS)
def test_ids_are_the_same_for_one_picture_and_differ_between_two(records):
    found = with_own_ids(records)
    assert [r["file_name"] for r in found] == [r["file_name"] for r in records]
    assert all(type(r["image_id"]) is int and r["image_id"] >= 0 for r in found)
    for one in found:
        for other in found:
            if one["file_name"] != other["file_name"]:
                assert one["image_id"] != other["image_id"]


def test_good_ids_stay():
    records = [{"image_id": 9, "file_name": "a"}, {"image_id": 4, "file_name": "b"}, {"image_id": 9, "file_name": "a"}]
    assert with_own_ids(records) is records


def test_a_picture_of_two_sets_counts_once():
    records = [{"image_id": 1, "file_name": f} for f in ("a", "b", "a")]
    assert [r["image_id"] for r in with_own_ids(records)] == [0, 1, 0]
