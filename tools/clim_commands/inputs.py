"""What several commands read from their arguments: images, names and numbers."""

import argparse
import glob
import logging
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from clim.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


def quiet_logging() -> None:
    """Show only our warnings and errors, without time and module. Call it before torch is imported."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of packages about each other
    warnings.filterwarnings("ignore", module="torch")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # of webcams and videos that we report ourselves
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of a text tower that loads
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
    """Names of "a,b,c" or of the lines of a .txt file, each once; errors name ``option``."""
    if text.endswith(".txt"):
        try:
            names = Path(text).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{option} {text} cannot be read ({error}): use a text file with a name a line.") from error
    else:
        names = text.split(",")
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not names:
        raise UserError(f'{option} {text!r} holds no name: write "a,b,c", or a name on each line of the file.')
    return names


def count(text: str) -> int:
    """A number above 0, for ``type=`` of an argparse option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
