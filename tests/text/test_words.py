"""Word dropout against a loop over sequences, and how often words go."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.text.words import drop_words, surviving


def slow(words, real, draws, dropout):
    """Survivors of each sequence in their order; word 0 where none survives."""
    sequences = []
    for b in range(len(words)):
        places = [i for i in range(words.shape[1]) if real[b, i] and draws[b, i] >= dropout]
        sequences.append([words[b, i] for i in places or [0]])
    return sequences


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 5), max_size=6), st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]), st.integers(0, 999)
)
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


def test_words_are_neither_scaled_nor_copied_without_gradient():
    words = torch.randn(3, 4, 2, requires_grad=True)
    real = torch.tensor([[True] * 4, [True] * 2 + [False] * 2, [True] + [False] * 3])
    kept, lengths = drop_words(words, real, dropout=0.0)
    assert lengths.tolist() == [4, 2, 1] and torch.equal(kept[1, :2], words[1, :2])
    sum(row[:n].sum() for row, n in zip(kept, lengths.tolist(), strict=True)).backward()
    assert torch.equal(words.grad, real[..., None].expand(-1, -1, 2).float())


@pytest.mark.parametrize("dropout", [0.25, 0.5])
def test_every_word_goes_with_the_given_probability(dropout):
    """4 standard deviations of 20,000 draws; word 0 also stays where all would go."""
    torch.manual_seed(0)
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
