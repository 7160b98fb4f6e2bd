"""Image-text pairs in tar shards, as img2dataset and the webdataset copy of CC3M write them, read by random access.

``tools/index_pairs.py`` makes an index once. It is a folder of

- ``pairs.npy``: a row of type ``PAIR`` for each image,
- ``texts.bin``: member name and caption (UTF-8) and tags (int32) of each image, one image after the other,
- ``facts.json``: the shards with what tells whether they have changed, the categories, and counts of skipped members,
- ``skipped.tsv``: shard, member and reason of each skipped member.

All processes share both data files as memory maps. The name of an image is ``tar://SHARD?OFFSET+SIZE#MEMBER``, and
Detectron2's ``PathManager`` opens it. Source of the layout: detic §4.
"""

import io
import logging
import os
import re
import stat
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path

import numpy as np
from detectron2.utils.file_io import PathHandler, PathManager

from clim.errors import UserError
from clim.files import read_json

logger = logging.getLogger(__name__)

SCHEME = "tar://"  # of the names of images in shards
VERSION = 1
PAIR = np.dtype([
    ("shard", "<i4"), ("offset", "<i8"), ("size", "<i8"),  # index into facts.json's shards; bytes of the image in it
    ("height", "<i4"), ("width", "<i4"), ("image_id", "<i8"),  # px, upright
    ("start", "<i8"), ("member", "<i4"), ("caption", "<i4"), ("tags", "<i4"),  # place and lengths in texts.bin, bytes
])  # fmt: skip
_SPAN = re.compile(r"tar://(.+?)\?(\d+)\+(\d+)#")
_PROBE = 1 << 16  # bytes


class ShardRecords(Sequence):
    """The pairs of the index in folder ``index``: file_name, height, width, image_id, captions (one) and tags.

    A record is made when it is asked for; a slice is a list. ``tags`` are indices into the index's categories by
    ascending id. Image ids are the numbers that the keys are, or the rows of the index if keys are not different
    numbers; with ``first_id``, they are ``first_id``, ``first_id`` + 1, … ``changes``: functions of a record that are
    applied to each, one after the other; other processes can receive them.
    """

    def __init__(
        self, index: str | os.PathLike, shards: str | os.PathLike, first_id: int | None = None,
        changes: tuple[Callable[[dict], dict], ...] = (),
    ):  # fmt: skip
        self.index, self.shards, self.first_id, self.changes = Path(index), Path(shards), first_id, changes
        facts = read_json(self.index / "facts.json", remedy="it is part of the index")
        self.files = [str(self.shards / shard["name"]) for shard in facts["shards"]]
        # Plain arrays on the maps: np.memmap itself makes each access slow.
        self.pairs = np.load(self.index / "pairs.npy", mmap_mode="r").view(np.ndarray)
        self.texts = np.memmap(self.index / "texts.bin", np.uint8, "r").view(np.ndarray)

    def __reduce__(self):
        # Workers reopen the maps, because pickling them would copy them.
        return ShardRecords, (self.index, self.shards, self.first_id, self.changes)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self.record(i) for i in range(*index.indices(len(self)))]
        return self.record(range(len(self))[index])  # range counts from the end and raises IndexError

    @property
    def source(self) -> str:
        """Equal for two sequences of the same images."""
        return str(self.index.resolve())

    def numbered_from(self, first: int) -> "ShardRecords":
        return ShardRecords(self.index, self.shards, first, self.changes)

    def changed_by(self, change: Callable[[dict], dict]) -> "ShardRecords":
        return ShardRecords(self.index, self.shards, self.first_id, (*self.changes, change))

    def column(self, name: str) -> np.ndarray:
        """(N,) values of "height", "width" or "image_id"."""
        if name == "image_id" and self.first_id is not None:
            return np.arange(self.first_id, self.first_id + len(self))
        return np.ascontiguousarray(self.pairs[name])

    def record(self, index: int) -> dict:
        shard, offset, size, height, width, image_id, start, *lengths = self.pairs[index].item()
        member, caption, tags = map(io.BytesIO(self.texts[start : start + sum(lengths)]).read, lengths)
        member, caption = (text.decode("utf-8", "surrogatepass") for text in (member, caption))
        record = {
            "file_name": f"{SCHEME}{self.files[shard]}?{offset}+{size}#{member}", "height": height, "width": width,
            "image_id": image_id if self.first_id is None else self.first_id + index,
            "captions": [caption], "tags": np.frombuffer(tags, "<i4").tolist(),
        }  # fmt: skip
        return reduce(lambda changed, change: change(changed), self.changes, record)


class ShardHandler(PathHandler):
    """Opens the images of shards for Detectron2's ``PathManager``, read-only."""

    def _get_supported_prefixes(self) -> list[str]:
        return [SCHEME]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_) -> io.BytesIO:
        span = _SPAN.match(path)
        if mode != "rb" or not span:
            raise ValueError(f"{path} with mode {mode!r}: images in shards are tar://SHARD?OFFSET+SIZE#MEMBER, mode rb")
        shard, offset, size = span[1], int(span[2]), int(span[3])
        if not stat.S_ISREG(os.stat(shard).st_mode):  # a pipe or a device would never end
            raise OSError("the shard is not a file")
        with open(shard, "rb", buffering=0) as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise OSError("the shard ends before this image")
        return io.BytesIO(data)


PathManager.register_handler(ShardHandler(), allow_override=True)


def read_shards(index_folder: str, shard_folder: str, *, remedy: str, **_) -> ShardRecords:
    """The pairs of an index whose shards are below ``shard_folder``. UserError for a missing or stale index."""
    facts = read_json(Path(index_folder) / "facts.json", remedy=remedy)
    if facts.get("version") != VERSION:
        raise UserError(f"{index_folder} is not an index of this version of clim: {remedy}")
    for shard in facts["shards"]:
        path = Path(shard_folder) / shard["name"]
        if not path.is_file():
            raise UserError(f"{path} not found, but {index_folder} lists it: get the shard, or {remedy}")
        if not unchanged(path, shard):
            raise UserError(f"{path} has changed since {index_folder} was made: {remedy}")
    try:
        records = ShardRecords(index_folder, shard_folder)
        if records.pairs.dtype != PAIR or (len(records), len(records.texts)) != (facts["images"], facts["text_bytes"]):
            raise ValueError("its files do not belong together")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{index_folder} is damaged ({error}): {remedy}") from error
    skipped = sum(facts["skipped"].values())
    logger.info(f"Opened {len(records)} image-text pairs in {len(records.files)} shards; {skipped} were skipped")
    return records


def stamp(path: Path) -> dict:
    """What tells whether a shard has changed: size, time, and a checksum of its first and last 64 kB."""
    status = path.stat()
    with open(path, "rb") as file:
        checksum = zlib.crc32(file.read(_PROBE))
        file.seek(max(0, status.st_size - _PROBE))
        checksum = zlib.crc32(file.read(_PROBE), checksum)
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "checksum": checksum}


def unchanged(path: Path, before: Mapping) -> bool:
    """Whether the shard has its :func:`stamp` of ``before``. A copy with a new time is the same shard."""
    status = path.stat()
    if (status.st_size, status.st_mtime_ns) == (before["bytes"], before["mtime_ns"]):
        return True
    return status.st_size == before["bytes"] and stamp(path)["checksum"] == before["checksum"]
