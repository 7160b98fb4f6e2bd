"""COCO's 80 categories and the open-vocabulary split of OV-COCO: 48 base, 17 novel, 15 unused.

The split is Bansal et al., "Zero-Shot Object Detection" (ECCV 2018), as used by OVR-CNN, Detic and CLIM. The
15 remaining categories have no annotation in either part; a detector still predicts all 80.

Ids are COCO's (1-90 with gaps); indices are contiguous (0-79) in ascending id order.
"""

# fmt: off
COCO_CATEGORIES: tuple[tuple[int, str], ...] = (
    (1, "person"), (2, "bicycle"), (3, "car"), (4, "motorcycle"), (5, "airplane"), (6, "bus"),
    (7, "train"), (8, "truck"), (9, "boat"), (10, "traffic light"), (11, "fire hydrant"),
    (13, "stop sign"), (14, "parking meter"), (15, "bench"), (16, "bird"), (17, "cat"), (18, "dog"),
    (19, "horse"), (20, "sheep"), (21, "cow"), (22, "elephant"), (23, "bear"), (24, "zebra"),
    (25, "giraffe"), (27, "backpack"), (28, "umbrella"), (31, "handbag"), (32, "tie"), (33, "suitcase"),
    (34, "frisbee"), (35, "skis"), (36, "snowboard"), (37, "sports ball"), (38, "kite"),
    (39, "baseball bat"), (40, "baseball glove"), (41, "skateboard"), (42, "surfboard"),
    (43, "tennis racket"), (44, "bottle"), (46, "wine glass"), (47, "cup"), (48, "fork"), (49, "knife"),
    (50, "spoon"), (51, "bowl"), (52, "banana"), (53, "apple"), (54, "sandwich"), (55, "orange"),
    (56, "broccoli"), (57, "carrot"), (58, "hot dog"), (59, "pizza"), (60, "donut"), (61, "cake"),
    (62, "chair"), (63, "couch"), (64, "potted plant"), (65, "bed"), (67, "dining table"), (70, "toilet"),
    (72, "tv"), (73, "laptop"), (74, "mouse"), (75, "remote"), (76, "keyboard"), (77, "cell phone"),
    (78, "microwave"), (79, "oven"), (80, "toaster"), (81, "sink"), (82, "refrigerator"), (84, "book"),
    (85, "clock"), (86, "vase"), (87, "scissors"), (88, "teddy bear"), (89, "hair drier"),
    (90, "toothbrush"),
)

BASE_IDS: tuple[int, ...] = (
    1, 2, 3, 4, 7, 8, 9, 15, 16, 19, 20, 23, 24, 25, 27, 31, 33, 34, 35, 38, 42, 44, 48, 50, 51, 52, 53,
    54, 55, 56, 57, 59, 60, 62, 65, 70, 72, 73, 74, 75, 78, 79, 80, 82, 84, 85, 86, 90,
)

NOVEL_IDS: tuple[int, ...] = (
    5, 6, 17, 18, 21, 22, 28, 32, 36, 41, 47, 49, 61, 63, 76, 81, 87,
)
# fmt: on

COCO_IDS = tuple(identifier for identifier, _ in COCO_CATEGORIES)
COCO_NAMES = tuple(name for _, name in COCO_CATEGORIES)
UNUSED_IDS = tuple(sorted(set(COCO_IDS) - set(BASE_IDS) - set(NOVEL_IDS)))


def contiguous_ids() -> dict[int, int]:
    """COCO category id -> contiguous index (0-79), a new dict at each call."""
    return {identifier: index for index, identifier in enumerate(COCO_IDS)}


def _indices(ids: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(COCO_IDS.index(identifier) for identifier in ids)


BASE_INDICES, NOVEL_INDICES, UNUSED_INDICES = map(_indices, (BASE_IDS, NOVEL_IDS, UNUSED_IDS))
BASE_NAMES = tuple(COCO_NAMES[index] for index in BASE_INDICES)
NOVEL_NAMES = tuple(COCO_NAMES[index] for index in NOVEL_INDICES)
UNUSED_NAMES = tuple(COCO_NAMES[index] for index in UNUSED_INDICES)
