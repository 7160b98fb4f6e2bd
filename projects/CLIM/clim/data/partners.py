"""Mosaic partners by similarity: nearest neighbours of each image by text or by image (CLIM paper, Table 2c).

An index holds K neighbours for each of N images in data-set order. It is an int32 ``.npy`` file (N, K), which workers
share as a memory map, and a ``.json`` file that names its images. ``tools/build_neighbours.py`` writes both.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clim.errors import UserError
from clim.files import resolve

from .records import column

_CHUNK = 1 << 16  # image ids that are hashed at once


class NeighbourIndex:
    """Row n holds the indices of the K images most similar to image n, without n, best first.

    ``rows`` is a read-only int32 memory map (N, K), ``by`` is "text" or "image", ``dataset`` names the data set.
    """

    def __init__(self, path: str | os.PathLike, by: str, dataset: str):
        self.path, self.by, self.dataset = Path(path), by, dataset
        self.rows = np.load(self.path, mmap_mode="r")

    def __reduce__(self):
        # Workers reopen the map, because pickling it would copy the whole table.
        return NeighbourIndex, (self.path, self.by, self.dataset)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.rows[index]


def image_ids_hash(records: Sequence[dict]) -> str:
    """SHA-256 of the json list of all ``image_id``, as strings, in their order."""
    ids, digest = column(records, "image_id"), hashlib.sha256(b"[")
    for start in range(0, len(ids), _CHUNK):
        text = json.dumps([str(image_id) for image_id in ids[start : start + _CHUNK]])[1:-1]
        digest.update(f"{', ' if start else ''}{text}".encode())
    digest.update(b"]")
    return digest.hexdigest()


def load_neighbours(path: str | os.PathLike, records: Sequence[dict]) -> NeighbourIndex:
    """Open the index at ``path``, which may be relative to the data root, and check that it fits ``records``.

    UserError if a file is missing or damaged, or the index is for other images or another order.
    """
    path, again = resolve(path), "build it with tools/build_neighbours.py"
    for file in (path, path.with_suffix(".json")):
        if not file.is_file():
            raise UserError(f"Neighbour index: {file} is missing; {again} --output {path}.")
    try:
        facts = json.loads(path.with_suffix(".json").read_text())
        index, images_hash = NeighbourIndex(path, facts["by"], facts["dataset"]), facts["image_ids_sha256"]
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"Neighbour index: {path} or its .json is damaged ({error!r}); {again} again.") from error
    if len(index) != len(records) or images_hash != image_ids_hash(records):
        raise UserError(
            f"Neighbour index: {path} was built for {len(index)} images of {index.dataset}, but this data set has "
            f"{len(records)} images, other images or another order; {again} for this data set."
        )
    rows = index.rows
    sound = rows.dtype == np.int32 and rows.ndim == 2 and rows.size
    if not sound or rows.min() < 0 or rows.max() >= len(rows):
        raise UserError(f"Neighbour index: {path} is not an int32 table (N, K > 0) of indices below N; {again} again.")
    return index
