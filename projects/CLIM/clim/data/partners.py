"""Mosaic partners by similarity: nearest neighbours of each image by text or by image (CLIM paper, Table 2c).

An index holds K neighbours for each of N images in data-set order. It is an int32 ``.npy`` file (N, K), which workers
share as a memory map, and a ``.json`` file that names its images. ``tools/build_neighbours.py`` writes both.
"""

import hashlib
import json
import os
from collections.abc import Sequence

import numpy as np

from clim.errors import UserError
from clim.files import resolve

from .records import column

_CHUNK = 1 << 16  # image ids that are hashed at once


def image_ids_hash(records: Sequence[dict]) -> str:
    """SHA-256 of the json list of all ``image_id``, as strings, in their order."""
    ids, digest = column(records, "image_id"), hashlib.sha256(b"[")
    for start in range(0, len(ids), _CHUNK):
        text = json.dumps([str(image_id) for image_id in ids[start : start + _CHUNK]])[1:-1]
        digest.update(f"{', ' if start else ''}{text}".encode())
    digest.update(b"]")
    return digest.hexdigest()


def load_neighbours(path: str | os.PathLike, records: Sequence[dict]) -> np.memmap:
    """The index at ``path``, which may be relative to the data root: a read-only int32 memory map (N, K).

    Row n holds the indices of the K images most similar to image n, without n, best first.
    UserError if a file is missing or damaged, or the index is for other images or another order.
    """
    path, again = resolve(path), "build it with tools/build_neighbours.py"
    try:
        facts = json.loads(path.with_suffix(".json").read_text())
        rows, dataset, images_hash = np.load(path, mmap_mode="r"), facts["dataset"], facts["image_ids_sha256"]
    except FileNotFoundError as error:
        raise UserError(f"Neighbour index: {error.filename} is missing; {again} --output {path}.") from error
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"Neighbour index: {path} or its .json is damaged ({error!r}); {again} again.") from error
    if len(rows) != len(records) or images_hash != image_ids_hash(records):
        raise UserError(
            f"Neighbour index: {path} was built for {len(rows)} images of {dataset}, but this data set has "
            f"{len(records)} images, other images or another order; {again} for this data set."
        )
    sound = rows.dtype == np.int32 and rows.ndim == 2 and rows.size
    if not sound or rows.min() < 0 or rows.max() >= len(rows):
        raise UserError(f"Neighbour index: {path} is not an int32 table (N, K > 0) of indices below N; {again} again.")
    return rows
