"""CLIP and BERT towers: batches, word embeddings as input, fingerprints; word dropout against a loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from clim.errors import UserError
from clim.text import build_text_tower
from clim.text.tower import drop_words, surviving


@pytest.fixture(scope="module", params=["tiny-clip-quickgelu", "minilm"])
def any_tower(request):
    return build_text_tower(name=request.param)


def test_encoding(any_tower, phrases):
    """Frozen, in evaluation mode, of unit length; a batch equals its texts one by one; autocast changes nothing."""
    torch.nn.ModuleList([any_tower]).train()
    assert not any(module.training for module in any_tower.modules())
    assert not any(parameter.requires_grad for parameter in any_tower.parameters())
    embeddings = any_tower.encode(phrases)
    assert embeddings.shape == (4, any_tower.dim) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
    assert not embeddings.requires_grad and not embeddings.is_inference()
    assert any_tower.encode([]).shape == (0, any_tower.dim)
    single = torch.cat([any_tower.encode([text]) for text in phrases])
    torch.testing.assert_close(embeddings, single, atol=1e-6, rtol=0)
    torch.testing.assert_close(any_tower.encode(phrases, batch_size=3), single, atol=1e-6, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(any_tower.encode(phrases), embeddings)
    long = "dog " * 1000
    assert torch.equal(any_tower.encode([long]), any_tower.encode([long + "cat"]))  # read from the start
    with pytest.raises(TypeError, match="list"):
        any_tower.encode("a dog")


# ---- words


def inner_words(tower, texts):
    """Word embeddings (B, L, W) of what stands between each text's start and end, and their numbers (B,)."""
    inner = [ids[1:-1] for ids in tower.tokenize(texts)]
    length = max(len(ids) for ids in inner)
    words = torch.full((len(texts), length, tower.word_dim), 7.0)  # beyond a text: must not be read
    for row, ids in zip(words, inner, strict=True):
        row[: len(ids)] = tower.word_embeddings[ids]
    return words, torch.tensor([len(ids) for ids in inner])


def test_words_of_a_text_are_read_as_the_text_alone_and_in_a_batch(any_tower, phrases):
    features = any_tower.encode_words(*inner_words(any_tower, phrases))
    torch.testing.assert_close(normalize(features.embedding), any_tower.encode(phrases), atol=1e-6, rtol=0)
    torch.testing.assert_close(normalize(features.hidden), any_tower.encode_hidden(phrases), atol=1e-6, rtol=0)
    assert features.hidden.shape == (4, any_tower.hidden_dim)
    assert (features.embedding.norm(dim=1) - 1).abs().min() > 1e-3  # not normalised
    words, lengths = inner_words(any_tower, phrases)
    for b, n in enumerate(lengths.tolist()):
        alone = any_tower.encode_words(words[b : b + 1, :n], lengths[b : b + 1])
        for all_of, one in zip(features, alone, strict=True):
            torch.testing.assert_close(all_of[b], one[0], atol=1e-5, rtol=1e-4)


def test_gradients_reach_the_words_that_are_read_and_no_weight(any_tower):
    words = torch.randn(2, 5, any_tower.word_dim, requires_grad=True)
    features = any_tower.encode_words(words, torch.tensor([5, 3]))
    (normalize(features.hidden)[:, 0] + normalize(features.embedding)[:, 0]).sum().backward()
    assert words.grad[0].any(1).all() and words.grad[1, :3].any(1).all()
    assert not words.grad[1, 3:].any()
    assert all(p.grad is None for p in any_tower.parameters())
    for length in (0, 3):
        features = any_tower.encode_words(torch.zeros(0, length, any_tower.word_dim), torch.zeros(0, dtype=torch.int64))
        assert features.hidden.shape == (0, any_tower.hidden_dim)
        assert features.embedding.shape == (0, any_tower.dim)


def test_more_words_than_it_can_read(tower):
    assert tower.context == 20
    tower.encode_words(torch.zeros(1, 18, 16), torch.tensor([18]))
    with pytest.raises(UserError, match="19 pseudo words is longer than the 18 .*MODEL.METHOD.BARON.PROPOSALS"):
        tower.encode_words(torch.zeros(1, 19, 16), torch.tensor([19]))


