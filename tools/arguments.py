"""What several commands of tools/ share besides ``clim.cli``: class lists and the device."""

import argparse

import torch

from clim.data.categories import NAMED_CLASSES
from mini.concepts import NAMES as MINI_CLASSES

CLASS_LISTS = NAMED_CLASSES | {"mini": MINI_CLASSES}


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device, a GPU where there is one."""
    parser.add_argument("--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu")


def _device(text: str) -> str:
    try:
        kind = torch.device(text).type
    except RuntimeError:
        kind = ""
    if kind != "cpu" and not (kind == "cuda" and torch.cuda.is_available()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device of this machine: cuda with a GPU, or cpu")
    return text
