"""Every key with a range is told of, by name."""

import pytest

from clim.engine.ranges import check_ranges
from clim.errors import UserError


@pytest.mark.parametrize("key, value", [
    ("INPUT.FORMAT", "HSV"), ("INPUT.CAPTION.SHORT_SIDE", 0), ("INPUT.CAPTION.FLIP", 2.0),
    ("INPUT.MOSAIC.GRIDS", [2.5]), ("INPUT.MOSAIC.GRIDS", ["2"]), ("INPUT.MOSAIC.GRIDS", []),
    ("INPUT.MOSAIC.COMPOSE", "foo"), ("INPUT.MOSAIC.CROP_SCALE", [0, 1]), ("INPUT.MOSAIC.CROP_SCALE", [1, 0.5]),
    ("MODEL.METHOD.DETIC.GROUPS", -1), ("DATALOADER.NUM_WORKERS", -1), ("DATALOADER.ALTERNATE", (0, 0)),
    ("MODEL.METHOD.DETIC.QUEUE_LENGTH", -1), ("INPUT.MOSAIC.SIZE", 3), ("INPUT.MOSAIC.CROP_RATIO", [2, 1]),
    ("MODEL.OPEN_VOCAB.WORDS", 0), ("MODEL.METHOD.BARON.WORD_DROPOUT", 1.5), ("MODEL.METHOD.BARON.ORDERS", 0),
    ("MODEL.METHOD.BARON.FREQUENCIES", 7), ("MODEL.METHOD.BARON.QUEUE_LENGTH", -1),
    ("MODEL.METHOD.GROUNDING.TEMPERATURE", 0), ("MODEL.METHOD.GROUNDING.CONTRAST_GROUP", -1),
    ("MODEL.METHOD.GROUNDING.LAYERS", -1), ("MODEL.METHOD.GROUNDING.HEADS", 0),
    ("MODEL.METHOD.GROUNDING.MLM_PROBABILITY", 15), ("MODEL.METHOD.GROUNDING.CONTRAST_GROUP", 1),
    ("MODEL.METHOD.BARON.RATIO", [4.0]), ("MODEL.METHOD.BARON.RATIO", [4.0, 0.25]),
    ("MODEL.METHOD.BARON.WEIGHT", -10.0), ("MODEL.METHOD.BARON.MIN_OBJECTNESS", 85.0),
    ("MODEL.METHOD.BARON.FREQUENCY_BASE", 0.0),
    ("MODEL.OPEN_VOCAB.TEMPERATURE", 0.0), ("MODEL.OVRCNN.BACKGROUND_WEIGHT", -1.0),
])  # fmt: skip
def test_values_out_of_range_are_told(tiny_cfg, key, value):
    cfg = tiny_cfg().clone()
    cfg.defrost()
    check_ranges(cfg)
    section, name = key.rsplit(".", 1)
    node = cfg
    for part in section.split("."):
        node = node[part]
    node[name] = value
    with pytest.raises(UserError, match=key):
        check_ranges(cfg)


def test_a_method_without_losses_is_told(tiny_cfg):
    weights = ("MODEL.METHOD.DETIC.CAPTION_WEIGHT", 0.0, "MODEL.METHOD.DETIC.TAG_WEIGHT", 0.0)
    with pytest.raises(UserError, match="both 0"):
        check_ranges(tiny_cfg(*weights))
