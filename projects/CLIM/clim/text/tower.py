"""The contract of a frozen text tower, the code that all towers share, and word dropout.

Shapes: N texts, B sequences of a batch, L words of the longest, V known tokens, W width of word embeddings, H width
of the last layer, D width of an embedding.
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


class WordFeatures(NamedTuple):
    """Two features of a sequence, both un-normalised."""

    hidden: Tensor  # (B, H) of the last layer, for CLIP before ``ln_final`` and the projection (BARON's classifier)
    embedding: Tensor  # (B, D), comparable with embeddings of captions


class TextTower(nn.Module):
    """A frozen sentence encoder, always in evaluation mode.

    A subclass sets the attributes below, implements the first three methods, and ends its ``__init__`` by ``freeze()``.
    """

    dim: int  # D
    hidden_dim: int  # H
    context: int  # length of the longest sequence, start and end token included
    ends: tuple[int, int]  # ids of the start and end token of every text
    unknown_id: int | None = None  # id of the token for unknown words; None where the tower knows all words

    def __init__(self, *, architecture: str):
        """``architecture`` describes all that an embedding depends on, except the weights."""
        super().__init__()
        self._architecture = architecture

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without padding, cut to ``context``."""
        raise NotImplementedError

    @property
    def word_embeddings(self) -> Tensor:
        """(V, W), a frozen row for each token id."""
        raise NotImplementedError

    def features_of_words(self, words: Tensor, lengths: Tensor) -> WordFeatures:
        """Features of ``words`` (B, L, W), of which ``lengths`` (B,) >= 1 count, start and end token included."""
        raise NotImplementedError

    @property
    def word_dim(self) -> int:
        return self.word_embeddings.shape[1]

    @property
    def live(self) -> "TextTower":  # as caches and lazy towers have it
        return self

    def features(self, tokens: list[list[int]]) -> WordFeatures:
        ids = pad_sequence([torch.tensor(row) for row in tokens], batch_first=True).to(self.device)
        lengths = torch.tensor([len(row) for row in tokens], device=self.device)
        return self.features_of_words(F.embedding(ids, self.word_embeddings), lengths)

    def encode_words(self, words: Tensor, lengths: Tensor) -> WordFeatures:
        """Features of sequences of word embeddings (B, L, W): BARON's pseudo words (baron §3).

        Reads the first ``lengths[b]`` rows of ``words[b]`` between the start and the end token. Differentiable with
        respect to ``words``. UserError if L is more than the tower reads.
        """
        self.check_length(words.shape[1])
        if len(words) == 0:  # BERT's attention cannot reshape an empty batch
            nothing = words.sum()
            return WordFeatures(nothing.expand(0, self.hidden_dim), nothing.expand(0, self.dim))
        start, end = self.word_embeddings[list(self.ends)].to(words.dtype)
        words = torch.cat([start.expand(len(words), 1, -1), words, end.expand(len(words), 1, -1)], dim=1)
        is_end = torch.arange(words.shape[1], device=words.device) == lengths[:, None] + 1
        return self.features_of_words(torch.where(is_end[..., None], end, words), lengths + 2)

    def check_length(self, words: int) -> None:
        """UserError if the tower cannot read a sequence of ``words`` pseudo words."""
        if words + 2 > self.context:
            raise UserError(
                f"A sequence of {words} pseudo words is longer than the {self.context - 2} that the text tower "
                "(MODEL.TEXT.NAME) reads: lower MODEL.METHOD.BARON.PROPOSALS or MODEL.OPEN_VOCAB.WORDS."
            )

    def freeze(self) -> None:
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "TextTower":
        """Stay in evaluation mode, also when the model around the tower starts training."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """(N, D) float32 unit embeddings on the tower's device. Computes in float32, also inside autocast."""
        return self._encode(texts, batch_size).embedding

    def encode_hidden(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """(N, H) features of the last layer, with unit length too."""
        return self._encode(texts, batch_size).hidden

    @torch.no_grad()
    def _encode(self, texts: Sequence[str], batch_size: int) -> WordFeatures:
        if isinstance(texts, str):
            raise TypeError("encode() takes a list of texts, not one text")
        sizes = ((len(texts), width) for width in (self.hidden_dim, self.dim))
        found = WordFeatures(*(torch.empty(size, device=self.device) for size in sizes))
        tokens = self.tokenize(texts) if len(texts) else []
        by_length = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))  # saves padding
        with torch.autocast(self.device.type, enabled=False):
            for start in range(0, len(by_length), batch_size):
                rows = by_length[start : start + batch_size]
                for kind, values in zip(found, self.features([tokens[i] for i in rows]), strict=True):
                    kind[rows] = F.normalize(values, dim=-1)
        return found

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that identify the tower: a hash of its architecture and its weights.

        A weight contributes name, shape, 64 values and the sum of all bit patterns: an integer, equal on any device.
        """
        digest = hashlib.sha256(self._architecture.encode())
        for name, weight in sorted(self.state_dict().items()):
            bits = weight.detach().float().contiguous().view(torch.int32).flatten()
            sample = bits[:: max(1, bits.numel() // 64)]
            digest.update(f"{name} {tuple(weight.shape)} {bits.sum(dtype=torch.int64).item()}".encode())
            digest.update(sample.cpu().numpy().tobytes())
        return digest.hexdigest()[:32]


def drop_words(words: Tensor, real: Tensor, *, dropout: float) -> tuple[Tensor, Tensor]:
    """Word dropout of (B, L, W) (BARON; baron §3): :func:`close_up` of the words that :func:`surviving` keeps."""
    return close_up(words, surviving(real, dropout=dropout))


def surviving(real: Tensor, *, dropout: float) -> Tensor:
    """Which words of ``real`` (…, L), False for padding, stay: each is dropped with probability ``dropout``.

    If a row would lose all, its word 0 stays. Draws from torch's random state on the CPU, which a resumed run restores.
    """
    kept = real & (torch.rand(real.shape) >= dropout).to(real.device)
    kept[..., 0] |= real[..., 0] & ~kept.any(dim=-1)
    return kept


def close_up(words: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The ``kept`` words of (B, L, W), moved to the left: (B, L', W), and their counts (B,), at most L'."""
    lengths = kept.sum(dim=1)
    order = torch.argsort((~kept).int(), dim=1, stable=True)[:, : max(lengths.tolist(), default=0)]
    return words.gather(1, order[..., None].expand(-1, -1, words.shape[2])), lengths
