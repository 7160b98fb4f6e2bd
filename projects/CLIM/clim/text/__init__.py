"""Frozen text towers, prompts and embeddings of class names, and the cache of caption embeddings.

open_clip and transformers take seconds to import, so ``clip.py`` and ``bert.py`` are imported when a tower is built.
"""

from .build import CaptionCache, HasTextEncoder, LazyTower, build_text_encoder, build_text_tower
from .classes import CLASS_FEATURES, PROMPTS, class_embeddings, load_embeddings, require_width, word_piece_means
from .tower import TextTower

__all__ = [
    "CLASS_FEATURES", "PROMPTS", "CaptionCache", "HasTextEncoder", "LazyTower", "TextTower", "build_text_encoder",
    "build_text_tower", "class_embeddings", "load_embeddings", "require_width", "word_piece_means",
]  # fmt: skip
