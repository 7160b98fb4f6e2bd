"""COCO's 133 panoptic classes: 80 things, then 53 stuff, each by ascending category id.

The order of the json's categories by id, which class embeddings and the CLIM release follow. Names are the
json's own ("tree-merged", "door-stuff"): the release's embeddings are prompts of these.
"""

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

PANOPTIC_CATEGORIES: tuple[tuple[int, str], ...] = tuple(
    sorted((category["id"], category["name"]) for category in COCO_CATEGORIES)
)
STUFF_IDS = frozenset(category["id"] for category in COCO_CATEGORIES if not category["isthing"])
PANOPTIC_NAMES = tuple(name for _, name in PANOPTIC_CATEGORIES)
STUFF_NAMES = tuple(name for identifier, name in PANOPTIC_CATEGORIES if identifier in STUFF_IDS)


def panoptic_ids() -> dict[int, int]:
    """COCO panoptic category id -> contiguous index (0-132), a new dict at each call."""
    return {identifier: index for index, (identifier, _) in enumerate(PANOPTIC_CATEGORIES)}
