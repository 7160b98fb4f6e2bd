"""Find and read CLIP weights, whichever of the common files they come in, without running any code."""

import pickle
import zipfile
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clim.errors import UserError
from clim.paths import resolve

_HUB = "hf-hub:"
_UNREADABLE = (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, OSError)
_ANCHOR = "token_embedding.weight"  # every CLIP text half has it: what stands before it is the prefix


class TextWeights(NamedTuple):
    """Weights of a text half under OpenAI's names; ``quick_gelu`` is None where the file cannot tell."""

    state: dict[str, Tensor]
    quick_gelu: bool | None


def find_weights(*, name: str, pretrained: str) -> tuple[Path, bool | None]:
    """File of the weights ``pretrained`` of the open_clip model ``name``, and whether they use QuickGELU.

    ``pretrained`` is a tag of open_clip ("openai"), a file (also under ``DETECTRON2_DATASETS``) or
    "hf-hub:owner/repository". Tags and hub names are downloaded to the hub's cache when not yet there.

    Raises UserError for an unknown tag, a missing file, or a hub that cannot be reached.
    """
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if tag:
        link = tag.get("url") or f"https://huggingface.co/{tag.get('hf_hub', '').rstrip('/')}"
        return _fetch(lambda: open_clip.download_pretrained(tag), pretrained, link), tag.get(
            "quick_gelu", False
        )
    if pretrained.startswith(_HUB):
        repository = pretrained.removeprefix(_HUB)
        link = f"open_clip_model.safetensors of https://huggingface.co/{repository}"
        return _fetch(lambda: download_pretrained_from_hf(repository), pretrained, link), None
    path = resolve(pretrained)
    if not path.is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise UserError(
            f"MODEL.TEXT.PRETRAINED {pretrained!r} is neither a file nor a tag of the open_clip model "
            f"{name} (its tags: {tags}): correct it, or name the file that holds the weights."
        )
    return path, None


def read_text_weights(path: Path) -> TextWeights:
    """Text half of an OpenAI TorchScript file, an open_clip or CLIM checkpoint, a safetensors file or a
    Detic checkpoint (``text_encoder.*``). Loads tensors only: no pickled code runs.

    Raises UserError when the file cannot be read that way or holds no CLIP text tower.
    """
    torchscript = zipfile.is_zipfile(path) and _is_torchscript(path)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        elif torchscript:
            state = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"The text weights in {path} cannot be read as plain tensors ({reason}).") from error

    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    keys = state if isinstance(state, dict) else ()
    anchors = [key for key in keys if isinstance(key, str) and key.endswith(_ANCHOR)]
    if not anchors:
        raise UserError(f"{path} holds no CLIP text tower: no weight is called {_ANCHOR}.")
    prefix = min(anchors, key=len).removesuffix(_ANCHOR)
    text = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    openai = torchscript or prefix.endswith("text_encoder.")
    return TextWeights(text, True if openai else None)


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("/constants.pkl") for entry in archive.namelist())


def _fetch(download, pretrained: str, link: str) -> Path:
    try:
        return Path(download())
    except Exception as error:  # each transport has its own: offline, refused, not found, interrupted
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"The weights {pretrained!r} are not on this machine and could not be downloaded ({reason}): "
            f"fetch {link} by other means and set MODEL.TEXT.PRETRAINED to that file."
        ) from error
