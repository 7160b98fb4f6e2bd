"""Mistakes in a config that would otherwise show late, or as something else."""

import difflib

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm

from clim.data.loader import STREAMS, batch_sizes
from clim.errors import UserError
from clim.evaluation.regions import region_classes
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
