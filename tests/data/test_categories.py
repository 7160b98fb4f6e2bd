"""The category table against Detectron2's own, the split against the counts and names that papers print."""

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES as DETECTRON2_CATEGORIES

from clim.data import categories
from clim.data.categories import (
    BASE_IDS,
    BASE_INDICES,
    BASE_NAMES,
    COCO_CATEGORIES,
    COCO_IDS,
    COCO_NAMES,
    NOVEL_IDS,
    NOVEL_INDICES,
    NOVEL_NAMES,
    UNUSED_IDS,
    UNUSED_INDICES,
    UNUSED_NAMES,
    contiguous_ids,
)


def test_categories_are_detectron2s_80_things_in_ascending_order():
    things = [(c["id"], c["name"]) for c in DETECTRON2_CATEGORIES if c["isthing"]]
    assert list(COCO_CATEGORIES) == things
    assert list(COCO_IDS) == sorted(set(COCO_IDS)) and len(COCO_IDS) == 80


def test_the_split_is_a_partition_of_48_17_and_15():
    assert (len(BASE_IDS), len(NOVEL_IDS), len(UNUSED_IDS)) == (48, 17, 15)
    assert sorted(BASE_IDS + NOVEL_IDS + UNUSED_IDS) == list(COCO_IDS)
    assert UNUSED_IDS == (10, 11, 13, 14, 37, 39, 40, 43, 46, 58, 64, 67, 77, 88, 89)


def test_novel_names_and_indices_as_printed_in_the_papers():
    expected = "airplane bus cat dog cow elephant umbrella tie snowboard skateboard cup knife cake couch keyboard"
    assert NOVEL_NAMES == (*expected.split(), "sink", "scissors")
    assert NOVEL_INDICES == (4, 5, 15, 16, 19, 20, 25, 27, 31, 36, 41, 43, 55, 57, 66, 71, 76)


def test_indices_and_names_follow_the_ids():
    for ids, indices, names in (
        (BASE_IDS, BASE_INDICES, BASE_NAMES),
        (NOVEL_IDS, NOVEL_INDICES, NOVEL_NAMES),
        (UNUSED_IDS, UNUSED_INDICES, UNUSED_NAMES),
    ):
        assert list(ids) == sorted(ids)
        assert [COCO_IDS[i] for i in indices] == list(ids)
        assert [COCO_NAMES[i] for i in indices] == list(names)
    assert BASE_NAMES[0] == "person" and BASE_NAMES[-1] == "toothbrush" and "hot dog" in UNUSED_NAMES


def test_contiguous_ids_counts_up_over_the_gaps_and_cannot_be_spoiled():
    mapping = contiguous_ids()
    assert list(mapping.values()) == list(range(80))
    assert (mapping[1], mapping[11], mapping[13], mapping[90]) == (0, 10, 11, 79)
    mapping[1] = 99
    assert categories.contiguous_ids()[1] == 0
