"""Mistakes in a config that would otherwise show late, or as something else."""

import difflib

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from clim.errors import UserError
from clim.evaluation.region_classification import region_classes
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
    """UserError where image-text pairs or named regions have no method to learn from them, or a method none."""
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


def check_composition(cfg) -> None:
    """UserError where canvases are to be made from single crops, and something else would go unused."""
    loader = cfg.DATALOADER
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
    """UserError for data sets that are not registered, or that have other classes than the detector."""
    for key in ("TRAIN", "CAPTIONS", "REGIONS", "TEST") if training else ("TEST",):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog.list():
                raise UserError(f"DATASETS.{key} names {name}, which is not registered{_near(name)}.")
            if key in ("CAPTIONS", "REGIONS"):  # what they speak of is the method's business
                continue
            metadata = MetadataCatalog.get(name)
            classes = metadata.get("thing_classes")
            if classes is not None and metadata.get("evaluator_type") == "regions":
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
