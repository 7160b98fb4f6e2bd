"""Frozen text towers, prompts and embeddings of class names, and the cache of caption embeddings.

open_clip and transformers take seconds to import, so ``clip.py`` and ``bert.py`` do it only when a tower is built.
"""

from clim.text.build import HasTextEncoder, LazyTower, build_text_encoder, build_text_tower
from clim.text.cache import CaptionCache
from clim.text.classes import (
    CLASS_FEATURES,
    PROMPTS,
    class_embeddings,
    ensemble,
    load_embeddings,
    require_width,
    word_piece_means,
)
from clim.text.tower import TextTower, WordFeatures

__all__ = [
    "CLASS_FEATURES",
    "PROMPTS",
    "CaptionCache",
    "HasTextEncoder",
    "LazyTower",
    "TextTower",
    "WordFeatures",
    "build_text_encoder",
    "build_text_tower",
    "class_embeddings",
    "ensemble",
    "load_embeddings",
    "require_width",
    "word_piece_means",
]
