"""The contract of a frozen text tower, and what all towers share: batching and identity.

Shapes: N texts, B texts of a batch, V tokens known, W width of word embeddings, D dimensions of an embedding.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLES_PER_WEIGHT = 64


class TextTower(nn.Module):
    """Frozen sentence encoder, in evaluation mode for good.

    A subclass sets ``dim`` and gives :meth:`tokenize` and :meth:`features`, then calls
    :meth:`freeze` at the end of its ``__init__``.
    """

    dim: int

    def __init__(self, *, architecture: str):
        """``architecture`` describes everything but the weights that decides an embedding."""
        super().__init__()
        self._architecture = architecture

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without padding, truncated to what the tower can read."""
        raise NotImplementedError

    @property
    def word_embeddings(self) -> Tensor:
        """(V, W) of every token id, frozen."""
        raise NotImplementedError

    @property
    def live(self) -> "TextTower":
        """Itself: caches and lazy towers have the same property."""
        return self

    def features(self, tokens: list[list[int]]) -> Tensor:
        """(B, D) embeddings of B token lists, not normalised."""
        raise NotImplementedError

    def freeze(self) -> None:
        """No parameter learns, and dropout stays off."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "TextTower":
        """Frozen: stays in evaluation mode when the model around it starts training."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """(N, D) float32 L2-normalised embeddings on the tower's device; (0, D) for no text.

        Texts of similar length share a batch, so little is spent on padding. Runs in float32 even
        inside autocast, so an embedding does not depend on where it was asked for.
        """
        if isinstance(texts, str):
            raise TypeError("encode() takes a list of texts, not one text")
        embeddings = torch.empty(len(texts), self.dim, device=self.device)
        tokens = self.tokenize(texts) if len(texts) else []
        by_length = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        with torch.autocast(self.device.type, enabled=False):
            for start in range(0, len(by_length), batch_size):
                rows = by_length[start : start + batch_size]
                embeddings[rows] = F.normalize(self.features([tokens[i] for i in rows]), dim=-1)
        return embeddings

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that name this tower: its architecture and every bit of its weights.

        Each weight enters by its name, its shape, the sum of its bit patterns (integers, so the same
        on every device and thread count) and 64 values spread over it. Computed once.
        """
        digest = hashlib.sha256(self._architecture.encode())
        for name, weight in sorted(self.state_dict().items()):
            bits = weight.detach().float().contiguous().view(torch.int32).flatten()
            sample = bits[:: max(1, bits.numel() // SAMPLES_PER_WEIGHT)]
            digest.update(f"{name} {tuple(weight.shape)} {bits.sum(dtype=torch.int64).item()}".encode())
            digest.update(sample.cpu().numpy().tobytes())
        return digest.hexdigest()[:32]
