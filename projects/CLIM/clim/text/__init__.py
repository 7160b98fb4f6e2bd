"""Frozen text towers, prompts, class embeddings and the cache of caption embeddings.

| file | what |
|---|---|
| ``base.py`` | ``TextTower``: what every tower offers |
| ``open_clip_tower.py`` | CLIP's text half |
| ``clip_config.py``, ``clip_weights.py`` | CLIP models by name or json, and the files of either half's weights |
| ``bert_tower.py`` | mean-pooled BERT (MiniLM), and its single tokens |
| ``tokens.py`` | ``TokenBatch``: captions as tokens; masking of words |
| ``towers.py`` | ``build_text_tower``: from the config's words to a tower |
| ``prompts.py`` | prompt texts of a class name |
| ``classes.py`` | embeddings of class names, computed or loaded |
| ``words.py`` | word dropout of pseudo words |
| ``store.py``, ``cache.py`` | ``CaptionCache``, ``LazyTower``: embeddings on disk |
| ``encoder.py`` | ``build_text_encoder``: the tower of a model, cached or live; ``HasTextEncoder`` keeps it frozen |
"""

from clim.text.base import TextTower, WordFeatures
from clim.text.cache import CaptionCache, LazyTower
from clim.text.classes import CLASS_FEATURES, class_embeddings, load_embeddings, word_piece_means
from clim.text.encoder import HasTextEncoder, build_text_encoder
from clim.text.prompts import PROMPTS, a_name, ensemble
from clim.text.towers import build_text_tower

__all__ = [
    "CLASS_FEATURES",
    "PROMPTS",
    "CaptionCache",
    "HasTextEncoder",
    "LazyTower",
    "TextTower",
    "WordFeatures",
    "a_name",
    "build_text_encoder",
    "build_text_tower",
    "class_embeddings",
    "ensemble",
    "load_embeddings",
    "word_piece_means",
]
