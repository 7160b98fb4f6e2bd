"""Mosaic partners by similarity: each image's nearest neighbours by text or by image (CLIM paper, Table 2c).

Legend: N images in data-set order, D feature channels, K neighbours an image. The index is an int32 ``.npy``
file (N, K), read memory-mapped so that all workers share one copy, beside a ``.json`` file that says which
images it is for. ``tools/build_neighbours.py`` writes the pair.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from clim.errors import UserError
from clim.files import resolve, write_array, write_json

COLUMNS = 16384  # neighbours compared at once: bounds the memory at ``chunk`` × COLUMNS similarities


class NeighbourIndex:
    """Row n: the data-set indices of the K images most similar to image n, best first, n itself left out.

    Attributes:
        rows: read-only int32 memory map (N, K).
        by: ``"text"`` or ``"image"``, the space in which the images are similar.
        dataset: name of the data set the index was built for.
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


def save_neighbours(
    path: str | os.PathLike, rows: np.ndarray, *, records: Sequence[dict], by: str, dataset: str
) -> None:
    """Write ``rows`` (N, K) to ``path`` (``.npy``) and what it is for to the ``.json`` beside it."""
    path = Path(path)
    facts = {
        "dataset": dataset,
        "by": by,
        "images": len(rows),
        "neighbours": rows.shape[1],
        "image_ids_sha256": image_ids_hash(records),
    }
    # The facts go first and come last: an interrupted run leaves no pair that would load.
    path.with_suffix(".json").unlink(missing_ok=True)
    write_array(path, rows.astype(np.int32))
    write_json(path.with_suffix(".json"), facts, indent=1)


def load_neighbours(path: str | os.PathLike, records: Sequence[dict]) -> NeighbourIndex:
    """Open an index (relative paths also under the data root) and check that it was built for these records.

    Raises:
        UserError: a file is missing or damaged, the index belongs to other images or another order of
            them, or it holds no neighbours.
    """
    path = resolve(path)
    facts_file = path.with_suffix(".json")
    again = "build it with tools/build_neighbours.py"
    for file in (path, facts_file):
        if not file.is_file():
            raise UserError(f"Neighbour index: {file} is missing; {again} --output {path}.")
    try:
        facts = json.loads(facts_file.read_text())
        index = NeighbourIndex(path, facts["by"], facts["dataset"])
        images_hash = facts["image_ids_sha256"]
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(
            f"Neighbour index: {path} or its .json is damaged ({error!r}); {again} again."
        ) from error
    rows = index.rows
    if rows.dtype != np.int32 or rows.ndim != 2 or not rows.size:
        raise UserError(f"Neighbour index: {path} is not an int32 table (N, K) with N, K > 0; {again} again.")
    if len(rows) != len(records) or images_hash != image_ids_hash(records):
        raise UserError(
            f"Neighbour index: {path} was built for {len(rows)} images of {index.dataset}, which are not the "
            f"{len(records)} images of this data set in this order; {again} for this data set."
        )
    if rows.min() < 0 or rows.max() >= len(rows):
        raise UserError(f"Neighbour index: {path} names images outside 0…{len(rows) - 1}; {again} again.")
    return index


@torch.no_grad()
def build_neighbours(features: torch.Tensor | np.ndarray, k: int, chunk: int = 1024) -> np.ndarray:
    """Exact cosine nearest neighbours, computed on the device of ``features`` with a progress bar.

    Products are summed in float64 and compared as float32: however a block or a machine orders the sum, equal
    features tie, and ties go to the lower index. A row of zeros stands for an image without a feature: it
    comes after all others in everybody's list.

    Args:
        features: (N, D) float32, unit rows or zero rows.
        k: neighbours wanted.
        chunk: images handled at once.

    Returns:
        int32 (N, K), K = min(k, N − 1), best first; (0, 0) for no images.
    """
    features = torch.as_tensor(features)
    if features.ndim != 2 or not torch.isfinite(features).all():
        raise ValueError(
            f"features is a finite (N, D) table; got shape {tuple(features.shape)}, or NaN or infinity"
        )
    total = len(features)
    k = max(0, min(k, total - 1))
    rows = np.empty((total, k), dtype=np.int32)
    if k == 0:
        return rows
    absent = ~features.any(dim=1)
    for start in tqdm(range(0, total, chunk), desc="neighbours", unit="chunk"):
        queries = features[start : start + chunk].double()
        best = torch.empty((len(queries), 0), dtype=torch.int64, device=features.device)
        for left in range(0, total, COLUMNS):
            block = slice(left, left + COLUMNS)
            cosine = (queries @ features[block].double().T).float()
            cosine[:, absent[block]] = -2.0
            keys = _sortable(cosine, left)
            own = torch.arange(start, start + len(queries), device=features.device) - left
            inside = (own >= 0) & (own < keys.shape[1])
            keys[inside.nonzero()[:, 0], own[inside]] = torch.iinfo(torch.int64).min
            best = torch.cat([best, keys], dim=1)
            best = best.topk(min(k, best.shape[1]), dim=1).values
        rows[start : start + len(queries)] = (_LOW - (best & _LOW)).cpu().numpy()
    return rows


_LOW = 0xFFFFFFFF


def _sortable(similarity: torch.Tensor, offset: int) -> torch.Tensor:
    """int64 keys (n, m), all different in a row, ordered as (similarity, then the lower column first).

    The upper half is the float's bit pattern made monotone, the lower half counts columns from ``offset`` on,
    downwards.
    """
    bits = (similarity + 0.0).view(torch.int32)  # + 0.0: −0 and 0 tie
    bits ^= (bits >> 31) & 0x7FFFFFFF  # negative floats sort downwards: turn them round
    columns = torch.arange(offset, offset + similarity.shape[1], device=similarity.device)
    return bits.long().bitwise_left_shift_(32).add_(_LOW - columns)
