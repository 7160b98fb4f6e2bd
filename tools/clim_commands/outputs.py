"""Files that several commands write, and read again."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from clim.files import replacing

CHUNK = 4096  # texts between two writes of a cache


def write_array(path: str | os.PathLike, array) -> None:
    """Write a .npy file."""
    import numpy as np

    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, array)


def read_json_or_none(path: str | os.PathLike):
    """Content of a json file; None where it is missing or broken."""
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError):
        return None


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
