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
import zlib
from pathlib import Path

import msgspec
import numpy as np
from detectron2.utils.file_io import PathHandler, PathManager

from clim.errors import UserError
from clim.files import read_json

from .records import COLUMNS, PairRecords

logger = logging.getLogger(__name__)

SCHEME = "tar://"  # of the names of images in shards
VERSION = 1
PAIR = np.dtype([
    ("shard", "<i4"), ("offset", "<i8"), ("size", "<i8"),  # index into facts.json's shards; bytes of the image in it
    *COLUMNS,
])  # fmt: skip
_SPAN = re.compile(r"tar://(.+?)\?(\d+)\+(\d+)#")
_PROBE = 1 << 16  # bytes


class Shard(msgspec.Struct):
    """A shard below the folder of shards, and its :func:`stamp` when it was read."""

    name: str
    bytes: int
    mtime_ns: int
    checksum: int


class Facts(msgspec.Struct):
    """What is read here of ``facts.json``."""

    version: int
    images: int
    text_bytes: int
    shards: list[Shard]
    categories: list[dict]
    skipped: dict[str, int]
    checksums: dict[str, int] = {}  # of both files; older indices have none


class ShardRecords(PairRecords):
    """The pairs of the index in folder ``index``, whose shards are below the folder ``shards``.

    ``tags`` are indices into the index's categories by ascending id. Image ids are the numbers that the keys are, or
    the rows of the index if keys are not different numbers.
    """

    def __init__(self, index: str | os.PathLike, shards: str | os.PathLike, ids=None, changes=()):
        self.index, self.shards = Path(index), Path(shards)
        self.facts = read_json(self.index / "facts.json", remedy="it is part of the index", kind=Facts)
        self.files = [str(self.shards / shard.name) for shard in self.facts.shards]
        # Plain arrays on the maps: np.memmap itself makes each access slow.
        pairs = np.load(self.index / "pairs.npy", mmap_mode="r").view(np.ndarray)
        texts = np.memmap(self.index / "texts.bin", np.uint8, "r").view(np.ndarray)
        super().__init__(pairs, texts, len(self.facts.categories), ids, changes)

    def __reduce__(self):
        # Workers reopen the maps, because pickling them would copy them.
        return ShardRecords, (self.index, self.shards, self.ids, self.changes)

    def keys(self) -> np.ndarray:
        return np.arange(len(self)) + hash(str(self.index.resolve())) // 2  # the half cannot overflow

    def file_name(self, name: str, shard: int, offset: int, size: int) -> str:
        return f"{SCHEME}{self.files[shard]}?{offset}+{size}#{name}"


class ShardHandler(PathHandler):
    """Opens the images of shards for Detectron2's ``PathManager``, read-only."""

    def _get_supported_prefixes(self) -> list[str]:
        return [SCHEME]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_) -> io.BytesIO:
        span = _SPAN.match(path)
        if mode != "rb" or not span:
            raise OSError(f"{path} with mode {mode!r}: images in shards are tar://SHARD?OFFSET+SIZE#MEMBER, mode rb")
        shard, offset, size = span[1], int(span[2]), int(span[3])
        # A pipe without a writer would block for ever.
        with open(shard, "rb", buffering=0, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            if offset + size > os.fstat(file.fileno()).st_size:  # 0 of a pipe or a device
                raise OSError("the shard ends before this image")
            file.seek(offset)
            return io.BytesIO(file.read(size))


PathManager.register_handler(ShardHandler(), allow_override=True)


def read_shards(index_folder: str, shard_folder: str, *, remedy: str, **_) -> ShardRecords:
    """The pairs of an index whose shards are below ``shard_folder``. UserError for a missing or stale index."""
    facts = read_json(Path(index_folder) / "facts.json", remedy=remedy, kind=Facts)
    if facts.version != VERSION:
        raise UserError(f"{index_folder} is not an index of this version of clim: {remedy}")
    for shard in facts.shards:
        path = Path(shard_folder) / shard.name
        if not path.is_file():
            raise UserError(f"{path} not found, but {index_folder} lists it: get the shard, or {remedy}")
        status = path.stat()
        touched = (status.st_size, status.st_mtime_ns) != (shard.bytes, shard.mtime_ns)
        same = {"bytes": shard.bytes, "mtime_ns": status.st_mtime_ns, "checksum": shard.checksum}  # but for its time
        if touched and stamp(path) != same:
            raise UserError(f"{path} has changed since {index_folder} was made: {remedy}")
    try:
        if irregular := [name for name in ("pairs.npy", "texts.bin") if not (Path(index_folder) / name).is_file()]:
            raise ValueError(f"{irregular[0]} is missing, or no file")
        records = ShardRecords(index_folder, shard_folder)
        _check(records.pairs, records.texts, facts)
        for name, value in facts.checksums.items():
            if checksum(Path(index_folder) / name) != value:
                raise ValueError(f"the content of {name} has changed")
    except Exception as error:  # numpy raises many kinds for a broken header of the .npy, such as TokenError
        raise UserError(f"{index_folder} is damaged ({' '.join(str(error).split())}): {remedy}") from error
    skipped = sum(facts.skipped.values())
    logger.info(f"Opened {len(records)} image-text pairs in {len(records.files)} shards; {skipped} were skipped")
    return records


def _check(pairs: np.ndarray, texts: np.ndarray, facts: Facts) -> None:
    """ValueError unless every pair lies within its shard and the texts."""
    if pairs.dtype != PAIR or pairs.shape != (facts.images,) or len(texts) != facts.text_bytes:
        raise ValueError("its files do not belong together")
    ends = np.array([shard.bytes for shard in facts.shards], np.int64)
    lengths = [pairs[name] for name in ("member", "caption", "tags")]
    positive = [pairs[name] >= 0 for name in ("shard", "offset", "size", "start", "member", "caption", "tags")]
    sound = np.all([*positive, pairs["height"] > 0, pairs["width"] > 0, pairs["tags"] % 4 == 0], axis=0)
    sound &= (pairs["shard"] < len(ends)) & (pairs["start"] <= len(texts) - sum(n.astype(np.int64) for n in lengths))
    inside = pairs[sound]
    sound[sound] = inside["offset"] <= ends[inside["shard"]] - inside["size"]
    if not sound.all():
        raise ValueError(f"row {sound.argmin()} of pairs.npy points beyond its shard or texts.bin")


def checksum(file: Path) -> int:
    """Of a file that is not empty."""
    return zlib.crc32(np.memmap(file, np.uint8, "r"))


def stamp(path: Path) -> dict:
    """What tells whether a shard has changed: size, time, and a checksum of its first and last 64 kB."""
    status = path.stat()
    with open(path, "rb") as file:
        value = zlib.crc32(file.read(_PROBE))
        file.seek(max(0, status.st_size - _PROBE))
        value = zlib.crc32(file.read(_PROBE), value)
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "checksum": value}
