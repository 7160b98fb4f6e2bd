"""Class lists: COCO's 80 classes and the split of OV-COCO, its 133 panoptic classes, and LVIS's 1,203.

The split has 48 base, 17 novel and 15 unused classes: Bansal et al., "Zero-Shot Object Detection" (ECCV 2018), as
OVR-CNN, Detic and CLIM use it. Unused classes have no annotation in either part; a detector still predicts all 80.
"""

from detectron2.data.datasets import builtin_meta
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

# fmt: off
BASE_IDS: tuple[int, ...] = (
    1, 2, 3, 4, 7, 8, 9, 15, 16, 19, 20, 23, 24, 25, 27, 31, 33, 34, 35, 38, 42, 44, 48, 50, 51, 52, 53,
    54, 55, 56, 57, 59, 60, 62, 65, 70, 72, 73, 74, 75, 78, 79, 80, 82, 84, 85, 86, 90,
)
NOVEL_IDS: tuple[int, ...] = (5, 6, 17, 18, 21, 22, 28, 32, 36, 41, 47, 49, 61, 63, 76, 81, 87)
# fmt: on

# (id, name) by ascending id: 80 things, then 53 stuff classes. Stuff has the names of COCO's json ("tree-merged",
# "door-stuff"), because the CLIM release embeds prompts with these names.
PANOPTIC_CATEGORIES = tuple(sorted((c["id"], c["name"]) for c in builtin_meta.COCO_CATEGORIES))
STUFF_IDS = frozenset(c["id"] for c in builtin_meta.COCO_CATEGORIES if not c["isthing"])
COCO_CATEGORIES = tuple((key, name) for key, name in PANOPTIC_CATEGORIES if key not in STUFF_IDS)

COCO_IDS, COCO_NAMES = zip(*COCO_CATEGORIES, strict=True)
PANOPTIC_NAMES = tuple(name for _, name in PANOPTIC_CATEGORIES)
STUFF_NAMES = tuple(name for key, name in PANOPTIC_CATEGORIES if key in STUFF_IDS)

# Category id: contiguous index.
COCO_INDEX = {key: index for index, key in enumerate(COCO_IDS)}
PANOPTIC_INDEX = {key: index for index, (key, _) in enumerate(PANOPTIC_CATEGORIES)}

BASE_INDICES, NOVEL_INDICES = (tuple(COCO_INDEX[key] for key in ids) for ids in (BASE_IDS, NOVEL_IDS))
BASE_NAMES, NOVEL_NAMES = (tuple(COCO_NAMES[i] for i in indices) for indices in (BASE_INDICES, NOVEL_INDICES))

SPLIT_INDEX = {key: index for index, key in enumerate(sorted(BASE_IDS + NOVEL_IDS))}  # VLDet's, without unused classes
SPLIT_NAMES = tuple(COCO_NAMES[COCO_INDEX[key]] for key in SPLIT_INDEX)

# LVIS v1 by ascending id, 1 to 1,203. Prompts have these names; Detectron2's metadata have each first synonym, which
# differs for one class ("bull", "horned_cow"). In OV-LVIS the rare classes, on 1 to 10 training images, are novel.
LVIS_NAMES = tuple(category["name"] for category in LVIS_CATEGORIES)
LVIS_RARE_IDS = tuple(category["id"] for category in LVIS_CATEGORIES if category["frequency"] == "r")
