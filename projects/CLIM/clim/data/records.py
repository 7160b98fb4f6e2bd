"""Several data sets in a row, and image ids that differ. Pairs of shards stay in their index: no list holds them."""

import logging
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np
from torch.utils.data import ConcatDataset

from .shards import ShardRecords

logger = logging.getLogger(__name__)


def concatenated(parts: Iterable[Sequence[dict]]) -> Sequence[dict]:
    """All records: a list if all ``parts`` are lists."""
    parts = [part if isinstance(part, ShardRecords) else list(part) for part in parts]
    if any(isinstance(part, ShardRecords) for part in parts):
        return ConcatDataset(parts)
    return [record for part in parts for record in part]


def parts_of(records: Sequence[dict]) -> list[Sequence[dict]]:
    """The data sets of :func:`concatenated` records."""
    return records.datasets if isinstance(records, ConcatDataset) else [records]


def column(records: Sequence[dict], name: str) -> np.ndarray:
    """(N,) values of "height", "width" or "image_id"."""
    if isinstance(records, ConcatDataset):
        return np.concatenate([column(part, name) for part in records.datasets if len(part)])
    return records.column(name) if isinstance(records, ShardRecords) else np.array([record[name] for record in records])


def with_own_ids(records: Sequence[dict]) -> Sequence[dict]:
    """The records. All images get new numbers if two share an ``image_id``, or one has two or no integer >= 0."""
    parts = parts_of(records)
    listed = [record for part in parts if not isinstance(part, ShardRecords) for record in part]
    shards = {part.source: part for part in parts if isinstance(part, ShardRecords)}
    files: dict = {}  # by id
    good = all(type(r["image_id"]) is int and r["image_id"] >= 0 for r in listed)
    good = good and all(files.setdefault(r["image_id"], r["file_name"]) == r["file_name"] for r in listed)
    if good and len(set(files.values())) == len(files):
        ids = [part.column("image_id") for part in shards.values()] + ([list(files)] if files else [])
        if len(ids) <= 1 or len(np.unique(np.concatenate(ids))) == sum(map(len, ids)):
            return records
    logger.info("Image ids of the image-text pairs are not unique numbers: the images are numbered anew.")
    numbers: dict[str, int] = {}
    for record in listed:
        numbers.setdefault(record["file_name"], len(numbers))
    firsts = dict(zip(shards, accumulate(map(len, shards.values()), initial=len(numbers)), strict=False))
    return concatenated(
        part.numbered_from(firsts[part.source])
        if isinstance(part, ShardRecords)
        else [record | {"image_id": numbers[record["file_name"]]} for record in part]
        for part in parts
    )
