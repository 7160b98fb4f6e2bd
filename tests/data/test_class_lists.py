"""Lists of classes by name."""

from clim.data.class_lists import NAMED_CLASSES


def test_lists_of_classes_are_told_apart_by_their_lengths():
    lengths = {word: len(names) for word, names in NAMED_CLASSES.items()}
    assert lengths == {"coco": 80, "coco_panoptic": 133, "pascal_context": 59}
    assert NAMED_CLASSES["coco_panoptic"][:80] == NAMED_CLASSES["coco"]
