"""Word dropout: pseudo words are removed at random, as a regulariser of who writes them (BARON; baron §3).

Shapes: B sequences, L words of the longest, W width of a word.
"""

import torch
from torch import Tensor


def drop_words(words: Tensor, real: Tensor, *, dropout: float) -> tuple[Tensor, Tensor]:
    """Each word goes with probability ``dropout``; the others close up to the left, unscaled.

    Drawn from torch's own random state on the CPU, which resuming restores, whatever device the words are on.

    Args:
        words: (B, L, W).
        real: (B, L) bool, False for padding; word 0 of a sequence is real.

    Returns what is left, (B, L', W) with L' the longest of them, and ``lengths`` (B,) >= 1: where all would go,
    word 0 stays.
    """
    kept = real & (torch.rand(real.shape) >= dropout).to(real.device)
    kept[:, 0] |= ~kept.any(dim=1)
    lengths = kept.sum(dim=1)
    order = torch.argsort((~kept).int(), dim=1, stable=True)[:, : max(lengths.tolist(), default=0)]
    return words.gather(1, order[..., None].expand(-1, -1, words.shape[2])), lengths
