"""Files that several commands write, and read again."""

import fcntl
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TypedDict, TypeVar

from clim.errors import UserError
from clim.files import read_json, replacing, write_json

CHUNK = 4096  # texts between two writes of a cache
T = TypeVar("T")
Figures = dict[str, float | None]


class Report(TypedDict):
    """What an evaluator writes: figures, or {task: figures}, and a row for each class."""

    dataset: str
    summary: dict[str, float | Figures | None]
    per_class: list[dict[str, object]]


def tasks_of(report: Report) -> dict[str, Figures]:
    """{task: its figures}, of figures alone with the task ""."""
    summary = report["summary"]
    return summary if any(isinstance(figures, dict) for figures in summary.values()) else {"": summary}


def write_array(path: str | os.PathLike, array) -> None:
    """Write a .npy file."""
    import numpy as np

    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, array)


def write_embeddings(path: Path, embeddings, names: Sequence[str]) -> None:
    """Write a .npy file, or the tensor of a .pth file, the form of VLDet's; and the names of its rows beside it."""
    from clim.data.names import names_file

    names_file(path).unlink(missing_ok=True)  # of an earlier file, which no kill may leave beside other rows
    if path.suffix != ".pth":
        write_array(path, embeddings)
    else:
        import torch

        from clim.checkpoints.checkpointer import atomic_save

        atomic_save(torch.from_numpy(embeddings), path)
    write_json(names_file(path), names)


def read_note(path: str | os.PathLike, *, remedy: str, kind: type[T] = object) -> T | None:
    """:func:`clim.files.read_json` of a file that an earlier call has written; None where there is none."""
    return read_json(path, remedy=remedy, kind=kind) if os.path.lexists(path) else None


def hold(file: IO, message: str) -> None:
    """Lock an open file until it is closed. UserError with ``message`` while another process has it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock's would live on in the workers of a killed process
    except OSError as error:
        raise UserError(message) from error


def prefill(cache, texts: Iterable[str]) -> int:
    """Let a :class:`clim.text.CaptionCache` store all unknown texts, with a progress bar. Returns their number.

    ``texts`` are read one by one and need not fit into memory.
    """
    from tqdm import tqdm

    stored, chunk = len(cache), {}
    for text in tqdm(texts, desc="caption embeddings", unit="text"):
        if text not in cache:
            chunk[text] = None
        if len(chunk) == CHUNK:
            cache.encode(list(chunk))
            chunk = {}
    cache.encode(list(chunk))
    return len(cache) - stored
