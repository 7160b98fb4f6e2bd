"""Loaders: training batches {"detection": […], "captions": […], "mosaics": […], "regions": […]}, and test batches.

CLIM's detectors take 2 + 2 + 2 + 0 samples a GPU. Seed, iteration and rank determine them: resuming needs no state.
"""

import atexit
import gc
import logging
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import count, islice

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.data.build import filter_images_with_only_crowd_annotations, print_instances_class_histogram
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from clim.errors import UserError
from clim.files import resolve
from clim.processes import STOP_SIGNALS, die_with_parent
from clim.sources import Skipped

from .captions import pairs_of
from .datasets import get_records
from .images import ResizeShortestEdge, UnreadableImage, channels_first, check_size, read_image
from .jittering import Jittering, training_augmentations
from .mappers import CanvasMapper, CropMapper, DetectionMapper, RecordMapper, RegionMapper
from .mosaic import COPY_SIDE
from .names import pair_records, set_classes, training_records, vocabulary_names
from .partners import load_neighbours
from .records import column, concatenated, listed, with_own_ids

# Each source has its own stream, so that two sources do not draw the same images together, as in the CLIM release.
STREAMS = {"detection": 0, "captions": 1, "mosaics": 2, "regions": 3}

Draw = tuple[int, int]  # (epoch, index)
Key = tuple[str, int, int]  # (source, epoch, index)

logger = logging.getLogger(__name__)


def build_train_loader(cfg, *, seed: int, start_iter: int = 0) -> Iterator[dict]:
    """This rank's joint batches, ACCUMULATE an iteration, from ``start_iter`` on; equal for any number of workers."""
    loader = cfg.DATALOADER
    sizes = batch_sizes(cfg)
    mappers = build_mappers(cfg, sizes, seed=seed)
    streams = {}
    for name, size in sizes.items():
        records = mappers[name].records
        # Squares need no padding; other images need less in a batch of the same orientation.
        grouped = loader.ASPECT_RATIO_GROUPING and not mappers[name].square
        landscape = np.greater(column(records, "width"), column(records, "height")) if grouped else None
        factors = repeat_factors(cfg, records) if name == "detection" else None
        ranks = {"rank": comm.get_rank(), "world": comm.get_world_size()}
        drawn = draws(len(records), seed=seed, stream=STREAMS[name], factors=factors, **ranks)
        streams[name] = batches(drawn, size, landscape=landscape)
        if name == "detection" and loader.NUM_WORKERS > 0:
            # Workers share bytes. They would copy each page of objects that they read: it holds reference counts.
            mappers[name].records = DatasetFromList(records, copy=False)

    if loader.ALTERNATE:
        if len(loader.ALTERNATE) != len(streams):
            sources = ", ".join(streams)
            raise UserError(f"DATALOADER.ALTERNATE is {loader.ALTERNATE}: give one weight for each of {sources}.")
        keys = alternating_batches(streams, weights=loader.ALTERNATE, seed=seed, number=cfg.SOLVER.ACCUMULATE)
    else:
        keys = joint_batches(streams)
    # The loader has its own generator, because training resumes from the global random state.
    joint = iter(DataLoader(
        MappedSources(mappers), batch_sampler=islice(keys, start_iter * cfg.SOLVER.ACCUMULATE, None),
        num_workers=loader.NUM_WORKERS, persistent_workers=loader.NUM_WORKERS > 0, collate_fn=collate,
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"), worker_init_fn=start_worker,
        generator=torch.Generator().manual_seed(seed),
    ))  # fmt: skip
    if loader.NUM_WORKERS > 0:
        atexit.register(end_workers, weakref.ref(joint))
    return joint


def end_workers(reference: weakref.ref) -> None:
    """End the workers of an iterator that a program holds until its end: they ignore Python's SIGTERM."""
    if (joint := reference()) is not None:
        joint._shutdown_workers()


class MappedSources(Dataset):
    """(source, epoch, index) → (source, mapped sample)."""

    def __init__(self, mappers: dict[str, RecordMapper]):
        self.mappers = mappers

    def __getitem__(self, key: Key) -> tuple[str, dict]:
        source, epoch, index = key
        return source, self.mappers[source](epoch=epoch, index=index)


