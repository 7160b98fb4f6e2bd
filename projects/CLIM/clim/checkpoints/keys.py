"""Translate names of weights in files into ours: one table of regular expressions for each source."""

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from clim.checkpoints.reading import read_weights
from clim.checkpoints.torchscript import is_torchscript
from clim.errors import UserError

logger = logging.getLogger(__name__)

Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]  # (pattern, replacement), as re.sub takes them


def translate(name: str, rules: Rules) -> str | None:
    """``name`` after the first rule whose pattern matches its beginning; None without such a rule."""
    for pattern, replacement in rules:
        translated, count = re.subn(rf"\A(?:{pattern})", replacement, name)
        if count:
            return translated
    return None


class Half(NamedTuple):
    """One half of CLIP: text tower or image encoder."""

    what: str  # its name in error messages
    anchors: tuple[str, ...]  # each CLIP has one of these; a file may have a prefix before it, and before all names
    folder: str  # prefix of this half's names in OpenAI's files
    name_key: str  # config key of the architecture
    weights_key: str  # config key of the file


TEXT = Half("text tower", ("token_embedding.weight",), "", "MODEL.TEXT.NAME", "MODEL.TEXT.PRETRAINED")
_KEYS = ("MODEL.IMAGE_ENCODER.ARCHITECTURE", "MODEL.IMAGE_ENCODER.PRETRAINED")
IMAGE = Half("image encoder", ("visual.conv1.weight", "visual.trunk.patch_embed.proj.weight"), "visual.", *_KEYS)


def read_half(half: Half, path: Path) -> tuple[dict[str, Tensor], bool]:
    """{name in the half's own module: tensor} of a file, and whether OpenAI trained them (with QuickGELU).

    From OpenAI's TorchScript, open_clip, CLIM, safetensors, or a detector (Detic's ``text_encoder.*``, ours). UserError
    where the file is not readable or holds no such half.
    """
    state = read_weights(path)
    prefixes = [name.removesuffix(anchor) for anchor in half.anchors for name in state if name.endswith(anchor)]
    if not prefixes:
        names = " or ".join(half.anchors)
        raise UserError(f"{path} ({half.weights_key}) holds no CLIP {half.what}: no weight is called {names}.")
    prefix = min(prefixes, key=len)
    own = prefix + half.folder
    part = {name.removeprefix(own): value for name, value in state.items() if name.startswith(own)}
    return part, is_torchscript(path) or prefix.endswith("text_encoder.")


# torchvision's ResNet, as resnet50_miil_21k.pth stores it, in the backbone of OV-LVIS (detic §3.1).
TORCHVISION: Rules = ((r"(?:conv1|bn1|layer[1-4]|fc)\.", r"backbone.bottom_up.base.\g<0>"),)


def take_vldet(weights: dict) -> dict:
    """Weights of official VLDet under our names (vldet §7); weights of other files as they are.

    VLDet's ``detection_weight`` holds the classes, its ``zs_weight``, equal in all stages, the nouns.
    """
    if not any(name.endswith(".cls_score.detection_weight") for name in weights):
        return weights
    nouns = next(weight for name, weight in weights.items() if name.endswith(".cls_score.zs_weight"))
    kept = [name for name in weights if not name.startswith("rn50_model.") and not name.endswith(".zs_weight")]
    ours = {name.replace(".detection_weight", ".zs_weight"): weights[name] for name in kept}
    return ours | {"method.nouns": nouns.T[:-1]}  # without the background


PROJECTION = "roi_heads.box_predictor.emb_pred."
TRUNK = ("backbone.", "roi_heads.res5.")
# OV-RCNN's first stage (ovrcnn §2), on Detectron2's ResNet or on EfficientNet-Lite0, whose blocks 0-10 are shared.
IMAGE_ENCODER: Rules = (
    (r"image_encoder\.backbone\.res5\.", "roi_heads.res5."),
    (r"image_encoder\.backbone\.", "backbone."),
    (r"image_encoder\.stem\.", "backbone.stem."),
    (r"image_encoder\.blocks\.(\d|10)\.", r"backbone.trunk.blocks.\1."),
    (r"image_encoder\.blocks\.(\d+)\.", lambda match: f"roi_heads.res5.blocks.{int(match[1]) - 11}."),
    (r"image_encoder\.(?:emb_pred|projection)\.", PROJECTION),
)


def take_pretrained_trunk(module: nn.Module, state_dict, prefix, *_):
    """Load-state-dict pre-hook of a C4 detector: rename an image-text model's encoder to backbone and res5, its
    projection to the box predictor's. Other names stay. UserError where a part of the trunk is missing or unfit.
    """
    mine = module.state_dict()
    taken = {}
    for key in list(state_dict):
        name = translate(key.removeprefix(prefix), IMAGE_ENCODER) if key.startswith(prefix) else None
        if name in mine:
            taken[name] = state_dict.pop(key)
    if not taken:
        return
    shapes = {name: value.shape for name, value in taken.items()}
    trunk = [name for name in mine if name.startswith(TRUNK) and not name.endswith("num_batches_tracked")]
    if wrong := [name for name in [*taken, *trunk] if shapes.get(name) != mine[name].shape]:
        theirs = f"is {tuple(shapes[wrong[0]])}" if wrong[0] in shapes else "is missing"
        raise UserError(
            f"MODEL.WEIGHTS: the file's {wrong[0]} {theirs}, here it is {tuple(mine[wrong[0]].shape)}: "
            "backbone, its depth and MODEL.TEXT.DIM must be those of the file's training."
        )
    state_dict.update({prefix + name: value for name, value in taken.items()})
    projection = "with" if PROJECTION + "weight" in taken else "without"
    logger.info(f"Taken from an image-text model: {len(taken)} tensors of its encoder, {projection} its projection.")
