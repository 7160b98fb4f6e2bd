"""Classifiers that compare regions with text embeddings of any vocabulary: Detic's, and BARON's pseudo words.

Shapes: R regions, K classes, D width of text embeddings, n words of a region.
"""

import torch
from detectron2.config import configurable
from torch import Tensor, nn
from torch.nn import functional as F

from clim.losses import cosine_logits
from clim.text import TextTower, require_width
from clim.text.tower import drop_words


class CosineClassifier(nn.Module):
    """temperature · cos(linear(x), text) with a last column for the background, always 0 unless that is learned.

    ``class_embeddings`` (K, D) are normalised here and stored as ``zs_weight`` (D, K + 1), official Detic's key, the
    last column zeros. ``train_bias``: start of a learnable bias that is added in training only, since with -20 no
    cosine below .68 would pass score > .05; None: no bias. ``width``: of the projection; None: D.
    ``learned_background``: compare with a learned direction in the last column (F-VLM).
    """

    text_features = "embedding"  # what class names become: a key of clim.text.CLASS_FEATURES

    @configurable
    def __init__(
        self, in_features: int, *, class_embeddings: Tensor, temperature: float, train_bias: float | None = None,
        width: int | None = None, learned_background: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.temperature = temperature
        self.linear = nn.Linear(in_features, width or class_embeddings.shape[1])
        self.register_buffer("zs_weight", _with_background(class_embeddings))
        if train_bias is not None:
            self.cls_bias = nn.Parameter(torch.tensor([train_bias]))
        self.learned_background = learned_background
        if learned_background:
            # A layer on the constant 1: the direction is the sum of its weight and bias (CLIM release).
            self.background = nn.Linear(1, class_embeddings.shape[1])
            nn.init.xavier_uniform_(self.background.weight)
            nn.init.zeros_(self.background.bias)

    @classmethod
    def from_config(cls, cfg, in_features, *, class_embeddings, text_encoder):
        keys = cfg.MODEL.OPEN_VOCAB
        return {
            "in_features": in_features, "class_embeddings": class_embeddings, "temperature": keys.TEMPERATURE,
            "train_bias": float(keys.TRAIN_BIAS[0]) if keys.TRAIN_BIAS else None,
            "learned_background": not keys.ZERO_BACKGROUND,
        }  # fmt: skip

    @property
    def class_embeddings(self) -> Tensor:
        """(K + 1, D) unit rows; the last row is zeros or the learned background."""
        if not self.learned_background:
            return self.zs_weight.T
        background = F.normalize(self.background.weight[:, 0] + self.background.bias, dim=0)
        return torch.cat([self.zs_weight[:, :-1].T, background[None]])

    def set_vocabulary(self, class_embeddings: Tensor) -> None:
        """Replace the classes by (K', D) embeddings of other names."""
        self.zs_weight = _with_background(class_embeddings).to(self.zs_weight)

    def project(self, x: Tensor) -> Tensor:
        """Region features (R, in_features) → un-normalised embeddings (R, D), which methods read."""
        return self.linear(x)

    def embed(self, x: Tensor) -> Tensor:
        """Region features (R, in_features) → un-normalised embeddings (R, D), which are compared with the classes."""
        return self.project(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (R, K + 1)."""
        logits = cosine_logits(self.embed(x), self.class_embeddings, temperature=self.temperature)
        return logits + self.cls_bias if self.training and hasattr(self, "cls_bias") else logits


class PseudoWordClassifier(CosineClassifier):
    """temperature · cos(tower(words), class) with n words = linear(x), some of them dropped in training (baron §3).

    Classes and regions are compared by the tower's last hidden features, before ``ln_final`` and projection: with
    these BARON overfits less to the classes that have boxes. Logits are float32, inside autocast too.

    The frozen ``tower``, on the model's device, is neither stored nor trained with the module. ``words`` is n,
    ``dropout`` the probability of dropping a word, and ``class_embeddings`` are (K, H) hidden features.
    """

    text_features = "hidden"

    @configurable
    def __init__(self, in_features: int, *, tower: TextTower, words: int, dropout: float, **kwargs):
        tower.check_length(words)
        super().__init__(in_features, width=words * tower.word_dim, **kwargs)
        nn.init.normal_(self.linear.weight, std=0.01)  # MMDetection's start of a box head's classifier
        nn.init.zeros_(self.linear.bias)
        self.words, self.dropout = words, dropout
        object.__setattr__(self, "tower", tower)

    @classmethod
    def from_config(cls, cfg, in_features, *, class_embeddings, text_encoder):
        tower, text = text_encoder.live, cfg.MODEL.TEXT
        require_width(tower.word_dim, cfg, what=f"A word of MODEL.TEXT.NAME {text.NAME}", key="WORD_DIM")
        ret = super().from_config(cfg, in_features, class_embeddings=class_embeddings, text_encoder=text_encoder)
        return ret | {"tower": tower, "words": cfg.MODEL.OPEN_VOCAB.WORDS, "dropout": cfg.MODEL.OPEN_VOCAB.WORD_DROPOUT}

    def embed(self, x: Tensor) -> Tensor:
        """Region features (R, in_features) → (R, H), the tower's hidden features of each region's words."""
        words = self.project(x).float().unflatten(1, (self.words, -1))
        real = torch.ones(words.shape[:2], dtype=torch.bool, device=words.device)
        lengths = real.sum(dim=1)
        if self.training:
            words, lengths = drop_words(words, real, dropout=self.dropout)
        return self.tower.encode_words(words, lengths).hidden


CLASSIFIERS = {"cosine": CosineClassifier, "pseudo_words": PseudoWordClassifier}  # MODEL.OPEN_VOCAB.CLASSIFIER


def _with_background(class_embeddings: Tensor) -> Tensor:
    columns = F.normalize(class_embeddings.float(), dim=1).T
    return torch.cat([columns, columns.new_zeros(len(columns), 1)], dim=1)
