"""Embeddings of texts kept on disk, so that a frozen tower reads every caption once, not every epoch.

Shapes: N texts, D dimensions of an embedding.

A cache folder holds one folder of rows a tower fingerprint (:mod:`clim.text.store`), and ``towers/`` with
the fingerprints of towers met before, so that a warm cache needs no tower at all.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from clim.errors import UserError
from clim.files import write_json
from clim.text.base import TextTower
from clim.text.store import KEY_BYTES, RowStore
from clim.text.towers import build_text_tower, tower_stamp

_CHUNK = 4096  # texts between two writes of a prefill
_UNIT_TOLERANCE = 1e-3  # a stored row further from unit length is damage


class LazyTower:
    """A text tower that is loaded when it first has to read.

    With a ``directory``, its fingerprint and width are noted under ``directory``/towers and known without
    loading while the weights' files keep their size and time; a tag or hub name stands for fixed
    weights, random weights are never noted.
    """

    def __init__(
        self,
        *,
        name: str,
        pretrained: str,
        directory: str | os.PathLike | None = None,
        device: str | torch.device = "cpu",
    ):
        """``name`` and ``pretrained`` as in :func:`clim.text.towers.build_text_tower`."""
        self._source = {"name": name, "pretrained": pretrained}
        self._directory = directory and Path(directory) / "towers"
        self._device = device

    @property
    def fingerprint(self) -> str:
        return self._identity["fingerprint"]

    @property
    def dim(self) -> int:
        return self._identity["dim"]

    @cached_property
    def tower(self) -> TextTower:
        """The tower itself, loaded now if it was not."""
        return build_text_tower(**self._source, device=self._device)

    @property
    def live(self) -> TextTower:
        """The tower itself, as a model needs it that reads words without text."""
        return self.tower

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(N, D) float32 L2-normalised embeddings on the tower's device."""
        return self.tower.encode(texts)

    @cached_property
    def _identity(self) -> dict:
        stamp = self._directory and tower_stamp(**self._source)
        if not stamp:
            return self._loaded_identity()
        note_file = self._directory / f"{hashlib.sha256(stamp.encode()).hexdigest()[:32]}.json"
        identity = _read_note(note_file)
        if identity is None:
            identity = self._loaded_identity()
            _make_folder(self._directory)
            write_json(note_file, identity | self._source, shared=True)
        return identity

    def _loaded_identity(self) -> dict:
        return {"fingerprint": self.tower.fingerprint, "dim": self.tower.dim}


class CaptionCache:
    """Disk-backed ``encode``: only texts that no process has met before reach the tower.

    Other weights have another fingerprint, hence another folder. One object serves one process; any
    number of processes may share the directory. Nothing is opened before the first use.
    """

    def __init__(self, tower: TextTower | LazyTower, directory: str | os.PathLike):
        """``tower`` has ``fingerprint``, ``dim`` and ``encode``; a :class:`LazyTower` may stay unloaded."""
        self.tower = tower
        self._directory = Path(directory)

    @property
    def live(self) -> TextTower:
        """The tower behind the cache, loaded now if it was not."""
        return self.tower.live

    @property
    def dim(self) -> int:
        return self.tower.dim

    @property
    def fingerprint(self) -> str:
        return self.tower.fingerprint

    def __len__(self) -> int:
        """Number of different texts known."""
        return len(self._store)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(N, D) float32 L2-normalised embeddings on the CPU; unknown texts are computed and kept."""
        digests = [self._digest(text) for text in texts]
        by_digest = dict(zip(digests, texts, strict=True))
        self._compute({d: text for d, text in by_digest.items() if d not in self._store})
        rows = self._store.gather(digests)
        whole = np.abs(np.linalg.norm(rows, axis=1) - 1) <= _UNIT_TOLERANCE
        if not whole.all():
            self._compute({d: by_digest[d] for d, fine in zip(digests, whole, strict=True) if not fine})
            rows = self._store.gather(digests)
        return torch.from_numpy(rows)

    def prefill(self, texts: Sequence[str]) -> int:
        """Compute and keep what is not known yet, with a progress bar. Returns how many texts that were.

        Written every 4096 texts: an interrupted run loses no more than that.
        """
        by_digest = {self._digest(text): text for text in texts}
        missing = [(d, text) for d, text in by_digest.items() if d not in self._store]
        with tqdm(total=len(missing), desc="caption embeddings", unit="text", disable=not missing) as bar:
            for start in range(0, len(missing), _CHUNK):
                chunk = dict(missing[start : start + _CHUNK])
                self._compute(chunk)
                bar.update(len(chunk))
        return len(missing)

    @cached_property
    def _store(self) -> RowStore:
        folder = self._directory / self.fingerprint
        _make_folder(folder)
        return RowStore(folder, dim=self.dim)

    def _digest(self, text: str) -> bytes:
        data = text.encode("utf-8", errors="surrogatepass")
        return hashlib.blake2b(data, digest_size=KEY_BYTES, key=self.fingerprint.encode()).digest()

    def _compute(self, texts: dict[bytes, str]) -> None:
        if texts:
            self._store.add(list(texts), self.tower.encode(list(texts.values())).cpu().numpy())


def _read_note(path: Path) -> dict | None:
    try:
        note = json.loads(path.read_text())
        return {"fingerprint": str(note["fingerprint"]), "dim": int(note["dim"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The caption cache (MODEL.TEXT.CACHE) cannot be written: {error}.") from error
