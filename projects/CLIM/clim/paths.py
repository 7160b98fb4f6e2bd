"""Where data lie: Detectron2's ``DETECTRON2_DATASETS``, ``datasets/`` when it is not set."""

import os
from pathlib import Path


def data_root() -> Path:
    """Folder of all data sets, read from the environment at every call."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def resolve(path: str | os.PathLike) -> Path:
    """``path`` itself where it is absolute or exists; otherwise ``path`` under :func:`data_root`."""
    path = Path(path).expanduser()
    return path if path.is_absolute() or path.exists() else data_root() / path
