"""Class lists that a command accepts by name, in the order of the indices."""

from clim.data.categories import COCO_NAMES, LVIS_NAMES, PANOPTIC_NAMES, SPLIT_NAMES

# fmt: off
# Mottaghi et al., CVPR 2014, without the background, with the names of Fig. 5 of CLIM.
PASCAL_CONTEXT: tuple[str, ...] = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor", "bag", "bed", "bench",
    "book", "building", "cabinet", "ceiling", "cloth", "computer", "cup", "door", "fence", "floor", "flower",
    "food", "grass", "ground", "keyboard", "light", "mountain", "mouse", "curtain", "platform", "sign", "plate",
    "road", "rock", "shelves", "sidewalk", "sky", "snow", "bedclothes", "track", "tree", "truck", "wall",
    "water", "window", "wood",
)
# fmt: on

NAMED_CLASSES: dict[str, tuple[str, ...]] = {
    "coco": COCO_NAMES,
    "coco_65": SPLIT_NAMES,
    "coco_panoptic": PANOPTIC_NAMES,
    "lvis": LVIS_NAMES,
    "pascal_context": PASCAL_CONTEXT,
}
