"""What several commands read from their arguments: images, names and numbers."""

import argparse
import glob
import logging
from collections.abc import Iterable
from pathlib import Path

from clim.errors import UserError

from .words import read_words

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


def quiet_logging() -> None:
    """Show only warnings and errors, without time and module."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("torch.fx").setLevel(logging.ERROR)  # its warnings are about its own code


def find_images(inputs: Iterable[str]) -> list[Path]:
    """Images of files, folders (without sub-folders) and globs, each once, in order."""
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
    """The names of :func:`clim_commands.words.read_words`."""
    return list(read_words(text, option=option))


def count(text: str) -> int:
    """A number above 0, for ``type=`` of an argparse option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