def collate(samples: list[tuple[str, dict]]) -> dict:
    """{source: its samples}, and all replaced images under ``skipped``."""
    batch: dict = {name: [] for name in STREAMS} | {"skipped": []}
    for source, sample in samples:
        batch["skipped"] += sample.pop("skipped")
        batch[source].append(sample)
    return batch


def start_worker(_) -> None:
    """Prepare a worker: it ends with its parent, uses one thread, and keeps sharing the main process's memory."""
    die_with_parent()
    # All processes of a job get these signals. The training then finishes its step, and needs its workers for that.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)  # as torch
    gc.freeze()  # a garbage collection would write to all objects from before the fork, and so copy their pages


def batch_sizes(cfg) -> dict[str, int]:
    """{source: samples a process gets in an iteration}, without sources that have none."""
    sizes = {name: cfg.DATALOADER[f"{name.upper()}_PER_GPU"] for name in STREAMS}
    if not any(size > 0 for size in sizes.values()):
        raise UserError("DATALOADER.{DETECTION,CAPTIONS,MOSAICS,REGIONS}_PER_GPU are all 0: nothing to train on.")
    return {name: size for name, size in sizes.items() if size > 0}


def build_mappers(cfg, sources, *, seed: int) -> dict[str, RecordMapper]:
    """{source: mapper}; captions and mosaics share one list of records. UserError if INPUT.COPIES has none of them."""
    read = cache(partial(source_records, cfg))
    mappers = {s: _build_mapper(cfg, s, read("captions" if s == "mosaics" else s), seed=seed) for s in sources}
    if (of_pairs := mappers.get("captions") or mappers.get("mosaics")) and of_pairs.copies:
        some = np.linspace(0, len(of_pairs.records) - 1, 20).astype(int).tolist()
        records = [r for r in map(of_pairs.records.__getitem__, some) if max(r["height"], r["width"]) > COPY_SIDE]
        if records and not any(of_pairs.read_copy(record, at_least=(1, 1)) for record in records):
            remedy = "correct its paths, make copies with clim shrink, or set it to []"
            raise UserError(f"INPUT.COPIES has no copy of {records[0]['file_name']}, nor of other images: {remedy}.")
    return mappers


def source_records(cfg, source: str) -> Sequence[dict]:
    """The records of ``source``. UserError if there are none."""
    if source in ("captions", "mosaics"):
        return caption_records(cfg.DATASETS.CAPTIONS, get=partial(pair_records, cfg))
    if source == "regions":
        return _read("REGIONS", cfg.DATASETS.REGIONS, "boxes")
    records = _read("TRAIN", cfg.DATASETS.TRAIN, "annotations", get=partial(training_records, cfg))
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
    if least := cfg.DATALOADER.MIN_SIDE:  # px, of the shorter side
        before, records = len(records), [r for r in records if min(r["width"], r["height"]) >= least]
        logger.info("DATALOADER.MIN_SIDE %d leaves out %d of %d images.", least, before - len(records), before)
    if not records:
        raise UserError(f"DATASETS.TRAIN = {tuple(cfg.DATASETS.TRAIN)} holds no image with annotations.")
    if all(map(set_classes, cfg.DATASETS.TRAIN)):
        print_instances_class_histogram(records, vocabulary_names(cfg))
    return records


def caption_records(names: Sequence[str], *, get=DatasetCatalog.get) -> Sequence[dict]:
    """Image-text pairs of registered data sets (:mod:`~clim.data.records`). UserError if there are none."""
    if not names:
        raise UserError("DATASETS.CAPTIONS = () holds no image with captions.")
    return with_own_ids(concatenated(pairs_of(get(name), name) for name in names))


def _read(key: str, names: Sequence[str], field: str, *, get=DatasetCatalog.get) -> list[dict]:
    records = [record for name in names for record in listed(get(name), field, f"DATASETS.{key} {name}")]
    if not records:
        raise UserError(f"DATASETS.{key} = {tuple(names)} holds no image with {field}.")
    return records


