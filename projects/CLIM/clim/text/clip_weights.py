"""Find, read and load CLIP weights, whichever of the common files they come in, without running any code."""

import logging
import pickle
import zipfile
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clim.errors import UserError
from clim.files import resolve

logger = logging.getLogger(__name__)

_HUB = "hf-hub:"
_UNREADABLE = (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, OSError)


class Half(NamedTuple):
    """One half of CLIP: how it is called in sentences, where its weights are, which config keys name it."""

    what: str
    anchor: str  # a weight that every CLIP has, by its end: what stands before it is a prefix of all
    folder: str  # this half's own part of OpenAI's names
    name_key: str
    weights_key: str


TEXT = Half("text tower", "token_embedding.weight", "", "MODEL.TEXT.NAME", "MODEL.TEXT.PRETRAINED")
IMAGE = Half(
    "image encoder",
    "visual.conv1.weight",
    "visual.",
    "MODEL.IMAGE_ENCODER.ARCHITECTURE",
    "MODEL.IMAGE_ENCODER.PRETRAINED",
)


class ClipWeights(NamedTuple):
    """Weights of one half under the names of its module; ``quick_gelu`` is None where the file cannot tell."""

    state: dict[str, Tensor]
    quick_gelu: bool | None


def load_half(module: nn.Module, half: Half, *, name: str, pretrained: str, quick_gelu: bool | None) -> None:
    """Load the weights ``pretrained`` of the open_clip model ``name`` into ``module``, in its own precision.

    ``quick_gelu`` is what the module computes, None where it has no such activation; weights that were
    trained with the other get a warning. "" loads nothing, and warns.

    Raises UserError where the weights cannot be had or do not fit.
    """
    if not pretrained:
        logger.warning("The %s %s has random weights: its embeddings mean nothing.", half.what, name)
        return
    path, of_tag = find_weights(half, name=name, pretrained=pretrained)
    state, of_file = read_weights(half, path)
    own = module.state_dict()
    parts = {key.partition(".")[0] for key in own}
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    surplus = [k for k in state if k not in own and k.partition(".")[0] in parts]
    other = [k for k in own if k in state and own[k].shape != state[k].shape]
    if wrong := missing + surplus + other:
        raise UserError(
            f"The weights in {path} ({half.weights_key}) do not fit the {half.what} of {name} ({len(wrong)} differ, "
            f"first {wrong[0]}): name the open_clip model that they belong to in {half.name_key}."
        )
    # What may be missing is a count that evaluation never reads.
    module.load_state_dict({key: state.get(key, value) for key, value in own.items()})
    _warn_of_activation(half, name, quick_gelu, of_file if of_tag is None else of_tag)


def find_weights(half: Half, *, name: str, pretrained: str) -> tuple[Path, bool | None]:
    """File of the weights ``pretrained`` of the open_clip model ``name``, and whether they use QuickGELU.

    ``pretrained`` is a tag of open_clip ("openai"), a file (also under ``DETECTRON2_DATASETS``) or
    "hf-hub:owner/repository". Tags and hub names are downloaded to the hub's cache when not yet there.

    Raises UserError for an unknown tag, a missing file, or a hub that cannot be reached.
    """
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if tag:
        link = tag.get("url") or f"https://huggingface.co/{tag.get('hf_hub', '').rstrip('/')}"
        path = _fetch(lambda: open_clip.download_pretrained(tag), half, pretrained, link)
        return path, tag.get("quick_gelu", False)
    if pretrained.startswith(_HUB):
        repository = pretrained.removeprefix(_HUB)
        link = f"open_clip_model.safetensors of https://huggingface.co/{repository}"
        return _fetch(lambda: download_pretrained_from_hf(repository), half, pretrained, link), None
    path = resolve(pretrained)
    if not path.is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise UserError(
            f"{half.weights_key} {pretrained!r} is neither a file nor a tag of the open_clip model "
            f"{name} (its tags: {tags}): correct it, or name the file that holds the weights."
        )
    return path, None


def read_weights(half: Half, path: Path) -> ClipWeights:
    """One half of CLIP from an OpenAI TorchScript file, an open_clip or CLIM checkpoint, a safetensors file
    or a detector's checkpoint (Detic's ``text_encoder.*``, ours). Loads tensors only: no pickled code runs.

    Raises UserError when the file cannot be read that way or holds no such half.
    """
    torchscript = is_torchscript(path)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        elif torchscript:
            state = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise UserError(
            f"The weights in {path} cannot be read as plain tensors ({reason}): set {half.weights_key} to a file "
            "that holds nothing else."
        ) from error

    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    keys = state if isinstance(state, dict) else ()
    anchors = [key for key in keys if isinstance(key, str) and key.endswith(half.anchor)]
    if not anchors:
        raise UserError(
            f"{path} ({half.weights_key}) holds no CLIP {half.what}: no weight is called {half.anchor}."
        )
    prefix = min(anchors, key=len).removesuffix(half.anchor)
    own = prefix + half.folder
    part = {key.removeprefix(own): value for key, value in state.items() if key.startswith(own)}
    openai = torchscript or prefix.endswith("text_encoder.")
    return ClipWeights(part, True if openai else None)


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a program with its weights, as OpenAI's are, not a pickle of tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("/constants.pkl") for entry in archive.namelist())


def _fetch(download, half: Half, pretrained: str, link: str) -> Path:
    try:
        return Path(download())
    except Exception as error:  # each transport has its own: offline, refused, not found, interrupted
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"The weights {pretrained!r} are not on this machine and could not be downloaded ({reason}): "
            f"fetch {link} by other means and set {half.weights_key} to that file."
        ) from error


def _warn_of_activation(half: Half, name: str, computes: bool | None, trained_with: bool | None) -> None:
    if computes is None or trained_with is None or trained_with == computes:
        return
    if name.endswith(".json"):
        remedy = f'"quick_gelu" to {str(trained_with).lower()} in that file'
    else:
        twin = f"{name}-quickgelu" if trained_with else name.removesuffix("-quickgelu")
        remedy = f"{half.name_key} to {twin}"
    trained, computed = ("QuickGELU", "exact GELU") if trained_with else ("exact GELU", "QuickGELU")
    logger.warning(
        "These CLIP weights were trained with %s, but the %s of %s computes %s: set %s.",
        *(trained, half.what, name, computed, remedy),
    )
