"""Joint batches of every iteration: {"detection": […], "captions": […], "mosaics": […], "regions": […]}.

CLIM's detectors: 2 + 2 + 2 + 0 a GPU.
"""

from collections.abc import Iterator

import cv2
import torch
from detectron2.data import DatasetCatalog, get_detection_dataset_dicts
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from clim.errors import UserError

from .crop_mapper import CropMapper
from .mapper import CanvasMapper, DetectionMapper
from .neighbours import load_neighbours
from .region_mapper import RegionMapper
from .streams import Key, alternating_batches, batches, draws, joint_batches

# Streams are numbered so that no two sources ever draw the same pictures in step (the CLIM release does).
STREAMS = {"detection": 0, "captions": 1, "mosaics": 2, "regions": 3}


class MappedSources(Dataset):
    """(source, epoch, index) → that source's mapped sample."""

    def __init__(self, mappers: dict):
        self.mappers = mappers

    def __getitem__(self, key: Key) -> tuple[str, dict]:
        source, epoch, index = key
        return source, self.mappers[source](epoch=epoch, index=index)


def collate(samples: list[tuple[str, dict]]) -> dict:
    """Samples by source, and the pictures that had to be replaced under ``skipped``."""
    batch: dict = {name: [] for name in STREAMS} | {"skipped": []}
    for source, sample in samples:
        batch["skipped"] += sample.pop("skipped")
        batch[source].append(sample)
    return batch


def caption_records(names) -> list[dict]:
    records = [r for name in names for r in DatasetCatalog.get(name)]
    if not records:
        raise UserError(f"DATASETS.CAPTIONS = {tuple(names)} holds no image with a caption.")
    return records


def detection_records(names, *, filter_empty: bool) -> list[dict]:
    try:
        return get_detection_dataset_dicts(names, filter_empty=filter_empty)
    except AssertionError as error:  # Detectron2 asserts that something is left
        raise UserError(f"DATASETS.TRAIN = {tuple(names)} holds no image with a box: {error}") from error


def region_records(names) -> list[dict]:
    records = [r for name in names for r in DatasetCatalog.get(name)]
    if not records:
        raise UserError(f"DATASETS.REGIONS = {tuple(names)} holds no image with a box.")
    return records


def start_worker(_) -> None:
    """OpenCV keeps to one thread in each worker, as torch does; many workers would fight for the cores."""
    cv2.setNumThreads(0)


def build_train_loader(cfg, *, seed: int, start_iter: int = 0) -> Iterator[dict]:
    """Iterator over joint batches from iteration ``start_iter`` on, this rank's share of them.

    The same (seed, start_iter, world size) gives the same batches, whatever DATALOADER.NUM_WORKERS is.
    """
    loader = cfg.DATALOADER
    sizes = {
        "detection": loader.DETECTION_PER_GPU,
        "captions": loader.CAPTIONS_PER_GPU,
        "mosaics": loader.MOSAICS_PER_GPU,
        "regions": loader.REGIONS_PER_GPU,
    }
    sizes = {name: size for name, size in sizes.items() if size > 0}
    if not sizes:
        raise UserError(
            "DATALOADER.{DETECTION,CAPTIONS,MOSAICS,REGIONS}_PER_GPU are all 0: nothing to train on."
        )
    pairs = caption_records(cfg.DATASETS.CAPTIONS) if {"captions", "mosaics"} & set(sizes) else []
    mappers, streams = {}, {}
    for name, size in sizes.items():
        stream = STREAMS[name]
        if name == "detection":
            records = detection_records(cfg.DATASETS.TRAIN, filter_empty=loader.FILTER_EMPTY_ANNOTATIONS)
            mappers[name] = DetectionMapper.from_cfg(cfg, records, seed=seed, stream=stream)
        elif name == "captions":
            mapper = CropMapper if cfg.INPUT.CAPTION.CROP > 0 else CanvasMapper
            records, mappers[name] = pairs, mapper.captions(cfg, pairs, seed=seed, stream=stream)
        elif name == "regions":
            records = region_records(cfg.DATASETS.REGIONS)
            mappers[name] = RegionMapper.from_cfg(cfg, records, seed=seed, stream=stream)
        else:
            partners = cfg.INPUT.MOSAIC.PARTNERS
            index = None if partners == "random" else load_neighbours(partners, pairs)
            records = pairs
            mappers[name] = CanvasMapper.mosaics(cfg, pairs, seed=seed, stream=stream, partners=index)
        # Squares need no padding; other pictures need less of it beside those that lie the same way.
        grouped = loader.ASPECT_RATIO_GROUPING and not mappers[name].square
        landscape = [r["width"] > r["height"] for r in records] if grouped else None
        drawn = draws(
            len(records), seed=seed, stream=stream, rank=comm.get_rank(), world=comm.get_world_size()
        )
        streams[name] = batches(drawn, size, landscape=landscape)

    if loader.ALTERNATE:
        if len(loader.ALTERNATE) != len(streams):
            raise UserError(
                f"DATALOADER.ALTERNATE has {len(loader.ALTERNATE)} weights for {len(streams)} sources "
                f"({', '.join(streams)}): give one weight for each."
            )
        keys = alternating_batches(streams, weights=loader.ALTERNATE, seed=seed, start=start_iter)
    else:
        keys = joint_batches(streams, start=start_iter)
    return iter(
        DataLoader(
            MappedSources(mappers),
            batch_sampler=keys,
            num_workers=loader.NUM_WORKERS,
            collate_fn=collate,
            worker_init_fn=start_worker,
            # Its own generator: the loader must not consume the random state that training resumes from.
            generator=torch.Generator().manual_seed(seed),
            persistent_workers=loader.NUM_WORKERS > 0,
        )
    )
