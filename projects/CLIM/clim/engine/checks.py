"""Mistakes in a config that would otherwise show late, or as something else."""

import difflib

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm

from clim.data.sources import STREAMS, batch_sizes
from clim.errors import UserError
from clim.evaluation.region_classification import region_classes
from clim.methods import METHOD_REGISTRY
from clim.modeling.vocabulary import num_classes

DETECTRON2_IMS_PER_BATCH = 16  # Detectron2's default: any other value was meant to be read


def check_keys(cfg) -> None:
    """UserError for keys that nothing reads, where they were set."""
    if cfg.SOLVER.IMS_PER_BATCH != DETECTRON2_IMS_PER_BATCH:
        raise UserError(
            "SOLVER.IMS_PER_BATCH is not read: batch sizes are per GPU here, in "
            "DATALOADER.DETECTION_PER_GPU, CAPTIONS_PER_GPU and MOSAICS_PER_GPU."
        )


def check_sources(cfg) -> None:
    """UserError where pairs or named regions have no method to learn from them, or a method none, and for sources
    that the model or the method does not read.
    """
    loader, method = cfg.DATALOADER, cfg.MODEL.METHOD.NAME
    pairs = loader.CAPTIONS_PER_GPU + loader.MOSAICS_PER_GPU + loader.REGIONS_PER_GPU
    if pairs and not method:
        raise UserError(
            f"DATALOADER.CAPTIONS_PER_GPU {loader.CAPTIONS_PER_GPU}, MOSAICS_PER_GPU {loader.MOSAICS_PER_GPU} and "
            f"REGIONS_PER_GPU {loader.REGIONS_PER_GPU} need a method that learns from them: set "
            'MODEL.METHOD.NAME, for instance "Detic".'
        )
    if method and not pairs:
        raise UserError(
            f"MODEL.METHOD.NAME {method} needs image-text pairs: set DATALOADER.CAPTIONS_PER_GPU or "
            "MOSAICS_PER_GPU (RegionClip: named regions, REGIONS_PER_GPU)."
        )
    architecture = cfg.MODEL.META_ARCHITECTURE
    readers = {
        f"MODEL.META_ARCHITECTURE {architecture}": _declared(
            META_ARCH_REGISTRY, architecture, "sources", default=STREAMS
        ),
        f"MODEL.METHOD.NAME {method}": {
            "detection",  # the model's own business
            *_declared(METHOD_REGISTRY, method, "sources", default=STREAMS),
        },
    }
    for reader, reads in readers.items():
        for source, size in batch_sizes(cfg).items():
            if source not in reads:
                raise UserError(
                    f"DATALOADER.{source.upper()}_PER_GPU is {size}, but {reader} learns from no {source}: set it to 0."
                )


def _declared(registry, name: str, attribute: str, *, default):
    """What the class of that name says of itself; ``default`` where it says nothing, or is not there."""
    return getattr(registry.get(name), attribute, default) if name in registry else default


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
    ("INPUT.MOSAIC.GROUPS", _not_negative, "a number, 0 for none"),
    ("DATALOADER.NUM_WORKERS", _not_negative, "a number, 0 for none"),
    ("DATALOADER.ALTERNATE", lambda v: all(w > 0 for w in v), "weights above 0, or none"),
    ("MODEL.METHOD.DETIC.TEMPERATURE", _positive, "a factor above 0"),
    ("MODEL.METHOD.DETIC.CAPTION_WEIGHT", _not_negative, "a factor, 0 for none"),
    ("MODEL.METHOD.DETIC.TAG_WEIGHT", _not_negative, "a factor, 0 for none"),
    ("MODEL.METHOD.DETIC.NEGATIVE_WEIGHT", _not_negative, "a factor, 0 for none"),
    ("MODEL.METHOD.DETIC.TAG_MIN_IOF", _share, "a part of a proposal"),
    ("MODEL.METHOD.DETIC.TAG_TOPK", _positive, "a number above 0"),
    ("MODEL.METHOD.DETIC.QUEUE_LENGTH", _not_negative, "a number, 0 for none"),
    ("MODEL.OPEN_VOCAB.TEMPERATURE", _positive, "a factor above 0"),
    ("MODEL.OVRCNN.BACKGROUND_WEIGHT", _not_negative, "a factor, 0 for none"),
    ("MODEL.FVLM.BACKGROUND_WEIGHT", _not_negative, "a factor, 0 for none"),
    ("MODEL.OPEN_VOCAB.WORDS", _positive, "a number above 0"),
    ("MODEL.OPEN_VOCAB.WORD_DROPOUT", _share, "a probability"),
    ("MODEL.METHOD.BARON.WORD_DROPOUT", _share, "a probability"),
    ("MODEL.METHOD.BARON.ORDERS", _positive, "a number above 0"),
    (
        "MODEL.METHOD.BARON.FREQUENCIES",
        lambda v: v > 0 and v % 2 == 0,
        "an even number, a sine and a cosine each",
    ),
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
    (
        "MODEL.METHOD.GROUNDING.CONTRAST_GROUP",
        lambda v: v == 0 or v > 1,
        "a number of tiles above 1, or 0 for all",
    ),
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
        raise UserError(
            f"INPUT.MOSAIC.SIZE {mosaic.SIZE} px is too small for INPUT.MOSAIC.GRIDS {mosaic.GRIDS}."
        )
    losses = cfg.MODEL.METHOD.DETIC.CAPTION_WEIGHT, cfg.MODEL.METHOD.DETIC.TAG_WEIGHT
    if cfg.MODEL.METHOD.NAME == "Detic" and not any(losses):
        raise UserError(
            "MODEL.METHOD.DETIC.CAPTION_WEIGHT and TAG_WEIGHT are both 0: nothing is learnt from pairs."
        )


