"""Captions as tokens, and BERT's masking of words (Devlin et al., arXiv 1810.04805).

Shapes: B captions, L tokens of the longest, start and end token included.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class TokenBatch(NamedTuple):
    """Token ids of B captions, padded to the longest."""

    ids: Tensor  # (B, L) int64
    attention: Tensor  # (B, L) bool, False for padding
    special: Tensor  # (B, L) bool: start and end tokens, padding, and words hidden by :func:`mask_words`

    def of(self, captions: Tensor) -> "TokenBatch":
        """Those of ``captions`` (indices or a mask), padded to the longest of them."""
        longest = max(self.attention[captions].sum(1).tolist(), default=0)
        return TokenBatch(*(field[captions, :longest] for field in self))


def mask_words(
    tokens: TokenBatch, *, mask_id: int, probability: float, hidden: float
) -> tuple[TokenBatch, Tensor]:
    """Choose words that a model has to predict, and hide most of them behind the mask token.

    Every token that is not special is chosen with ``probability``; of the chosen ones a part ``hidden`` becomes
    ``mask_id`` and special, the others stay as they are (official OVR-CNN: .15 and .9, none replaced at random;
    ovrcnn §1.2). Drawn from torch's own random state on the CPU, which resuming restores.

    Returns the tokens to read and (B, L) bool, the chosen ones; what is to be predicted is ``tokens.ids``.
    """
    draws = torch.rand(2, *tokens.ids.shape).to(tokens.ids.device)
    chosen = (draws[0] < probability) & ~tokens.special
    masked = chosen & (draws[1] < hidden)
    read = TokenBatch(tokens.ids.masked_fill(masked, mask_id), tokens.attention, tokens.special | masked)
    return read, chosen
