"""CLIP's text half: its two features, its weights' names, and other kinds of text halves."""

import logging

import pytest
import torch

from clim.errors import UserError
from clim.text.towers import build_text_tower


def test_clips_two_features_by_hand(clip, clip_file):
    """Embeddings, positions, blocks one by one under a causal mask; the last token, before and after ``ln_final``."""
    tower = build_text_tower(name="tiny-clip-quickgelu", pretrained=str(clip_file))
    words = torch.randn(1, 3, 16)
    start, end = clip.token_embedding.weight[49406], clip.token_embedding.weight[49407]
    with torch.no_grad():
        x = torch.cat([start[None], words[0], end[None]])[None] + clip.positional_embedding[:5]
        mask = torch.full((5, 5), -torch.inf).triu(1)
        for block in clip.transformer.resblocks:
            x = block(x, attn_mask=mask)
        hidden = x[:, -1]
        embedding = clip.ln_final(hidden) @ clip.text_projection
    features = tower.encode_words(words, torch.tensor([3]))
    torch.testing.assert_close(features.hidden, hidden, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(features.embedding, embedding, atol=1e-6, rtol=1e-5)


def test_features_of_words_are_float32_inside_autocast(tower):
    with torch.autocast("cpu", torch.bfloat16):
        features = tower.encode_words(torch.randn(2, 3, 16), torch.tensor([3, 2]))
    assert features.hidden.dtype == features.embedding.dtype == torch.float32


def test_random_weights_are_repeatable_and_warned_of(caplog, phrases):
    with caplog.at_level(logging.WARNING):
        first = build_text_tower(name="tiny-clip").encode(phrases)
    assert [r.getMessage() for r in caplog.records] == [
        "The text tower tiny-clip has random weights: its embeddings mean nothing."
    ]
    torch.manual_seed(5)
    assert torch.equal(first, build_text_tower(name="tiny-clip").encode(phrases))


def test_only_the_text_half_is_kept_under_openai_names(tower, clip):
    own = set(tower.state_dict())
    assert own == {k for k in clip.state_dict() if not k.startswith("visual.") and k != "logit_scale"}
    assert len(build_text_tower(name="ViT-B-32-quickgelu").state_dict()) == 149  # as in Detic's checkpoints


def test_other_kinds_of_text_half_are_refused():
    with pytest.raises(UserError, match="tiny-pooled.*not CLIP's causal transformer"):
        build_text_tower(name="tiny-pooled")
