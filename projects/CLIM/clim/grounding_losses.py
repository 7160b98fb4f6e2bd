"""Words of captions against cells of pictures: OV-RCNN's scores and losses as pure functions (ovrcnn §1.3, §3).

Shape legend: T captions and as many tiles, caption i being tile i's; L words, N cells, both padded; D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# MODEL.METHOD.GROUNDING.LOCAL_METRIC -> what makes it the dot product of two vectors.
LOCAL_METRICS: dict[str, Callable[[Tensor], Tensor]] = {
    "dot": lambda vectors: vectors,
    "cosine": lambda vectors: F.normalize(vectors, dim=-1),
}


def aligned_local(
    words: Tensor, is_word: Tensor, cells: Tensor, is_cell: Tensor, *, temperature: float
) -> dict[str, Tensor]:
    """Scores of every caption (row) with every tile (column), each word choosing its cells and each cell its words.

    With s_cn = ⟨word c, cell n⟩ / ``temperature``, and means over the words C_i of caption i and cells P_j of tile j:

        words: S_ij = mean_c Σ_n softmax_n(s_cn) · s_cn        cells: S_ij = mean_n Σ_c softmax_c(s_cn) · s_cn

    as official OVR-CNN, temperature 10 with dot products. A caption without words, or a tile without cells, scores 0.

    Args:
        words, cells: (T, L, D), (T, N, D); L and N at least 1.
        is_word, is_cell: (T, L), (T, N) bool, False for padding and hidden words.

    Returns {"words": (T, T), "cells": (T, T)}, float32, inside autocast too.
    """
    with torch.autocast(words.device.type, enabled=False):
        scores = torch.einsum("icd,jnd->ijcn", words.float(), cells.float()) / temperature
        pairs = is_word[:, None, :, None] & is_cell[None, :, None, :]
        # The official way to leave pairs out: -inf would give nan where nothing is left.
        candidates = torch.where(pairs, scores, scores.detach().min() - 100)
        of_words = (candidates.softmax(3) * scores * pairs).sum((2, 3))
        of_cells = (candidates.softmax(2) * scores * pairs).sum((2, 3))
        return {
            "words": of_words / is_word.sum(1).clamp(min=1)[:, None],
            "cells": of_cells / is_cell.sum(1).clamp(min=1)[None, :],
        }


def mean_of_pairs(
    words: Tensor, is_word: Tensor, cells: Tensor, is_cell: Tensor, *, temperature: float
) -> dict[str, Tensor]:
    """S_ij = mean over all pairs (c, n) of ⟨word c of caption i, cell n of tile j⟩ / ``temperature``: (T, T) "pairs".

    As CLIM's paper words the score of OV-RCNN, with cosines; it states no temperature. A mean of products is the
    product of means. Arguments as in :func:`aligned_local`.
    """
    with torch.autocast(words.device.type, enabled=False):
        return {"pairs": _mean(words.float(), is_word) @ _mean(cells.float(), is_cell).T / temperature}


# MODEL.METHOD.GROUNDING.GLOBAL_METRIC -> its matrices of scores, by name.
GLOBAL_METRICS = {"aligned_local": aligned_local, "mean": mean_of_pairs}


def choices(scores: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropies of captions choosing their picture among (T, T) scores, and of pictures their caption.

    Another tile of the same picture, by its image id (T,), is no candidate.
    """
    again = (ids[:, None] == ids).fill_diagonal_(False)
    scores = scores.masked_fill(again, -torch.inf)
    target = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(scores, target), F.cross_entropy(scores.T, target)


def _mean(vectors: Tensor, real: Tensor) -> Tensor:
    return (vectors * real[..., None]).sum(1) / real.sum(1).clamp(min=1)[:, None]
