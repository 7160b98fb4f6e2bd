"""What commands share: images, names and numbers as command lines give them, and a quiet log."""

import argparse
import glob
import logging
from collections.abc import Iterable
from pathlib import Path

import torch

from clim.data.categories import NAMED_CLASSES
from clim.errors import UserError
from mini.concepts import NAMES as MINI_CLASSES

CLASS_LISTS = NAMED_CLASSES | {"mini": MINI_CLASSES}
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


def quiet_logging() -> None:
    """Warnings and errors alone, as bare sentences."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("torch.fx").setLevel(logging.ERROR)  # it warns of its own internals on the first call


def find_images(inputs: Iterable[str]) -> list[Path]:
    """Files as they are, the images directly in folders, what globs match; each once, in order."""
    found: dict[Path, None] = {}
    for item in inputs:
        path = Path(item).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        elif path.exists() or not glob.has_magic(item):
            inside = [path]
        else:
            inside = [p for p in map(Path, sorted(glob.glob(str(path), recursive=True))) if p.is_file()]
        if not inside:
            raise UserError(f"--input {item}: no image there ({', '.join(sorted(SUFFIXES))}).")
        found.update(dict.fromkeys(inside))
    return list(found)


def read_names(text: str, *, option: str) -> list[str]:
    """Names of "a,b,c" or of the lines of a .txt file, each once; ``option`` is the one that errors name."""
    if text.endswith(".txt"):
        try:
            names = Path(text).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{option} {text} cannot be read ({error}): give a text file, a name a line.") from error
    else:
        names = text.split(",")
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not names:
        raise UserError(f'{option} {text!r} holds no name: write "a,b,c", or a name on each line of the file.')
    return names


def count(text: str) -> int:
    """A number above 0, for ``type=`` of an argparse option."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


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
