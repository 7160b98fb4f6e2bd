"""Lists of classes by name."""

from clim.data.class_lists import NAMED_CLASSES
from clim.data.pascal_context import PASCAL_CONTEXT


def test_lists_of_classes_are_told_apart_by_their_lengths():
    lengths = {word: len(names) for word, names in NAMED_CLASSES.items()}
    assert lengths == {"coco": 80, "coco_panoptic": 133, "pascal_context": 59}
    assert NAMED_CLASSES["coco_panoptic"][:80] == NAMED_CLASSES["coco"]


def test_pascal_context_has_59_names():
    assert len(PASCAL_CONTEXT) == len(set(PASCAL_CONTEXT)) == 59
    assert PASCAL_CONTEXT[0] == "aeroplane" and PASCAL_CONTEXT[-1] == "wood"
    assert PASCAL_CONTEXT == tuple(name.strip().lower() for name in PASCAL_CONTEXT)