def check_masks(cfg, records: list[dict]) -> None:
    """UserError if MODEL.MASK_ON and a box has no mask, or has run lengths although INPUT.MASK_FORMAT is "polygon"."""
    if not cfg.MODEL.MASK_ON:
        return
    kinds = {type(a.get("segmentation")) for record in records for a in record["annotations"]}
    if type(None) in kinds:
        remedy = "set MODEL.MASK_ON False, or DATASETS.OWN's kind \"lvis\", which also reads masks of COCO's format"
        raise UserError(f"DATASETS.TRAIN = {cfg.DATASETS.TRAIN} has boxes without masks: {remedy}.")
    if dict in kinds and cfg.INPUT.MASK_FORMAT == "polygon":
        raise UserError(f'DATASETS.TRAIN = {cfg.DATASETS.TRAIN} has run lengths: set INPUT.MASK_FORMAT to "bitmask".')


def _build_mapper(cfg, source: str, records: Sequence[dict], *, seed: int) -> RecordMapper:
    stream = {"seed": seed, "stream": STREAMS[source], "image_format": cfg.INPUT.FORMAT}
    stream["copies"] = [(resolve(images), resolve(copies)) for images, copies in cfg.INPUT.COPIES]
    if source == "detection":
        masks = cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None
        check_masks(cfg, records)
        return DetectionMapper(records, augmentations=training_augmentations(cfg), mask_format=masks, **stream)
    if source == "regions":
        return RegionMapper(records, size=cfg.INPUT.REGIONS.SIZE, **stream)
    key, jitter = cfg.INPUT.CAPTION, None
    if {"captions": key.JITTER_SIZE > 0, "mosaics": cfg.INPUT.MOSAIC.FILLING == "jitter"}[source]:
        jitter = Jittering(cfg.INPUT.LSJ.STYLE, side=key.JITTER_SIZE, scale=key.JITTER_SCALE)
    if source == "captions":
        if key.CROP > 0:
            return CropMapper(records, size=key.CROP, scale=key.CROP_SCALE, ratio=key.CROP_RATIO, **stream)
        sides = {"short": key.SHORT_SIDE, "long": key.LONG_SIDE}
        return CanvasMapper(records, grids=[1], scales=key.SCALES, flip=key.FLIP, jitter=jitter, **sides, **stream)
    key = cfg.INPUT.MOSAIC
    return CanvasMapper(
        records, grids=key.GRIDS, short=key.SIZE, long=key.SIZE, flip=key.FLIP, filling=key.FILLING, jitter=jitter,
        crop_scale=key.CROP_SCALE, crop_ratio=key.CROP_RATIO, pad_value=key.PAD_VALUE,
        partners=None if key.PARTNERS == "random" else load_neighbours(key.PARTNERS, records),
        permute_texts=key.PERMUTE_TEXTS, **stream,
    )  # fmt: skip


def draws(
    length: int, *, seed: int, stream: int, rank: int = 0, world: int = 1, factors: np.ndarray | None = None
) -> Iterator[Draw]:
    """Every index once an epoch, in a new order each epoch; the ranks take turns.

    With ``factors`` (length,), as often as :func:`repeated` says; copy k of index i is i + k * length.
    """
    offset = rank  # this rank's next draw, as a position in the coming epoch
    for epoch in count():
        rng = np.random.default_rng([seed, stream, epoch])
        order = rng.permutation(length if factors is None else repeated(factors, rng))
        yield from ((epoch, i) for i in order[offset::world].tolist())
        offset = (offset - len(order)) % world


def repeat_factors(cfg, records: list[dict]) -> np.ndarray | None:
    """How often an epoch has each record (N,): max over its classes of max(1, sqrt(REPEAT_THRESHOLD / frequency)).

    The frequency of a class is the part of ``records`` that shows it. None unless DATALOADER.SAMPLER_TRAIN is
    "RepeatFactorTrainingSampler". Rounded up with DATALOADER.REPEAT_ROUND_UP.
    """
    loader, sampler = cfg.DATALOADER, RepeatFactorTrainingSampler
    if loader.SAMPLER_TRAIN != sampler.__name__:
        return None
    logging.getLogger(sampler.__module__).setLevel(logging.WARNING)  # it logs a line for each class
    compute = sampler.repeat_factors_from_category_frequency
    factors = compute(records, loader.REPEAT_THRESHOLD, sqrt=loader.REPEAT_SQRT).numpy()
    factors = np.ceil(factors) if loader.REPEAT_ROUND_UP else factors
    numbers = factors.max(), len(factors), factors.sum()
    logger.info("Repeat factors up to %.2f: an epoch of %d images has about %d", *numbers)
    return factors


