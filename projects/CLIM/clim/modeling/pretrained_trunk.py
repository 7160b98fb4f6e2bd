"""A C4 detector that starts from an image-text model's file: its image encoder, cut in two, and its projection.

OV-RCNN's second stage starts so from its first (ovrcnn §2). Two trunks are known: Detectron2's ResNet and
EfficientNet-Lite0.
"""

import logging

from torch import nn

from clim.errors import UserError

from .backbones.efficientnet import LAST_SHARED

logger = logging.getLogger(__name__)

ENCODER = "image_encoder."
_TRUNK = ("backbone.", "roi_heads.res5.")
PROJECTION = "roi_heads.box_predictor.emb_pred."


def take_pretrained_trunk(module: nn.Module, state_dict, prefix, *_):
    """Load-state-dict pre-hook of a detector: rename an image encoder's weights; others are left as they are.

    What this detector has no place for keeps its name, which the checkpointer reports. UserError where shapes differ,
    or a part of the trunk is not there.
    """
    mine = module.state_dict()
    taken = {}
    for key in [k for k in state_dict if k.startswith(prefix + ENCODER)]:
        name = detector_name(key.removeprefix(prefix + ENCODER))
        if name in mine:
            taken[name] = state_dict.pop(key)
    if not taken:
        return
    for name, theirs in taken.items():
        if theirs.shape != mine[name].shape:
            raise UserError(
                f"MODEL.WEIGHTS: the file's image encoder gives {name} the shape {tuple(theirs.shape)}, but here it is "
                f"{tuple(mine[name].shape)}: backbone and MODEL.TEXT.DIM must be those of its pre-training."
            )
    trunk = [name for name in mine if name.startswith(_TRUNK) and not name.endswith("num_batches_tracked")]
    if lacking := [name for name in trunk if name not in taken]:
        raise UserError(
            f"MODEL.WEIGHTS: the file's image encoder lacks {len(lacking)} tensors of the trunk, {lacking[0]} for one: "
            "it must be of the config's depth (MODEL.RESNETS.DEPTH)."
        )
    state_dict.update({prefix + name: value for name, value in taken.items()})
    projection = "with" if PROJECTION + "weight" in taken else "without"
    logger.info(
        f"Taken from an image-text model: {len(taken)} tensors of its encoder, {projection} its projection."
    )


def detector_name(name: str) -> str:
    """Where a weight of an image encoder goes in a detector; ``name`` itself for what is no part of a trunk."""
    part, _, rest = name.partition(".")
    return _DESTINATIONS[part](rest) if part in _DESTINATIONS else name


def _resnet(rest: str) -> str:
    return ("roi_heads." if rest.startswith("res5.") else "backbone.") + rest


def _efficientnet_block(rest: str) -> str:
    number, _, weight = rest.partition(".")
    place = int(number)
    if place <= LAST_SHARED:
        return f"backbone.trunk.blocks.{place}.{weight}"
    return f"roi_heads.res5.blocks.{place - LAST_SHARED - 1}.{weight}"


_DESTINATIONS = {
    "backbone": _resnet,
    "emb_pred": lambda rest: PROJECTION + rest,
    "stem": lambda rest: f"backbone.stem.{rest}",
    "blocks": _efficientnet_block,
    "projection": lambda rest: PROJECTION + rest,
}
