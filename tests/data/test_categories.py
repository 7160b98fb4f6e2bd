"""The split of OV-COCO against the counts and names that papers print; COCO's 80 and 133 classes."""

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES as DETECTRON2_CATEGORIES
from detectron2.data.datasets.lvis_v1_category_image_count import LVIS_CATEGORY_IMAGE_COUNT

from clim.data import categories as c


def test_the_split_is_a_partition_of_detectron2s_80_things():
    assert list(c.COCO_CATEGORIES) == [(one["id"], one["name"]) for one in DETECTRON2_CATEGORIES if one["isthing"]]
    unused = (10, 11, 13, 14, 37, 39, 40, 43, 46, 58, 64, 67, 77, 88, 89)
    assert (len(c.BASE_IDS), len(c.NOVEL_IDS)) == (48, 17)
    assert sorted(c.BASE_IDS + c.NOVEL_IDS + unused) == list(c.COCO_IDS) == sorted(set(c.COCO_IDS))
    for part in ("BASE", "NOVEL"):
        ids, indices, names = (getattr(c, f"{part}_{what}") for what in ("IDS", "INDICES", "NAMES"))
        assert [c.COCO_IDS[i] for i in indices] == list(ids) == sorted(ids)
        assert [c.COCO_NAMES[i] for i in indices] == list(names)


def test_novel_names_and_indices_as_printed_in_the_papers():
    expected = "airplane bus cat dog cow elephant umbrella tie snowboard skateboard cup knife cake couch keyboard"
    assert c.NOVEL_NAMES == (*expected.split(), "sink", "scissors")
    assert c.NOVEL_INDICES == (4, 5, 15, 16, 19, 20, 25, 27, 31, 36, 41, 43, 55, 57, 66, 71, 76)
    assert c.BASE_NAMES[0] == "person" and c.BASE_NAMES[-1] == "toothbrush" and "hot dog" not in c.BASE_NAMES


def test_the_65_classes_of_vldet_are_the_split_by_ascending_id():
    """vldet §2: the rows of coco_65_cls_emb.pth."""
    assert list(c.SPLIT_INDEX) == sorted(c.BASE_IDS + c.NOVEL_IDS) and list(c.SPLIT_INDEX.values()) == list(range(65))
    assert [c.SPLIT_INDEX[key] for key in (1, 5, 15, 90)] == [0, 4, 9, 64]
    names = c.SPLIT_NAMES
    assert set(names) == {*c.BASE_NAMES, *c.NOVEL_NAMES} and names == tuple(n for n in c.COCO_NAMES if n in set(names))


def test_contiguous_ids_count_over_the_gaps_and_the_133_classes_are_things_then_stuff():
    things, index = c.COCO_INDEX, c.PANOPTIC_INDEX
    assert list(things.values()) == list(range(80)) and [things[i] for i in (1, 11, 13, 90)] == [0, 10, 11, 79]
    assert c.PANOPTIC_NAMES == (*c.COCO_NAMES, *c.STUFF_NAMES) and len(c.PANOPTIC_NAMES) == 133
    assert list(index) == sorted(index) and list(index.values()) == list(range(133))
    assert {key: value for key, value in index.items() if value < 80} == things
    assert c.PANOPTIC_NAMES[index[92]] == "banner" and c.PANOPTIC_NAMES[index[200]] == "rug-merged"


def test_lvis_has_337_rare_classes_by_detectron2s_counts():
    counts = {one["id"]: one["image_count"] for one in LVIS_CATEGORY_IMAGE_COUNT}
    assert c.LVIS_RARE_IDS == tuple(sorted(key for key, count in counts.items() if count <= 10))
    assert (len(c.LVIS_NAMES), len(c.LVIS_RARE_IDS)) == (1203, 337)
    assert (c.LVIS_NAMES[0], c.LVIS_NAMES[-1]) == ("aerosol_can", "zucchini")
