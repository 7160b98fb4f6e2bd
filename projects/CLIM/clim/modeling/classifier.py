"""Classifier whose weights are text embeddings: cosine logits, any vocabulary."""

import torch
from detectron2.config import configurable
from torch import Tensor, nn
from torch.nn import functional as F

from clim.losses import cosine_logits


class CosineClassifier(nn.Module):
    """temperature · cos(linear(x), text) with a last column for the background, always 0 unless that is learned.

    Args:
        in_features: width of region features.
        class_embeddings: (K, D); normalised here. Stored as ``zs_weight`` (D, K + 1), official Detic's key,
            the last column zeros.
        temperature: scale of the cosine (official Detic 50, CLIM release 25).
        train_bias: start of a learnable bias that is added in training only; None: no bias. It stays out at
            test: with -20 nothing below cos .68 would pass score > .05.
        width: of the projection; None: D, as :meth:`embed` needs it here.
        learned_background: compare with a learned direction in that column too (F-VLM).
    """

    text_features = "embedding"  # of class names, by which it compares: a key of clim.text.CLASS_FEATURES

    @configurable
    def __init__(
        self,
        in_features: int,
        *,
        class_embeddings: Tensor,
        temperature: float,
        train_bias: float | None = None,
        width: int | None = None,
        learned_background: bool = False,
    ):
        super().__init__()
        self.temperature = temperature
        self.linear = nn.Linear(in_features, width or class_embeddings.shape[1])
        self.register_buffer("zs_weight", _with_background(class_embeddings))
        if train_bias is not None:
            self.cls_bias = nn.Parameter(torch.tensor([train_bias]))
        self.learned_background = learned_background
        if learned_background:
            # A layer on the constant 1: its weight and bias add up to the direction (CLIM release).
            self.background = nn.Linear(1, class_embeddings.shape[1])
            nn.init.xavier_uniform_(self.background.weight)
            nn.init.zeros_(self.background.bias)

    @classmethod
    def from_config(cls, cfg, in_features, *, class_embeddings, text_encoder):
        bias = cfg.MODEL.OPEN_VOCAB.TRAIN_BIAS
        return {
            "in_features": in_features,
            "class_embeddings": class_embeddings,
            "temperature": cfg.MODEL.OPEN_VOCAB.TEMPERATURE,
            "train_bias": float(bias[0]) if bias else None,
            "learned_background": not cfg.MODEL.OPEN_VOCAB.ZERO_BACKGROUND,
        }

    @property
    def class_embeddings(self) -> Tensor:
        """(K + 1, D), unit rows and a last one of zeros, or the learned background."""
        if not self.learned_background:
            return self.zs_weight.T
        background = F.normalize(self.background.weight[:, 0] + self.background.bias, dim=0)
        return torch.cat([self.zs_weight[:, :-1].T, background[None]])

    def set_vocabulary(self, class_embeddings: Tensor) -> None:
        """Replace the classes by (K', D) embeddings of other names."""
        self.zs_weight = _with_background(class_embeddings).to(self.zs_weight)

    def project(self, x: Tensor) -> Tensor:
        """Region features (R, in_features) → un-normalised embeddings (R, D): what methods get."""
        return self.linear(x)

    def embed(self, x: Tensor) -> Tensor:
        """Region features (R, in_features) → un-normalised embeddings (R, D) in the space of the classes'."""
        return self.project(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (R, K + 1)."""
        logits = cosine_logits(self.embed(x), self.class_embeddings, temperature=self.temperature)
        return self.with_train_bias(logits)

    def with_train_bias(self, logits: Tensor) -> Tensor:
        """``logits``, in training plus the learned bias where there is one."""
        return logits + self.cls_bias if self.training and hasattr(self, "cls_bias") else logits


def _with_background(class_embeddings: Tensor) -> Tensor:
    columns = F.normalize(class_embeddings.float(), dim=1).T
    return torch.cat([columns, columns.new_zeros(len(columns), 1)], dim=1)
