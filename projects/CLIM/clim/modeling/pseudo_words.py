"""BARON's classifier: a region is written as a few pseudo words, and a frozen text tower reads them (baron §3).

Shapes: R regions, n words of a region, W width of a word, K classes, H width of the tower's last layer.
"""

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from clim.losses import cosine_logits
from clim.text import TextTower, require_width
from clim.text.tower import drop_words

from .classifier import CosineClassifier


class PseudoWordClassifier(CosineClassifier):
    """temperature · cos(tower(words), class) with words = linear(x), and words dropped in training.

    Classes are compared with the tower's last hidden features, before ``ln_final`` and projection: on these BARON
    overfits less to the classes that have boxes.

    Args:
        tower: reads the words; frozen, on the model's device, and no part of the module: neither stored nor trained.
        words: n.
        dropout: probability that a word is left out, in training.
        class_embeddings: (K, H) hidden features of class names.
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
        ret.update(tower=tower, words=cfg.MODEL.OPEN_VOCAB.WORDS, dropout=cfg.MODEL.OPEN_VOCAB.WORD_DROPOUT)
        return ret

    def embed(self, x: Tensor) -> Tensor:
        """Region features (R, in_features) → (R, H): what the tower makes of the region's words."""
        words = self.project(x).float().unflatten(1, (self.words, -1))
        real = torch.ones(words.shape[:2], dtype=torch.bool, device=words.device)
        lengths = real.sum(dim=1)
        if self.training:
            words, lengths = drop_words(words, real, dropout=self.dropout)
        return self.tower.encode_words(words, lengths).hidden

    def forward(self, x: Tensor) -> Tensor:
        """Logits (R, K + 1) in float32, inside autocast too."""
        logits = cosine_logits(self.embed(x), self.class_embeddings, temperature=self.temperature)
        return self.with_train_bias(logits)