def repeated(factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices of one epoch, int64: the whole part of each factor, and one more with the probability of the rest."""
    whole = np.floor(factors)
    times = (whole + (rng.random(len(factors)) < factors - whole)).astype(np.int64)
    first = np.cumsum(times) - times  # where the copies of each index begin
    copy = np.arange(times.sum()) - np.repeat(first, times)
    return np.repeat(np.arange(len(factors)), times) + copy * len(factors)


def batches(drawn: Iterator[Draw], size: int, *, landscape: Sequence[bool] | None = None) -> Iterator[list[Draw]]:
    """Groups of ``size`` draws; with ``landscape`` (N,), a group is all landscape or all portrait."""
    buckets: dict[bool, list[Draw]] = {False: [], True: []}
    for draw in drawn:
        bucket = buckets[bool(landscape[draw[1] % len(landscape)]) if landscape is not None else False]
        bucket.append(draw)
        if len(bucket) == size:
            yield list(bucket)
            bucket.clear()


def joint_batches(sources: dict[str, Iterator[list[Draw]]]) -> Iterator[list[Key]]:
    """One batch of every source in every iteration (CLIM)."""
    while True:
        yield [(name, *draw) for name, stream in sources.items() for draw in next(stream)]


def alternating_batches(
    sources: dict[str, Iterator[list[Draw]]], *, weights, seed: int, number: int = 1
) -> Iterator[list[Key]]:
    """``number`` batches of one source in every iteration, the same source on all ranks (official Detic)."""
    names, p = list(sources), np.asarray(weights, dtype=float)
    rng = np.random.default_rng([seed, len(names)])
    while True:
        name = names[rng.choice(len(names), p=p / p.sum())]
        yield from ([(name, *draw) for draw in batch] for batch in islice(sources[name], number))


NO_REGION = "no region left"  # the reason for skipping a readable image that has nothing to classify


class SkippingLoader:
    """The batches of ``loader`` without skipped images; ``on_skip`` is called with each :class:`Skipped`."""

    def __init__(self, loader, *, on_skip: Callable[[Skipped], None]):
        self.loader, self.on_skip = loader, on_skip

    def __len__(self) -> int:
        """Number of batches, empty ones included."""
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self.loader:
            for skipped in (sample for sample in batch if isinstance(sample, Skipped)):
                self.on_skip(skipped)
            if samples := [sample for sample in batch if not isinstance(sample, Skipped)]:
                yield samples


def read_or_skip(record: dict, *, resize: T.Augmentation, image_format: str) -> dict | Skipped:
    """Detectron2's test input; :class:`Skipped` if the image is damaged or has another size than its record."""
    try:
        decoded = read_image(record["file_name"], fmt=image_format)
        sample = {"height": decoded.height, "width": decoded.width} | record
        check_size(sample, decoded)
    except UnreadableImage as error:
        return Skipped(error.file_name, error.reason)
    sample.pop("annotations", None)
    return sample | {"image": channels_first(resize.get_transform(decoded.image).apply_image(decoded.image))}


def build_detection_loader(cfg, name: str, *, on_skip: Callable[[Skipped], None]) -> SkippingLoader:
    """This process's share of data set ``name``: Detectron2's test inputs, one image a batch."""
    resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    mapper = partial(read_or_skip, resize=resize, image_format=cfg.INPUT.FORMAT)
    records, workers = get_records(name, masks=False), cfg.DATALOADER.NUM_WORKERS
    if not records:
        raise UserError(f"DATASETS.TEST {name} holds no image.")
    return SkippingLoader(build_detection_test_loader(records, mapper=mapper, num_workers=workers), on_skip=on_skip)
