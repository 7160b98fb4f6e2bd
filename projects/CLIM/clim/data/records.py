"""Sequences of records that are not lists: millions of records are made when they are asked for."""

import logging
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np

logger = logging.getLogger(__name__)


class Records(Sequence):
    """``records[i]`` makes record i anew, and a slice is a list. So at rest there are no Python objects.

    A subclass has ``record(i)``; ``column(name)``, the (N,) array of "height", "width" or "image_id";
    ``numbered_from(first)``, the same records with the image ids ``first``, ``first`` + 1, …; and ``source``, which is
    equal for two sequences of the same images. All its records have the same fields, and its image ids differ.
    """

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self.record(i) for i in range(*index.indices(len(self)))]
        return self.record(range(len(self))[index])  # range counts from the end and raises IndexError


class Concatenated(Sequence):
    """Several data sets in a row; ``parts`` are lists and :class:`Records`."""

    def __init__(self, parts: Iterable[Sequence[dict]]):
        self.parts = list(parts)
        self.ends = list(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        part = bisect_right(self.ends, index)
        return self.parts[part][index - self.ends[part]]  # counts from the end of the part


def concatenated(parts: Iterable[Sequence[dict]]) -> Sequence[dict]:
    """All records: a list if all ``parts`` are lists."""
    parts = [part if isinstance(part, Records) else list(part) for part in parts]
    if any(isinstance(part, Records) for part in parts):
        return Concatenated(parts)
    return [record for part in parts for record in part]


def parts_of(records: Sequence[dict]) -> list[Sequence[dict]]:
    """The data sets of :func:`concatenated` records."""
    return records.parts if isinstance(records, Concatenated) else [records]


def column(records: Sequence[dict], name: str) -> Sequence:
    """(N,) values of "height", "width" or "image_id"; a list for a list of records, else an array."""
    if isinstance(records, Concatenated):
        return np.concatenate([column(part, name) for part in records.parts if len(part)])
    return records.column(name) if isinstance(records, Records) else [record[name] for record in records]


def with_own_ids(records: Sequence[dict]) -> Sequence[dict]:
    """The records. If two images share an ``image_id``, or one is not an integer >= 0, all images get new numbers."""
    parts = parts_of(records)
    plain = [record for part in parts if not isinstance(part, Records) for record in part]
    made = {part.source: part for part in parts if isinstance(part, Records)}
    files: dict = {}
    shared = any(files.setdefault(r["image_id"], r["file_name"]) != r["file_name"] for r in plain)
    if not shared and all(type(image_id) is int and image_id >= 0 for image_id in files):
        if len(made) + bool(plain) <= 1:
            return records
        ids = np.sort(np.concatenate([list(files), *(part.column("image_id") for part in made.values())]))
        if np.diff(ids).all():
            return records
    logger.info("Image ids of the image-text pairs are not unique numbers: the images are numbered anew.")
    numbers: dict[str, int] = {}
    for record in plain:
        numbers.setdefault(record["file_name"], len(numbers))
    ends = list(accumulate(map(len, made.values()), initial=len(numbers)))
    first = dict(zip(made, ends, strict=False))
    return concatenated(
        part.numbered_from(first[part.source])
        if isinstance(part, Records)
        else [record | {"image_id": numbers[record["file_name"]]} for record in part]
        for part in parts
    )
