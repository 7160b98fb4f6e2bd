"""Mosaic partners by similarity: each image's nearest neighbours by text or by image (CLIM paper, Table 2c).

N images in data-set order, K neighbours an image. The index is an int32 ``.npy`` file (N, K), read memory-mapped so
that all workers share one copy, beside a ``.json`` file that says which images it is for.
``tools/build_neighbours.py`` writes the pair.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clim.errors import UserError
from clim.files import resolve


class NeighbourIndex:
    """Row n: the data-set indices of the K images most similar to image n, best first, n itself left out.

    ``rows`` is a read-only int32 memory map (N, K), ``by`` "text" or "image", ``dataset`` the name of the data set.
    """

    def __init__(self, path: str | os.PathLike, by: str, dataset: str):
        self.path, self.by, self.dataset = Path(path), by, dataset
        self.rows = np.load(self.path, mmap_mode="r")

    def __reduce__(self):
        # Workers reopen the map: pickling one would copy the whole table.
        return NeighbourIndex, (self.path, self.by, self.dataset)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        """int32 (K,)."""
        return self.rows[index]


def image_ids_hash(records: Sequence[dict]) -> str:
    """Hash of the records' ``image_id``, their order included."""
    return hashlib.sha256(json.dumps([str(record["image_id"]) for record in records]).encode()).hexdigest()


def load_neighbours(path: str | os.PathLike, records: Sequence[dict]) -> NeighbourIndex:
    """Open an index (relative paths also under the data root) and check that it was built for these records.

    UserError if a file is missing or damaged, or the index belongs to other images or another order of them.
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
            f"Neighbour index: {path} was built for {len(index)} images of {index.dataset}, which are not the "
            f"{len(records)} images of this data set in this order; {again} for this data set."
        )
    rows = index.rows
    sound = rows.dtype == np.int32 and rows.ndim == 2 and rows.size
    if not sound or rows.min() < 0 or rows.max() >= len(rows):
        raise UserError(f"Neighbour index: {path} is not an int32 table (N, K > 0) of indices below N; {again} again.")
    return index
