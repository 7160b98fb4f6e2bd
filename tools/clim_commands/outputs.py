"""Files that several commands write, and read again."""

import os
from collections.abc import Iterable
from typing import TypedDict, TypeVar

from clim.files import read_json, replacing

CHUNK = 4096  # texts between two writes of a cache
T = TypeVar("T")
Figures = dict[str, float | None]


class Report(TypedDict):
    """What an evaluator writes: figures, or {task: figures}, and a row for each class."""

    dataset: str
    summary: dict[str, float | Figures | None]
    per_class: list[dict[str, object]]


def write_array(path: str | os.PathLike, array) -> None:
    """Write a .npy file."""
    import numpy as np

    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, array)


def read_note(path: str | os.PathLike, *, remedy: str, kind: type[T] = object) -> T | None:
    """:func:`clim.files.read_json` of a file that an earlier call has written; None where there is none."""
    return read_json(path, remedy=remedy, kind=kind) if os.path.lexists(path) else None


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
