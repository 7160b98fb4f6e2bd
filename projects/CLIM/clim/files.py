"""The data root, files that are never half written, and json.

A kill leaves an unfinished file as NAME.partial, which the next attempt overwrites.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from clim.errors import UserError

SUFFIX = ".partial"


def data_root() -> Path:
    """Folder of all data sets: ``DETECTRON2_DATASETS``, read at every call, or ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def resolve(path: str | os.PathLike) -> Path:
    """``path`` itself where it is absolute or exists; otherwise ``path`` under :func:`data_root`."""
    path = Path(path).expanduser()
    return path if path.is_absolute() or path.exists() else data_root() / path


@contextmanager
def replacing(path: str | os.PathLike, *, shared: bool = False) -> Iterator[Path]:
    """A path beside ``path`` to write a file, link or folder to; at the end of the block it replaces ``path``.

    Whenever the process dies, ``path`` is the old one or the whole new one. An error leaves only the old one. Makes
    the folder of ``path``.

    Args:
        shared: other processes may write ``path`` too: each uses another name beside it, and the last one wins.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + (f".{os.getpid()}" if shared else "") + SUFFIX)
    remove(partial)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:  # a Ctrl-C too
        remove(partial)
        raise


def remove(path: Path) -> None:
    """Delete a file, a link (not its target) or a folder with its content, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_array(path: str | os.PathLike, array: np.ndarray) -> None:
    """Replace ``path`` by a .npy file, whatever its suffix."""
    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, array)


def write_json(path: str | os.PathLike, content, *, indent: int | None = None, shared: bool = False) -> None:
    """Replace ``path`` by ``content`` as json; ``shared`` as in :func:`replacing`."""
    text = json.dumps(content, indent=indent)
    with replacing(path, shared=shared) as partial:
        partial.write_text(text)


def nan_to_none(row: Mapping) -> dict:
    """A copy with None in place of nan, which json does not have."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def read_json(path: str | os.PathLike, *, remedy: str):
    """Content of a json file; UserError ending in ``remedy`` where it is missing or broken."""
    try:
        return json.loads(Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} not found: {remedy}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid json ({error}): {remedy}") from error


def read_json_or_none(path: str | os.PathLike):
    """Content of a json file; None where it cannot be read."""
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError):
        return None
