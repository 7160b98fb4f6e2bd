"""The contract of a frozen text tower, and what all towers share: batching, words without text, identity.

Shapes: N texts, B texts of a batch, L words of the longest, V tokens known, W width of word embeddings, H width of
the last layer, D dimensions of an embedding.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from clim.errors import UserError

SAMPLES_PER_WEIGHT = 64


class WordFeatures(NamedTuple):
    """What a tower makes of a sequence, twice, neither normalised."""

    # (B, H) of its last layer; for CLIP before ``ln_final`` and projection (BARON's classifier).
    hidden: Tensor
    # (B, D) in the space of captions.
    embedding: Tensor


class TextTower(nn.Module):
    """Frozen sentence encoder, in evaluation mode for good.

    A subclass sets the attributes below and gives :meth:`tokenize`, :attr:`word_embeddings` and
    :meth:`features_of_words`, then calls :meth:`freeze` at the end of its ``__init__``.
    """

    dim: int  # D
    hidden_dim: int  # H
    context: int  # tokens that it can read, the two around a text included
    ends: tuple[int, int]  # ids of the tokens before and behind every text
    unknown_id: int | None = None  # of the token for words that it does not know; None where it knows all

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

    def features_of_words(self, words: Tensor, lengths: Tensor) -> WordFeatures:
        """Features of whole sequences, differentiable with respect to ``words`` (B, L, W).

        ``lengths`` (B,) >= 1 rows are read of each, the start and end tokens' among them.
        """
        raise NotImplementedError

    @property
    def word_dim(self) -> int:
        """W."""
        return self.word_embeddings.shape[1]

    @property
    def live(self) -> "TextTower":
        """Itself: caches and lazy towers have the same property."""
        return self

    def features(self, tokens: list[list[int]]) -> WordFeatures:
        """Features of B token lists."""
        ids = pad_sequence([torch.tensor(row) for row in tokens], batch_first=True).to(self.device)
        lengths = torch.tensor([len(row) for row in tokens], device=self.device)
        return self.features_of_words(F.embedding(ids, self.word_embeddings), lengths)

    def encode_words(self, words: Tensor, lengths: Tensor) -> WordFeatures:
        """Features of texts given as word embeddings: BARON's pseudo words (baron §3).

        The first ``lengths[b]`` rows of ``words[b]``, of (B, L, W), are read between the tower's own start and end
        tokens. Differentiable with respect to ``words``. UserError where L is more than the tower can read.
        """
        self.check_length(words.shape[1])
        if len(words) == 0:  # BERT's attention cannot tell how wide nothing is
            nothing = words.sum()
            return WordFeatures(nothing.expand(0, self.hidden_dim), nothing.expand(0, self.dim))
        start, end = self.word_embeddings[list(self.ends)].to(words.dtype)
        words = torch.cat([start.expand(len(words), 1, -1), words, end.expand(len(words), 1, -1)], dim=1)
        place = torch.arange(words.shape[1], device=words.device) == lengths[:, None] + 1
        return self.features_of_words(torch.where(place[..., None], end, words), lengths + 2)

    def check_length(self, words: int) -> None:
        """UserError where a sequence of so many pseudo words is longer than the tower can read."""
        if words + 2 > self.context:
            raise UserError(
                f"A sequence of {words} pseudo words is longer than the {self.context - 2} that the text "
                "tower (MODEL.TEXT.NAME) reads: lower MODEL.METHOD.BARON.PROPOSALS or MODEL.OPEN_VOCAB.WORDS."
            )

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
        return self._encode(texts, batch_size).embedding

    @torch.no_grad()
    def encode_hidden(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """(N, H) as :meth:`encode`, of the last layer's features."""
        return self._encode(texts, batch_size).hidden

    def _encode(self, texts: Sequence[str], batch_size: int) -> WordFeatures:
        if isinstance(texts, str):
            raise TypeError("encode() takes a list of texts, not one text")
        widths = (self.hidden_dim, self.dim)
        found = WordFeatures(*(torch.empty(len(texts), width, device=self.device) for width in widths))
        tokens = self.tokenize(texts) if len(texts) else []
        by_length = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        with torch.autocast(self.device.type, enabled=False):
            for start in range(0, len(by_length), batch_size):
                rows = by_length[start : start + batch_size]
                features = self.features([tokens[i] for i in rows])
                for kind, values in zip(found, features, strict=True):
                    kind[rows] = F.normalize(values, dim=-1)
        return found

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
