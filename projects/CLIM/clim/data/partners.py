"""Mosaic partners by similarity: nearest neighbours of each image by text or by image (CLIM paper, Table 2c).

An index of ``tools/build_neighbours.py`` is an int32 ``.npy`` file (N, K), which workers share as a memory map, with K
neighbours for each of N images in data-set order, and a ``.json`` file that names its images.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from zlib import crc32

import msgspec
import numpy as np

from clim.checkpoints.reading import read_content
from clim.errors import UserError
from clim.files import read_json, resolve

from .records import column

_CHUNK = 1 << 16  # image ids that are hashed at once


class Facts(msgspec.Struct):
    """The .json of an index."""

    dataset: str
    image_ids_sha256: str
    rows_crc32: int | None = None  # indexes of earlier versions have none


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

    Row n holds the K images most similar to image n, without n, best first. UserError for other or damaged files.
    """
    path, again = resolve(path), "build it with tools/build_neighbours.py"
    facts = read_json(path.with_suffix(".json"), remedy=f"{again} --output {path}.", kind=Facts)
    rows = read_content(path, remedy=f"{again} --output {path}")
    sound = isinstance(rows, np.memmap) and rows.dtype == np.int32 and rows.ndim == 2 and rows.size
    if sound and (len(rows) != len(records) or facts.image_ids_sha256 != image_ids_hash(records)):
        raise UserError(
            f"Neighbour index: {path} was built for {len(rows)} images of {facts.dataset}, but this data set has "
            f"{len(records)} images, other images or another order; {again} for this data set."
        )
    sound = sound and rows.min() >= 0 and rows.max() < len(rows)
    if not sound or facts.rows_crc32 not in (None, crc32(rows)):
        raise UserError(f"Neighbour index: {path} is damaged, or no int32 table (N, K > 0) of indices < N; {again}.")
    return rows
