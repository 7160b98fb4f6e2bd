"""The sources of a joint batch: what each reads, and how its records become network inputs."""

import logging

from detectron2.data import DatasetCatalog, get_detection_dataset_dicts

from clim.errors import UserError

from .canvas_mapper import CanvasMapper
from .crop_mapper import CropMapper
from .detection_mapper import DetectionMapper
from .partners import load_neighbours
from .record_mapper import RecordMapper
from .region_mapper import RegionMapper

logger = logging.getLogger(__name__)

# Streams are numbered so that no two sources ever draw the same pictures in step (the CLIM release does).
STREAMS = {"detection": 0, "captions": 1, "mosaics": 2, "regions": 3}


def batch_sizes(cfg) -> dict[str, int]:
    """Samples of each source that a process gets in an iteration; only sources that give any."""
    loader = cfg.DATALOADER
    sizes = {
        "detection": loader.DETECTION_PER_GPU,
        "captions": loader.CAPTIONS_PER_GPU,
        "mosaics": loader.MOSAICS_PER_GPU,
        "regions": loader.REGIONS_PER_GPU,
    }
    sizes = {name: size for name, size in sizes.items() if size > 0}
    if not sizes:
        raise UserError("DATALOADER.{DETECTION,CAPTIONS,MOSAICS,REGIONS}_PER_GPU are all 0: nothing to train on.")
    return sizes


def source_records(cfg, source: str) -> list[dict]:
    """What ``source`` draws from. UserError where there is nothing."""
    return _RECORDS[source](cfg)


def build_mappers(cfg, sources, *, seed: int) -> dict[str, RecordMapper]:
    """{source: its mapper}; captions and mosaics share one list of records."""
    records = {read: read(cfg) for read in {_RECORDS[source] for source in sources}}
    return {
        source: _MAPPERS[source](cfg, records[_RECORDS[source]], seed=seed, stream=STREAMS[source])
        for source in sources
    }


def caption_records(names) -> list[dict]:
    """Image-text pairs of registered data sets. UserError where there is none."""
    records = _concatenated("CAPTIONS", names, "a caption")
    if any("captions" not in record for record in records):
        raise UserError(
            f"DATASETS.CAPTIONS = {tuple(names)} holds pictures without captions: sets of boxes belong in "
            "DATASETS.TRAIN."
        )
    return with_own_ids(records)


def with_own_ids(records: list[dict]) -> list[dict]:
    """Records whose ``image_id`` tells pictures apart, as contrast needs it.

    Where two pictures of several data sets have the same id, or an id is no number >= 0, all are numbered anew.
    """
    files: dict = {}
    shared = any(files.setdefault(r["image_id"], r["file_name"]) != r["file_name"] for r in records)
    if not shared and all(type(image_id) is int and image_id >= 0 for image_id in files):
        return records
    logger.info("Image ids of the image-text pairs do not tell pictures apart: they are numbered anew.")
    numbers: dict[str, int] = {}
    return [r | {"image_id": numbers.setdefault(r["file_name"], len(numbers))} for r in records]


def _pairs(cfg) -> list[dict]:
    return caption_records(cfg.DATASETS.CAPTIONS)


def _regions(cfg) -> list[dict]:
    return _concatenated("REGIONS", cfg.DATASETS.REGIONS, "a box")


def _boxes(cfg) -> list[dict]:
    names = cfg.DATASETS.TRAIN
    try:
        records = get_detection_dataset_dicts(names, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    except AssertionError as error:  # Detectron2 asserts that something is left
        raise UserError(f"DATASETS.TRAIN = {tuple(names)} holds no image with a box: {error}") from error
    if any("annotations" not in record for record in records):
        raise UserError(
            f"DATASETS.TRAIN = {tuple(names)} holds pictures without boxes: sets of captions belong in "
            "DATASETS.CAPTIONS."
        )
    return records


def _concatenated(key: str, names, needed: str) -> list[dict]:
    records = [record for name in names for record in DatasetCatalog.get(name)]
    if not records:
        raise UserError(f"DATASETS.{key} = {tuple(names)} holds no image with {needed}.")
    return records


def _caption_mapper(cfg, records, **stream) -> RecordMapper:
    mapper = CropMapper if cfg.INPUT.CAPTION.CROP > 0 else CanvasMapper
    return mapper.captions(cfg, records, **stream)


def _mosaic_mapper(cfg, records, **stream) -> RecordMapper:
    partners = cfg.INPUT.MOSAIC.PARTNERS
    index = None if partners == "random" else load_neighbours(partners, records)
    return CanvasMapper.mosaics(cfg, records, partners=index, **stream)


_RECORDS = {"detection": _boxes, "captions": _pairs, "mosaics": _pairs, "regions": _regions}
_MAPPERS = {
    "detection": DetectionMapper.from_cfg,
    "captions": _caption_mapper,
    "mosaics": _mosaic_mapper,
    "regions": RegionMapper.from_cfg,
}
