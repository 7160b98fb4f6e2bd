"""Values of config keys that make no sense, and would show late or not at all."""

from clim.errors import UserError


def _share(value) -> bool:
    return 0 <= value <= 1


def _positive(value) -> bool:
    return value > 0


def _not_negative(value) -> bool:
    return value >= 0


def _ratios(bounds) -> bool:
    return len(bounds) == 2 and 0 < bounds[0] <= bounds[1]


def _interval(bounds) -> bool:
    return len(bounds) == 2 and 0 < bounds[0] <= bounds[1] <= 1


# Keys whose wrong values would show late, or not at all: (key, what is right, the same in words).
RANGES = (
    ("INPUT.FORMAT", lambda v: v in ("BGR", "RGB"), "BGR or RGB"),
    ("INPUT.CAPTION.SHORT_SIDE", _positive, "px above 0"),
    ("INPUT.CAPTION.FLIP", _share, "a probability"),
    ("INPUT.CAPTION.CROP_SCALE", _interval, "two parts of the area, 0 < smaller <= larger <= 1"),
    ("INPUT.MOSAIC.GRIDS", lambda v: v and all(type(n) is int and n > 0 for n in v), "whole numbers above 0"),
    ("INPUT.MOSAIC.COMPOSE", lambda v: v in ("loader", "device"), "loader or device"),
    ("INPUT.MOSAIC.FLIP", _share, "a probability"),
    ("INPUT.MOSAIC.CROP_SCALE", _interval, "two parts of the area, 0 < smaller <= larger <= 1"),
    ("INPUT.MOSAIC.CROP_RATIO", _ratios, "two ratios, 0 < smaller <= larger"),
    ("DATALOADER.NUM_WORKERS", _not_negative, "a number, 0 for none"),
    ("DATALOADER.ALTERNATE", lambda v: all(w > 0 for w in v), "weights above 0, or none"),
    ("MODEL.METHOD.DETIC.TEMPERATURE", _positive, "a factor above 0"),
    ("MODEL.METHOD.DETIC.CAPTION_WEIGHT", _not_negative, "a factor, 0 for none"),
    ("MODEL.METHOD.DETIC.TAG_WEIGHT", _not_negative, "a factor, 0 for none"),
    ("MODEL.METHOD.DETIC.NEGATIVE_WEIGHT", _not_negative, "a factor, 0 for none"),
    ("MODEL.METHOD.DETIC.TAG_MIN_IOF", _share, "a part of a proposal"),
    ("MODEL.METHOD.DETIC.TAG_TOPK", _positive, "a number above 0"),
    ("MODEL.METHOD.DETIC.GROUPS", _not_negative, "a number, 0 for none"),
    ("MODEL.METHOD.DETIC.QUEUE_LENGTH", _not_negative, "a number, 0 for none"),
    ("MODEL.OPEN_VOCAB.TEMPERATURE", _positive, "a factor above 0"),
    ("MODEL.OVRCNN.BACKGROUND_WEIGHT", _not_negative, "a factor, 0 for none"),
    ("MODEL.FVLM.BACKGROUND_WEIGHT", _not_negative, "a factor, 0 for none"),
    ("MODEL.OPEN_VOCAB.WORDS", _positive, "a number above 0"),
    ("MODEL.OPEN_VOCAB.WORD_DROPOUT", _share, "a probability"),
    ("MODEL.METHOD.BARON.WORD_DROPOUT", _share, "a probability"),
    ("MODEL.METHOD.BARON.ORDERS", _positive, "a number above 0"),
    ("MODEL.METHOD.BARON.FREQUENCIES", lambda v: v > 0 and v % 2 == 0, "an even number, a sine and a cosine each"),
    ("MODEL.METHOD.BARON.FREQUENCY_BASE", _positive, "a factor above 0"),
    ("MODEL.METHOD.BARON.WEIGHT", _positive, "a factor above 0"),
    ("MODEL.METHOD.BARON.MIN_IOF", _share, "a part of a proposal"),
    ("MODEL.METHOD.BARON.TOPK", _positive, "a number above 0"),
    ("MODEL.METHOD.BARON.RATIO", _ratios, "two ratios, 0 < smaller <= larger"),
    ("MODEL.METHOD.BARON.MIN_AREA", _share, "a part of the tile's area"),
    ("MODEL.METHOD.BARON.MIN_OBJECTNESS", _share, "a probability"),
    ("MODEL.METHOD.BARON.NMS", _share, "an IoU"),
    ("MODEL.METHOD.BARON.TEMPERATURE", _positive, "a factor above 0"),
    ("MODEL.METHOD.BARON.QUEUE_LENGTH", _not_negative, "a number, 0 for none"),
    ("MODEL.METHOD.BARON.PROPOSALS", _not_negative, "a number, 0 for the tile alone"),
    ("MODEL.METHOD.GROUNDING.TEMPERATURE", _positive, "a divisor above 0"),
    ("MODEL.METHOD.GROUNDING.CONTRAST_GROUP", lambda v: v == 0 or v > 1, "a number of tiles above 1, or 0 for all"),
    ("MODEL.METHOD.GROUNDING.MAX_CELLS", _not_negative, "a number, 0 for all"),
    ("MODEL.METHOD.GROUNDING.LAYERS", _not_negative, "a number, 0 for no transformer"),
    ("MODEL.METHOD.GROUNDING.HEADS", _positive, "a number above 0"),
    ("MODEL.METHOD.GROUNDING.DROPOUT", _share, "a probability"),
    ("MODEL.METHOD.GROUNDING.MLM_PROBABILITY", _share, "a probability"),
    ("MODEL.METHOD.GROUNDING.MLM_HIDDEN", _share, "a probability"),
)


def check_ranges(cfg) -> None:
    """UserError for the first key of RANGES that has a value outside it, and for canvases of less than a px a tile."""
    for key, is_right, words in RANGES:
        value = cfg
        for part in key.split("."):
            value = value[part]
        if not is_right(value):
            raise UserError(f"{key} is {value}: it must be {words}.")
    mosaic = cfg.INPUT.MOSAIC
    if cfg.DATALOADER.MOSAICS_PER_GPU and mosaic.SIZE < max(mosaic.GRIDS):
        raise UserError(f"INPUT.MOSAIC.SIZE {mosaic.SIZE} px is too small for INPUT.MOSAIC.GRIDS {mosaic.GRIDS}.")
    losses = cfg.MODEL.METHOD.DETIC.CAPTION_WEIGHT, cfg.MODEL.METHOD.DETIC.TAG_WEIGHT
    if cfg.MODEL.METHOD.NAME == "Detic" and not any(losses):
        raise UserError("MODEL.METHOD.DETIC.CAPTION_WEIGHT and TAG_WEIGHT are both 0: nothing is learnt from pairs.")
