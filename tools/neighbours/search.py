"""Exact cosine nearest neighbours, and the two files that keep them."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from clim.data.partners import image_ids_hash
from clim.files import write_array, write_json

COLUMNS = 16384  # neighbours compared at once: bounds the memory at ``chunk`` × COLUMNS similarities
_LOW = 0xFFFFFFFF


@torch.no_grad()
def nearest(features: torch.Tensor | np.ndarray, k: int, chunk: int = 1024) -> np.ndarray:
    """The ``k`` rows of highest cosine for each row, computed on the device of ``features``.

    Products are summed in float64 and compared as float32: so equal features tie, in whatever order a machine sums,
    and ties go to the lower index. A row of zeros has no feature: it comes last in every list.

    Args:
        features: (N, D) float32, unit rows or zero rows.
        chunk: rows handled at once.

    Returns int32 (N, K), K = min(k, N − 1), best first; (0, 0) for no images. Raises ValueError for NaN.
    """
    features = torch.as_tensor(features)
    if not torch.isfinite(features).all():
        raise ValueError("features hold NaN or infinity")
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


def _sortable(similarity: torch.Tensor, offset: int) -> torch.Tensor:
    """int64 keys (n, m), all different in a row, ordered by similarity, then by lower column.

    The upper half is the float's bit pattern made monotone. The lower half counts columns downwards from ``offset``.
    """
    bits = (similarity + 0.0).view(torch.int32)  # + 0.0: −0 and 0 tie
    bits ^= (bits >> 31) & 0x7FFFFFFF  # negative floats sort downwards: turn them round
    columns = torch.arange(offset, offset + similarity.shape[1], device=similarity.device)
    return bits.long().bitwise_left_shift_(32).add_(_LOW - columns)


def save_neighbours(
    path: str | os.PathLike, rows: np.ndarray, *, records: Sequence[dict], by: str, dataset: str
) -> None:
    """Write ``rows`` (N, K) to ``path`` (``.npy``) and what they are for to the ``.json`` beside it."""
    path = Path(path)
    facts = {"dataset": dataset, "by": by, "images": len(rows), "neighbours": rows.shape[1]}
    facts["image_ids_sha256"] = image_ids_hash(records)
    # The facts go first and come last: an interrupted run leaves no pair that would load.
    path.with_suffix(".json").unlink(missing_ok=True)
    write_array(path, rows.astype(np.int32))
    write_json(path.with_suffix(".json"), facts, indent=1)
