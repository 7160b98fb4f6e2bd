"""Embeddings of texts on disk: a frozen tower reads every caption once, and not in every epoch.

Shapes: N texts, D dimensions of an embedding, n rows.

A cache folder holds a folder of rows for each tower fingerprint, and ``towers/`` with the fingerprints of known
towers (:class:`clim.text.build.LazyTower`). Each process appends rows to its own pair of files, so that processes
never wait for each other: ``*.rows``, float32 (n, D), and ``*.keys``, n x 16 bytes.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clim.text.tower import TextTower

KEY_BYTES = 16
_MAP_STRIDE = 1 << 40  # more rows than a file can have
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

    def __contains__(self, text: str) -> bool:
        return self._key(text) in self._store

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
        self._maps: list[np.ndarray] = []  # (n, D) of each pair of files
        self._own: Path | None = None  # this object appends to these files; their map is the last
        self._places: dict[bytes, int] = {}  # map * _MAP_STRIDE + row
        for path in sorted(folder.glob("*.keys")):  # oldest first: a newer row replaces an older one
            self._maps.append(self._map(path.with_suffix("")))
            data = path.read_bytes()
            self._place([data[i : i + KEY_BYTES] for i in range(0, len(self._maps[-1]) * KEY_BYTES, KEY_BYTES)])

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Store ``rows`` (n, D) under ``keys``; a known key gets the new row."""
        if self._own is None:
            self._own = self._folder / f"{time.time_ns():020d}-{os.getpid()}"
            self._maps.append(self._map(self._own))
        first = len(self._maps[-1])
        for suffix, size, data in (
            (".rows", 4 * self._dim, rows.astype(np.float32).tobytes()),
            (".keys", KEY_BYTES, b"".join(keys)),
        ):
            with open(self._own.with_suffix(suffix), "ab") as file:
                file.truncate(first * size)  # removes the rest of an earlier, failed write
                file.write(data)
        self._maps[-1] = self._map(self._own)
        self._place(keys, first)

    def gather(self, keys: Sequence[bytes]) -> np.ndarray:
        """(n, D) float32 copies of the rows of n known keys."""
        maps, numbers = np.divmod(np.array([self._places[key] for key in keys], dtype=np.int64), _MAP_STRIDE)
        rows = np.empty((len(keys), self._dim), dtype=np.float32)
        for i in np.unique(maps):
            rows[maps == i] = self._maps[i][numbers[maps == i]]
        return rows

    def _map(self, stem: Path) -> np.ndarray:
        """The memory map (n, D) of all complete rows that have a complete key."""
        files = {stem.with_suffix(".keys"): KEY_BYTES, stem.with_suffix(".rows"): 4 * self._dim}
        length = min(path.stat().st_size // size if path.exists() else 0 for path, size in files.items())
        if not length:  # an empty file cannot be mapped
            return np.empty((0, self._dim), np.float32)
        return np.memmap(stem.with_suffix(".rows"), np.float32, "r", shape=(length, self._dim))

    def _place(self, keys: Sequence[bytes], first: int = 0) -> None:
        """Remember that ``keys`` start at row ``first`` of the last map."""
        start = (len(self._maps) - 1) * _MAP_STRIDE + first
        self._places.update(zip(keys, range(start, start + len(keys)), strict=True))
