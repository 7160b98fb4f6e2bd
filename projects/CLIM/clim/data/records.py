"""Image-text pairs as flat columns, several data sets in a row, and image ids that differ.

All processes share the columns. Workers would copy a list of dicts: who reads a Python object writes its count.
"""

import logging
import struct
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Self

import numpy as np
from torch.utils.data import ConcatDataset

from clim.errors import UserError

logger = logging.getLogger(__name__)

COLUMNS = [
    ("height", "<i4"), ("width", "<i4"), ("image_id", "<i8"),  # px, upright; id -1: the image has none
    ("start", "<i8"), ("member", "<i4"), ("caption", "<i4"), ("tags", "<i4"),  # place and lengths in the texts, bytes
]  # fmt: skip
_PAIR = np.dtype([("key", "<i8"), *COLUMNS])
_ROW = struct.Struct("<qiiqqiii")  # the same


class PairRecords(Sequence):
    """Records {file_name, height, width, image_id, captions, tags}, made when they are asked for; a slice is a list.

    ``pairs`` (N,) has the fields ``key`` and COLUMNS. ``texts`` are uint8: name, captions (UTF-8, zeros between them)
    and tags (int32) of each image; all tags are below ``tag_count``. ``ids`` (N,) int64 replace the image ids.
    ``changes``: functions of a record that are applied to each, one after the other; other processes can receive them.
    """

    def __init__(
        self, pairs: np.ndarray, texts: np.ndarray, tag_count: int, ids: np.ndarray | None = None, changes: tuple = ()
    ):  # fmt: skip
        self.pairs, self.texts, self.tag_count, self.ids, self.changes = pairs, texts, tag_count, ids, changes

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self.record(i) for i in range(*index.indices(len(self)))]
        return self.record(range(len(self))[index])  # range counts from the end and raises IndexError

    def numbered(self, ids: np.ndarray) -> Self:
        """The same images with the ids (N,)."""
        return self._with(ids=ids)

    def changed_by(self, change: Callable[[dict], dict]) -> Self:
        return self._with(changes=(*self.changes, change))

    def _with(self, **attributes) -> Self:
        other = object.__new__(type(self))
        vars(other).update(vars(self) | attributes)
        return other

    def column(self, name: str) -> np.ndarray:
        """(N,) values of "height", "width" or "image_id"."""
        return self.ids if name == "image_id" and self.ids is not None else np.ascontiguousarray(self.pairs[name])

    def keys(self) -> np.ndarray:
        """(N,) int64: equal where images are the same, also those of another sequence in this process."""
        return np.ascontiguousarray(self.pairs["key"])

    def file_name(self, name: str, *place: int) -> str:
        """The image's; ``place`` are the fields of ``pairs`` before COLUMNS."""
        return name

    def record(self, index: int) -> dict:
        *place, height, width, image_id, start, name, captions, tags = self.pairs[index].item()
        data = self.texts[start : start + name + captions + tags].tobytes()
        record = {
            "file_name": self.file_name(data[:name].decode("utf-8", "replace"), *place),
            "height": height, "width": width, "image_id": image_id if self.ids is None else int(self.ids[index]),
            "captions": data[name : name + captions].decode("utf-8", "replace").split("\0"),
            "tags": np.frombuffer(data, "<i4", offset=name + captions).tolist(),
        }  # fmt: skip
        return reduce(lambda changed, change: change(changed), self.changes, record)


class Columns:
    """The columns of :class:`PairRecords`, image by image."""

    def __init__(self):
        self.pairs, self.texts, self.tag_count = bytearray(), bytearray(), 0

    def add(self, name: str, height: int, width: int, image_id: int, captions: bytes, tags: Sequence[int]) -> None:
        """``captions`` as in the texts. ValueError for a name with a zero, and for one that UTF-8 cannot show."""
        data, start = name.encode(), len(self.texts)
        if 0 in data:
            raise ValueError("embedded null byte")
        self.pairs += _ROW.pack(hash(name), height, width, image_id, start, len(data), len(captions), 4 * len(tags))
        self.texts += data
        self.texts += captions
        if tags:
            self.texts += array("i", tags)
            self.tag_count = max(self.tag_count, max(tags) + 1)

    def records(self) -> PairRecords:
        return PairRecords(np.frombuffer(self.pairs, _PAIR), np.frombuffer(self.texts, np.uint8), self.tag_count)


def listed(records: Iterable[dict], field: str, source: str) -> Sequence[dict]:
    """The records of a data set as they are, or as a list. UserError unless they are dicts with ``field``."""
    if not isinstance(records, Iterable) or isinstance(records, Mapping):
        raise UserError(f"{source} gives {type(records).__name__}: its function must return a list of records.")
    records = records if isinstance(records, Sequence) else list(records)
    wrong = (i for i, record in enumerate(records) if not isinstance(record, Mapping) or field not in record)
    if (number := next(wrong, None)) is not None:
        remedy = "put pairs into DATASETS.CAPTIONS, boxes into DATASETS.TRAIN, pseudo-labels into DATASETS.REGIONS"
        raise UserError(f"{source} holds images without {field}, first record {number}: {remedy}.")
    return records


def concatenated(parts: Iterable[PairRecords]) -> Sequence[dict]:
    """All records, one part after the other."""
    parts = list(parts)
    return parts[0] if len(parts) == 1 else ConcatDataset(parts)


def column(records: Sequence[dict], name: str) -> np.ndarray:
    """(N,) values of "height", "width" or "image_id"."""
    if isinstance(records, ConcatDataset):
        return np.concatenate([column(part, name) for part in records.datasets if len(part)])
    if isinstance(records, PairRecords):
        return records.column(name)
    return np.array([record[name] for record in records])


def with_own_ids(records: Sequence[dict]) -> Sequence[dict]:
    """The records. All images get new numbers if two share an ``image_id``, or one has two or no integer >= 0."""
    parts = records.datasets if isinstance(records, ConcatDataset) else [records]
    ids, keys = column(records, "image_id"), np.concatenate([part.keys() for part in parts])
    order = np.argsort(ids, kind="stable")
    again = np.diff(ids[order]) == 0
    one_image = not np.diff(keys[order])[again].any()
    images, first, number = np.unique(keys, return_index=True, return_inverse=True)
    if ids.min() >= 0 and one_image and len(images) == len(ids) - again.sum():
        return records
    logger.info("Image ids of the image-text pairs are not unique numbers: the images are numbered anew.")
    rank = np.empty(len(images), np.int64)
    rank[np.argsort(first)] = np.arange(len(images))  # an image's number is the place of its first record
    bounds = np.cumsum([len(part) for part in parts])[:-1]
    return concatenated(map(PairRecords.numbered, parts, np.split(rank[number], bounds)))
