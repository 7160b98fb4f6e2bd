"""Embeddings of texts on disk: a frozen tower reads every caption once, and not in every epoch.

Shapes: N texts, D dimensions of an embedding, n rows.

A cache folder holds a folder of rows for each tower fingerprint, and ``towers/`` with the fingerprints of known
towers (:class:`clim.text.build.LazyTower`). Each process appends rows to its own pair of files, so that processes
never wait for each other: ``*.rows``, float32 (n, D), and ``*.keys``, n x 16 bytes.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from clim.text.tower import TextTower

KEY_BYTES = 16
_SHARD_STRIDE = 1 << 40  # more rows than a shard can have
_CHUNK = 4096  # texts between two writes of a prefill
_UNIT_TOLERANCE = 1e-3  # a stored row whose length differs more from 1 is damaged


class CaptionCache:
    """``encode`` with a memory on disk: the ``tower``, which may be lazy, encodes only texts that are not stored.

    Any number of processes may share the directory. It is opened at the first use.
    """

    def __init__(self, tower, directory: str | os.PathLike):
        self.tower = tower
        self._directory = Path(directory)

    @property
    def live(self) -> TextTower:
        return self.tower.live

    @property
    def dim(self) -> int:
        return self.tower.dim

    def __len__(self) -> int:
        return len(self._store)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(N, D) float32 unit embeddings on the CPU. Computes and stores those of unknown texts."""
        keys = [self._key(text) for text in texts]
        by_key = dict(zip(keys, texts, strict=True))
        self._compute({key: text for key, text in by_key.items() if key not in self._store})
        rows = self._store.gather(keys)
        whole = np.abs(np.linalg.norm(rows, axis=1) - 1) <= _UNIT_TOLERANCE
        if not whole.all():
            self._compute({key: by_key[key] for key, fine in zip(keys, whole, strict=True) if not fine})
            rows = self._store.gather(keys)
        return torch.from_numpy(rows)

    def prefill(self, texts: Iterable[str]) -> int:
        """Store the embeddings of all unknown texts, 4096 at a time, with a progress bar. Returns their number.

        ``texts`` are read one by one and need not fit into memory.
        """
        stored, chunk = len(self), {}
        for text in tqdm(texts, desc="caption embeddings", unit="text"):
            key = self._key(text)
            if key not in self._store:
                chunk[key] = text
            if len(chunk) == _CHUNK:
                self._compute(chunk)
                chunk = {}
        self._compute(chunk)
        return len(self) - stored

    @cached_property
    def _store(self) -> "RowStore":
        folder = self._directory / self.tower.fingerprint
        folder.mkdir(parents=True, exist_ok=True)
        return RowStore(folder, dim=self.dim)

    def _key(self, text: str) -> bytes:
        data = text.encode("utf-8", errors="surrogatepass")
        return hashlib.blake2b(data, digest_size=KEY_BYTES, key=self.tower.fingerprint.encode()).digest()

    def _compute(self, texts: dict[bytes, str]) -> None:
        if texts:
            self._store.add(list(texts), self.tower.encode(list(texts.values())).cpu().numpy())


class RowStore:
    """{key: row (D,)}: the rows in a folder when it was opened, and those that this object has added."""

    def __init__(self, folder: Path, *, dim: int):
        self._folder, self._dim = folder, dim
        self._shards: list[_Shard] = []
        self._own: _Shard | None = None  # this object appends to it
        self._places: dict[bytes, int] = {}  # shard * _SHARD_STRIDE + row
        for path in sorted(folder.glob("*.keys")):  # oldest first: a newer row replaces an older one
            self._place(self._open(path.with_suffix("")).keys(), first=0)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Store ``rows`` (n, D) under ``keys``; a known key gets the new row."""
        self._own = self._own or self._open(self._folder / f"{time.time_ns():020d}-{os.getpid()}")
        first = len(self._own.rows)
        self._own.append(keys, rows)
        self._place(keys, first=first)

    def gather(self, keys: Sequence[bytes]) -> np.ndarray:
        """(n, D) float32 copies of the rows of n known keys."""
        places = np.array([self._places[key] for key in keys], dtype=np.int64)
        shards, numbers = np.divmod(places, _SHARD_STRIDE)
        rows = np.empty((len(keys), self._dim), dtype=np.float32)
        for shard in np.unique(shards):
            rows[shards == shard] = self._shards[shard].rows[numbers[shards == shard]]
        return rows

    def _open(self, stem: Path) -> "_Shard":
        self._shards.append(_Shard(stem, dim=self._dim))
        return self._shards[-1]

    def _place(self, keys: Sequence[bytes], *, first: int) -> None:
        """Remember that ``keys`` start at row ``first`` of the last shard."""
        start = (len(self._shards) - 1) * _SHARD_STRIDE + first
        self._places.update(zip(keys, range(start, start + len(keys)), strict=True))


class _Shard:
    """A pair of files; ``rows`` (n, D) is the memory map of all complete rows that have a complete key."""

    def __init__(self, stem: Path, *, dim: int):
        self._key_file, self._row_file = stem.with_suffix(".keys"), stem.with_suffix(".rows")
        self._dim = dim
        self._map()

    def keys(self) -> list[bytes]:
        data = self._key_file.read_bytes() if len(self.rows) else b""
        return [data[i * KEY_BYTES : (i + 1) * KEY_BYTES] for i in range(len(self.rows))]

    def append(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Write ``rows`` (n, D), then their keys; first remove the rest of an earlier, failed write."""
        for path, size, data in (
            (self._row_file, 4 * self._dim, rows.astype(np.float32).tobytes()),
            (self._key_file, KEY_BYTES, b"".join(keys)),
        ):
            with open(path, "ab") as file:
                file.truncate(len(self.rows) * size)
                file.write(data)
        self._map()

    def _map(self) -> None:
        sizes = [path.stat().st_size if path.exists() else 0 for path in (self._key_file, self._row_file)]
        length = min(sizes[0] // KEY_BYTES, sizes[1] // (4 * self._dim))
        if length:
            self.rows = np.memmap(self._row_file, np.float32, "r", shape=(length, self._dim))
        else:  # an empty file cannot be mapped
            self.rows = np.empty((0, self._dim), np.float32)
