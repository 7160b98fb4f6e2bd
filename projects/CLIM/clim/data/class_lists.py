"""Lists of classes that have a name."""

from .coco_panoptic import PANOPTIC_NAMES
from .coco_splits import COCO_NAMES
from .pascal_context import PASCAL_CONTEXT

# What one word stands for where classes are asked for, in the order of the contiguous indices.
NAMED_CLASSES: dict[str, tuple[str, ...]] = {
    "coco": COCO_NAMES,
    "coco_panoptic": PANOPTIC_NAMES,
    "pascal_context": PASCAL_CONTEXT,
}
