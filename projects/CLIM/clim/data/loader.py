"""Loaders: training batches {"detection": […], "captions": […], "mosaics": […], "regions": […]}, and test batches.

CLIM's detectors take 2 + 2 + 2 + 0 samples a GPU. Which samples an iteration holds is a pure function of (seed,
iteration, rank), so nothing needs to be stored to resume.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from typing import NamedTuple

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from clim.errors import UserError

from .mappers import CanvasMapper, CropMapper, DetectionMapper, RecordMapper, RegionMapper
from .partners import load_neighbours

logger = logging.getLogger(__name__)

# Streams are numbered so that no two sources ever draw the same images in step (the CLIM release does).
STREAMS = {"detection": 0, "captions": 1, "mosaics": 2, "regions": 3}

Draw = tuple[int, int]  # (epoch, index)
Key = tuple[str, int, int]  # (source, epoch, index)


# ---- training


def build_train_loader(cfg, *, seed: int, start_iter: int = 0) -> Iterator[dict]:
    """Iterator over joint batches from iteration ``start_iter`` on, this rank's share of them.

    The same (seed, start_iter, world size) gives the same batches, whatever DATALOADER.NUM_WORKERS is.
    """
    loader = cfg.DATALOADER
    sizes = batch_sizes(cfg)
    mappers = build_mappers(cfg, sizes, seed=seed)
    streams = {}
    for name, size in sizes.items():
        records = mappers[name].records
        # Squares need no padding; other images need less of it beside those that lie the same way.
        grouped = loader.ASPECT_RATIO_GROUPING and not mappers[name].square
        landscape = [r["width"] > r["height"] for r in records] if grouped else None
        drawn = draws(len(records), seed=seed, stream=STREAMS[name], rank=comm.get_rank(), world=comm.get_world_size())
        streams[name] = batches(drawn, size, landscape=landscape)

    if loader.ALTERNATE:
        if len(loader.ALTERNATE) != len(streams):
            raise UserError(
                f"DATALOADER.ALTERNATE has {len(loader.ALTERNATE)} weights for {len(streams)} sources "
                f"({', '.join(streams)}): give one weight for each."
            )
        keys = alternating_batches(streams, weights=loader.ALTERNATE, seed=seed)
    else:
        keys = joint_batches(streams)
    return iter(
        DataLoader(
            MappedSources(mappers),
            batch_sampler=islice(keys, start_iter, None),
            num_workers=loader.NUM_WORKERS,
            collate_fn=collate,
            worker_init_fn=start_worker,
            # Its own generator: the loader must not consume the random state that training resumes from.
            generator=torch.Generator().manual_seed(seed),
            persistent_workers=loader.NUM_WORKERS > 0,
        )
    )


class MappedSources(Dataset):
    """(source, epoch, index) → (source, its mapped sample)."""

    def __init__(self, mappers: dict[str, RecordMapper]):
        self.mappers = mappers

    def __getitem__(self, key: Key) -> tuple[str, dict]:
        source, epoch, index = key
        return source, self.mappers[source](epoch=epoch, index=index)


def collate(samples: list[tuple[str, dict]]) -> dict:
    """Samples by source, and the images that had to be replaced under ``skipped``."""
    batch: dict = {name: [] for name in STREAMS} | {"skipped": []}
    for source, sample in samples:
        batch["skipped"] += sample.pop("skipped")
        batch[source].append(sample)
    return batch


def start_worker(_) -> None:
    """OpenCV keeps to one thread in each worker, as torch does; many workers would fight for the cores."""
    cv2.setNumThreads(0)


# ---- sources


def batch_sizes(cfg) -> dict[str, int]:
    """{source: samples that a process gets in an iteration}; only sources that give any."""
    sizes = {name: cfg.DATALOADER[f"{name.upper()}_PER_GPU"] for name in STREAMS}
    if not any(size > 0 for size in sizes.values()):
        raise UserError("DATALOADER.{DETECTION,CAPTIONS,MOSAICS,REGIONS}_PER_GPU are all 0: nothing to train on.")
    return {name: size for name, size in sizes.items() if size > 0}


def build_mappers(cfg, sources, *, seed: int) -> dict[str, RecordMapper]:
    """{source: its mapper}; captions and mosaics share one list of records."""
    records = {read: read(cfg) for read in {_SOURCES[source][0] for source in sources}}
    mappers = {}
    for source in sources:
        read, build = _SOURCES[source]
        mappers[source] = build(cfg, records[read], seed=seed, stream=STREAMS[source])
    return mappers


def source_records(cfg, source: str) -> list[dict]:
    """What ``source`` draws from. UserError where there is nothing."""
    return _SOURCES[source][0](cfg)


def caption_records(names: Sequence[str]) -> list[dict]:
    """Image-text pairs of registered data sets. UserError where there is none."""
    return with_own_ids(_checked("CAPTIONS", names, _concatenated(names), "captions"))


def with_own_ids(records: list[dict]) -> list[dict]:
    """Records whose ``image_id`` differs between images, as contrast needs it.

    Where two images of several data sets have the same id, or an id is no number >= 0, all are numbered anew.
    """
    files: dict = {}
    shared = any(files.setdefault(r["image_id"], r["file_name"]) != r["file_name"] for r in records)
    if not shared and all(type(image_id) is int and image_id >= 0 for image_id in files):
        return records
    logger.info("Image ids of the image-text pairs are not unique numbers: the images are numbered anew.")
    numbers: dict[str, int] = {}
    return [r | {"image_id": numbers.setdefault(r["file_name"], len(numbers))} for r in records]


def _pairs(cfg) -> list[dict]:
    return caption_records(cfg.DATASETS.CAPTIONS)


def _regions(cfg) -> list[dict]:
    return _checked("REGIONS", cfg.DATASETS.REGIONS, _concatenated(cfg.DATASETS.REGIONS), "boxes")


def _boxes(cfg) -> list[dict]:
    names = cfg.DATASETS.TRAIN
    try:
        records = get_detection_dataset_dicts(names, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    except AssertionError as error:  # Detectron2 asserts that something is left
        raise UserError(f"DATASETS.TRAIN = {tuple(names)} holds no image with annotations: {error}") from error
    return _checked("TRAIN", names, records, "annotations")


def _concatenated(names: Sequence[str]) -> list[dict]:
    return [record for name in names for record in DatasetCatalog.get(name)]


def _checked(key: str, names: Sequence[str], records: list[dict], field: str) -> list[dict]:
    if not records:
        raise UserError(f"DATASETS.{key} = {tuple(names)} holds no image with {field}.")
    if any(field not in record for record in records):
        raise UserError(
            f"DATASETS.{key} = {tuple(names)} holds images without {field}: pairs belong in DATASETS.CAPTIONS, boxes "
            "in DATASETS.TRAIN, pseudo-labels in DATASETS.REGIONS."
        )
    return records


def _caption_mapper(cfg, records, **stream) -> RecordMapper:
    mapper = CropMapper if cfg.INPUT.CAPTION.CROP > 0 else CanvasMapper
    return mapper.captions(cfg, records, **stream)


def _mosaic_mapper(cfg, records, **stream) -> RecordMapper:
    partners = cfg.INPUT.MOSAIC.PARTNERS
    index = None if partners == "random" else load_neighbours(partners, records)
    return CanvasMapper.mosaics(cfg, records, partners=index, **stream)


# {source: (config → records, (config, records, seed, stream) → mapper)}
_SOURCES: dict[str, tuple[Callable, Callable]] = {
    "detection": (_boxes, DetectionMapper.from_cfg),
    "captions": (_pairs, _caption_mapper),
    "mosaics": (_pairs, _mosaic_mapper),
    "regions": (_regions, RegionMapper.from_cfg),
}


# ---- streams: infinite, shuffled, split over ranks


def draws(length: int, *, seed: int, stream: int, rank: int = 0, world: int = 1) -> Iterator[Draw]:
    """Every index once an epoch, reshuffled each epoch; the ranks take turns."""
    offset = rank  # position inside the coming epoch of this rank's next draw
    for epoch in count():
        order = np.random.default_rng([seed, stream, epoch]).permutation(length)
        yield from ((epoch, int(i)) for i in order[offset::world])
        offset = (offset - length) % world


def batches(drawn: Iterator[Draw], size: int, *, landscape: Sequence[bool] | None = None) -> Iterator[list[Draw]]:
    """Groups of ``size`` draws; with ``landscape`` (N,) each of images lying the same way, to pad less."""
    buckets: dict[bool, list[Draw]] = {False: [], True: []}
    for draw in drawn:
        bucket = buckets[bool(landscape[draw[1]]) if landscape is not None else False]
        bucket.append(draw)
        if len(bucket) == size:
            yield list(bucket)
            bucket.clear()


def joint_batches(sources: dict[str, Iterator[list[Draw]]]) -> Iterator[list[Key]]:
    """One batch of every source in every iteration (CLIM)."""
    while True:
        yield [(name, *draw) for name, stream in sources.items() for draw in next(stream)]


def alternating_batches(sources: dict[str, Iterator[list[Draw]]], *, weights, seed: int) -> Iterator[list[Key]]:
    """One batch of *one* source in every iteration (official Detic), all ranks the same one."""
    names, p = list(sources), np.asarray(weights, dtype=float)
    rng = np.random.default_rng([seed, len(names)])
    while True:
        name = names[rng.choice(len(names), p=p / p.sum())]
        yield [(name, *draw) for draw in next(sources[name])]


# ---- test

NO_REGION = "no region left"  # why a readable image is skipped: it shows nothing that is to be classified


class Skipped(NamedTuple):
    """What a test mapper returns for an image that gives no input."""

    file_name: str
    reason: str


class SkippingLoader:
    """The batches of ``loader`` without skipped images; ``on_skip`` is called with each :class:`Skipped`."""

    def __init__(self, loader, *, on_skip: Callable[[Skipped], None]):
        self.loader, self.on_skip = loader, on_skip

    def __len__(self) -> int:
        """Number of batches, including those that turn out to be empty."""
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self.loader:
            for sample in batch:
                if isinstance(sample, Skipped):
                    self.on_skip(sample)
            samples = [sample for sample in batch if not isinstance(sample, Skipped)]
            if samples:
                yield samples


def map_or_skip(mapper: DatasetMapper, record: dict) -> dict | Skipped:
    """Detectron2's test input; :class:`Skipped` if an image is damaged or has another size than its record."""
    try:
        return mapper(record)
    except (OSError, SyntaxError, SizeMismatchError) as error:  # PIL raises all of the first two
        return Skipped(record["file_name"], " ".join(str(error).split()))


def build_detection_loader(cfg, name: str, *, on_skip: Callable[[Skipped], None]) -> SkippingLoader:
    """This process's share of data set ``name`` as Detectron2's test inputs, one image a batch."""
    mapper = partial(map_or_skip, DatasetMapper(cfg, is_train=False))
    return SkippingLoader(build_detection_test_loader(cfg, name, mapper=mapper), on_skip=on_skip)
