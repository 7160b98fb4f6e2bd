"""Word dropout: pseudo words are removed at random, as a regulariser of who writes them (BARON; baron §3).

Shapes: B sequences, L words of the longest, W width of a word.
"""

import torch
from torch import Tensor


def drop_words(words: Tensor, real: Tensor, *, dropout: float) -> tuple[Tensor, Tensor]:
    """Words of (B, L, W) that :func:`surviving` leaves, closed up: what :func:`close_up` returns."""
    return close_up(words, surviving(real, dropout=dropout))


def surviving(real: Tensor, *, dropout: float) -> Tensor:
    """Which words stay: each goes with probability ``dropout``, but where all would go, word 0 stays.

    Args:
        real: (…, L) bool, False for padding; word 0 of a row is real, or none is.

    Drawn from torch's own random state on the CPU, which resuming restores, whatever device the words are on.
    """
    kept = real & (torch.rand(real.shape) >= dropout).to(real.device)
    kept[..., 0] |= real[..., 0] & ~kept.any(dim=-1)
    return kept


def close_up(words: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """``kept`` words of (B, L, W), moved to the left and unscaled: (B, L', W), and their numbers ``lengths`` (B,).

    L' is the longest of them.
    """
    lengths = kept.sum(dim=1)
    order = torch.argsort((~kept).int(), dim=1, stable=True)[:, : max(lengths.tolist(), default=0)]
    return words.gather(1, order[..., None].expand(-1, -1, words.shape[2])), lengths