def check_composition(cfg) -> None:
    """UserError where canvases are to be made from single crops, and something else would go unused."""
    loader = cfg.DATALOADER
    if cfg.INPUT.MOSAIC.COMPOSE == "device" and cfg.MODEL.META_ARCHITECTURE != "ImageTextModel":
        raise UserError(
            "INPUT.MOSAIC.COMPOSE device is for ImageTextModel, which makes canvases in the step: set it to "
            f'"loader" for MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}.'
        )
    if cfg.INPUT.MOSAIC.COMPOSE == "device" and loader.MOSAICS_PER_GPU + loader.REGIONS_PER_GPU:
        raise UserError(
            "INPUT.MOSAIC.COMPOSE device makes its canvases from DATALOADER.CAPTIONS_PER_GPU alone: set "
            f"MOSAICS_PER_GPU {loader.MOSAICS_PER_GPU} and REGIONS_PER_GPU {loader.REGIONS_PER_GPU} to 0, or "
            'COMPOSE to "loader".'
        )


def check_device(cfg) -> None:
    """UserError where MODEL.DEVICE is none, or several processes cannot talk about what lies there."""
    try:
        kind = torch.device(cfg.MODEL.DEVICE).type
    except RuntimeError as error:
        raise UserError(f'MODEL.DEVICE is "{cfg.MODEL.DEVICE}": choose "cuda" or "cpu".') from error
    if kind == "cpu" and comm.get_world_size() > 1 and torch.cuda.is_available():
        raise UserError(
            "Several processes on a machine with GPUs talk over NCCL, which knows no MODEL.DEVICE cpu: hide "
            'the GPUs with CUDA_VISIBLE_DEVICES="", or train on them.'
        )


def check_datasets(cfg, *, training: bool) -> None:
    """UserError for data sets that are not registered, have other classes than the detector or suit another model,
    and for an evaluation of nothing.
    """
    architecture = cfg.MODEL.META_ARCHITECTURE
    kinds = _declared(META_ARCH_REGISTRY, architecture, "evaluated_on", default=None)
    if kinds == () and (cfg.DATASETS.TEST or not training):
        raise UserError(
            f"MODEL.META_ARCHITECTURE {architecture} is not evaluated, only a detector that starts from it: set "
            "DATASETS.TEST to () in training."
        )
    if not training and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: there is nothing to evaluate on.")
    for key in ("TRAIN", "CAPTIONS", "REGIONS", "TEST") if training else ("TEST",):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog.list():
                raise UserError(f"DATASETS.{key} names {name}, which is not registered{_near(name)}.")
            if key in ("CAPTIONS", "REGIONS"):  # what they speak of is the method's business
                continue
            metadata = MetadataCatalog.get(name)
            kind = metadata.get("evaluator_type") or "ov_coco"
            if key == "TEST" and kinds is not None and kind not in kinds:
                raise UserError(
                    f"DATASETS.TEST {name} is a set of type {kind}, but MODEL.META_ARCHITECTURE {architecture} is "
                    f"evaluated on {' and '.join(kinds)}: choose another set."
                )
            classes = metadata.get("thing_classes")
            if classes is not None and kind == "regions":
                classes = region_classes(metadata)
            if classes is not None and len(classes) != num_classes(cfg):
                raise UserError(
                    f"DATASETS.{key} {name} has {len(classes)} classes, but the detector {num_classes(cfg)}: "
                    "set MODEL.ROI_HEADS.NUM_CLASSES with MODEL.VOCABULARY, or choose another data set."
                )


def check_text_width(cfg, encoder) -> None:
    """UserError where the text tower does not give what MODEL.TEXT.DIM promises."""
    if encoder.dim != cfg.MODEL.TEXT.DIM:
        raise UserError(
            f"MODEL.TEXT.NAME {cfg.MODEL.TEXT.NAME} gives embeddings of {encoder.dim} dimensions, but "
            f"MODEL.TEXT.DIM is {cfg.MODEL.TEXT.DIM}: set it to {encoder.dim}, and use class "
            "embeddings of that width."
        )


def _near(name: str) -> str:
    near = difflib.get_close_matches(name, DatasetCatalog.list(), n=4, cutoff=0.4)
    return f"; names near it: {', '.join(near)}" if near else ""
