"""Rows of floats on disk under 16-byte keys: memory-mapped, appended to by any number of processes.

Every process that adds rows appends to a pair of files of its own, so processes never wait for each other:
``*.rows``, float32 (n, D), and ``*.keys``, n x 16 bytes. A row is written before its key; what a killed
process left half written is not mapped, so its keys are simply unknown.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

KEY_BYTES = 16


class RowStore:
    """{key: row (D,)} of a folder, as it was when opened plus what this object added since."""

    def __init__(self, folder: Path, *, dim: int):
        self._folder, self._dim = folder, dim
        # Rows are numbered through all shards; only the last shard, this object's own, grows.
        self._shards: list[_Shard] = []
        self._starts: list[int] = []  # number of each shard's first row
        self._numbers: dict[bytes, int] = {}
        self._has_own = False
        for path in sorted(folder.glob("*.keys")):  # oldest first: a newer row replaces an older
            self._open(path.with_suffix(""))

    def __contains__(self, key: bytes) -> bool:
        return key in self._numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Keep ``rows`` (n, D) under ``keys``; a known key gets the new row."""
        if not self._has_own:
            self._open(self._folder / f"{time.time_ns():020d}-{os.getpid()}")
            self._has_own = True
        first = self._end()
        self._shards[-1].append(keys, rows)
        self._numbers.update(zip(keys, range(first, first + len(keys)), strict=True))

    def gather(self, keys: Sequence[bytes]) -> np.ndarray:
        """(n, D) float32 copies of the rows of n known keys, in their order."""
        numbers = np.array([self._numbers[key] for key in keys], dtype=np.int64)
        # The last shard that starts at or before a row holds it: an empty one starts where the next does.
        shards = np.searchsorted(self._starts, numbers, side="right") - 1
        rows = np.empty((len(keys), self._dim), dtype=np.float32)
        for shard in np.unique(shards):
            here = shards == shard
            rows[here] = self._shards[shard].rows[numbers[here] - self._starts[shard]]
        return rows

    def _open(self, stem: Path) -> None:
        start = self._end()
        shard = _Shard(stem, dim=self._dim)
        self._shards.append(shard)
        self._starts.append(start)
        self._numbers.update(zip(shard.keys(), range(start, start + len(shard)), strict=True))

    def _end(self) -> int:
        return self._starts[-1] + len(self._shards[-1]) if self._shards else 0


class _Shard:
    """One pair of files; ``rows`` (n, D) is the memory map."""

    def __init__(self, stem: Path, *, dim: int):
        self._key_file, self._row_file = stem.with_suffix(".keys"), stem.with_suffix(".rows")
        self._dim = dim
        self._map()

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self) -> list[bytes]:
        data = self._key_file.read_bytes() if len(self) else b""
        return [data[i * KEY_BYTES : (i + 1) * KEY_BYTES] for i in range(len(self))]

    def append(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Write ``rows`` (n, D), then their keys; what an earlier, failed write left behind is cut off."""
        with open(self._row_file, "ab") as file:
            file.truncate(len(self) * 4 * self._dim)
            file.write(rows.astype(np.float32).tobytes())
        with open(self._key_file, "ab") as file:
            file.truncate(len(self) * KEY_BYTES)
            file.write(b"".join(keys))
        self._map()

    def _map(self) -> None:
        """Map the rows that are complete and have a complete key."""
        sizes = [path.stat().st_size if path.exists() else 0 for path in (self._key_file, self._row_file)]
        length = min(sizes[0] // KEY_BYTES, sizes[1] // (4 * self._dim))
        if length:
            self.rows = np.memmap(self._row_file, np.float32, "r", shape=(length, self._dim))
        else:  # an empty file cannot be mapped
            self.rows = np.empty((0, self._dim), np.float32)