def flip_one_bit(weight):
    weight.view(torch.int32)[12345, 7] ^= 1


def reverse(weight):
    weight.copy_(weight.flip(0))


@pytest.mark.parametrize("name, change", [
    ("tiny-clip-quickgelu", flip_one_bit), ("tiny-clip-quickgelu", reverse), ("tiny-clip", None),
])  # fmt: skip
def test_fingerprint_sees_weights_their_order_and_the_activation(tower, name, change):
    other = build_text_tower(name=name)
    assert all(torch.equal(a, b) for a, b in zip(tower.parameters(), other.parameters(), strict=True))
    if change:
        assert other.fingerprint == tower.fingerprint and len(tower.fingerprint) == 32
        other = build_text_tower(name=name)
        change(other.token_embedding.weight.data)
    assert other.fingerprint != tower.fingerprint


# ---- word dropout


def slow(words, real, draws, dropout):
    """Survivors of each sequence in their order; word 0 where none survives."""
    sequences = []
    for b in range(len(words)):
        places = [i for i in range(words.shape[1]) if real[b, i] and draws[b, i] >= dropout]
        sequences.append([words[b, i] for i in places or [0]])
    return sequences


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 5), max_size=6), st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]), st.integers(0, 999))
def test_survivors_close_up_to_the_left(counts, dropout, seed):
    length = max(counts, default=3)
    real = torch.tensor([[i < n for i in range(length)] for n in counts], dtype=torch.bool).view(-1, length)
    words = torch.randn(len(counts), length, 2, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    kept, lengths = drop_words(words, real, dropout=dropout)
    torch.manual_seed(seed)
    expected = slow(words, real, torch.rand(real.shape), dropout)
    assert lengths.tolist() == [len(s) for s in expected]
    assert kept.shape == (len(counts), max(lengths.tolist(), default=0), 2)
    for ours, n, reference in zip(kept, lengths.tolist(), expected, strict=True):
        assert torch.equal(ours[:n], torch.stack(reference))


def test_words_are_not_scaled_and_every_one_goes_with_the_given_probability():
    """4 standard deviations of 20,000 draws; word 0 also stays where all would go."""
    words = torch.randn(3, 4, 2, requires_grad=True)
    real = torch.tensor([[True] * 4, [True] * 2 + [False] * 2, [True] + [False] * 3])
    kept, lengths = drop_words(words, real, dropout=0.0)
    assert lengths.tolist() == [4, 2, 1] and torch.equal(kept[1, :2], words[1, :2])
    sum(row[:n].sum() for row, n in zip(kept, lengths.tolist(), strict=True)).backward()
    assert torch.equal(words.grad, real[..., None].expand(-1, -1, 2).float())
    torch.manual_seed(0)
    for dropout in (0.25, 0.5):
        marks = torch.arange(4.0).expand(20_000, -1)[..., None]
        kept, lengths = drop_words(marks, torch.ones(20_000, 4, dtype=torch.bool), dropout=dropout)
        real = torch.arange(kept.shape[1]) < lengths[:, None]
        frequency = torch.tensor([((kept[..., 0] == i) & real).float().sum() / 20_000 for i in range(4)])
        expected = torch.tensor([1 - dropout + dropout**4, *[1 - dropout] * 3])
        assert (frequency - expected).abs().max() < 4 * (dropout * (1 - dropout) / 20_000) ** 0.5


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.sampled_from([0.5, 1.0]), st.integers(0, 999))
def test_every_row_that_has_words_keeps_one_and_padding_none(regions, dropout, seed):
    """Rows may be grouped: sequences of regions of 2 words, some of the regions padding (baron §3, §5)."""
    real = torch.tensor([[i < n for i in range(3)] for n in regions])[..., None].expand(-1, -1, 2)
    torch.manual_seed(seed)
    kept = surviving(real, dropout=dropout)
    assert torch.equal(kept.any(-1), real.any(-1)) and not (kept & ~real).any()
    if dropout == 1.0:
        assert torch.equal(kept[..., 0], real[..., 0]) and not kept[..., 1].any()
