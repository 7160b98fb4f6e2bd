"""OV-RCNN's scores and losses, against every caption beside every picture, one pair at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from clim.grounding_losses import LOCAL_METRICS, aligned_local, choices, mean_of_pairs


def batch(counts, *, dim=6, seed=0):
    """Words and cells of captions and tiles of ``counts`` [(words, cells), …]; the padding is not zero."""
    generator = torch.Generator().manual_seed(seed)
    longest = [max(1, *(c[i] for c in counts)) + 1 for i in (0, 1)]
    words, cells = (torch.randn(len(counts), n, dim, generator=generator) * 3 for n in longest)
    is_word, is_cell = torch.zeros(words.shape[:2]).bool(), torch.zeros(cells.shape[:2]).bool()
    for i, (num_words, num_cells) in enumerate(counts):
        is_word[i, torch.randperm(longest[0], generator=generator)[:num_words]] = True
        is_cell[i, torch.randperm(longest[1], generator=generator)[:num_cells]] = True
    return words, is_word, cells, is_cell


def replicated(words, is_word, cells, is_cell):
    """Both sides repeated so that row i · B + j holds caption i and picture j, without padding."""
    count = len(words)
    for i in range(count):
        for j in range(count):
            yield i, j, words[i][is_word[i]], cells[j][is_cell[j]]


def slow_aligned(inputs, temperature):
    count = len(inputs[0])
    of_words, of_cells = torch.zeros(count, count), torch.zeros(count, count)
    for i, j, caption, picture in replicated(*inputs):
        s = [[float(e @ v) / temperature for v in picture] for e in caption]
        for row in s:
            weights = [math.exp(x - max(row)) for x in row]
            of_words[i, j] += (
                sum(w * x for w, x in zip(weights, row, strict=True)) / max(sum(weights), 1e-9) / len(s)
                if row
                else 0
            )
        for column in zip(*s, strict=True):
            weights = [math.exp(x - max(column)) for x in column]
            of_cells[i, j] += (
                sum(w * x for w, x in zip(weights, column, strict=True)) / sum(weights) / len(picture)
            )
    return {"words": of_words, "cells": of_cells}


@pytest.mark.parametrize("temperature", [10.0, 0.5])
def test_aligned_local_is_the_replicated_form(temperature):
    inputs = batch([(3, 5), (1, 2), (4, 1)])
    found, expected = aligned_local(*inputs, temperature=temperature), slow_aligned(inputs, temperature)
    assert found.keys() == expected.keys()
    for kind, matrix in expected.items():
        torch.testing.assert_close(found[kind], matrix, rtol=1e-4, atol=1e-5)


def test_captions_without_words_and_tiles_without_cells_score_zero():
    inputs = [tensor.requires_grad_(tensor.is_floating_point()) for tensor in batch([(0, 3), (2, 0), (2, 2)])]
    found = aligned_local(*inputs, temperature=10.0)
    for matrix in found.values():
        assert torch.equal(matrix[0], torch.zeros(3)) and torch.equal(matrix[:, 1], torch.zeros(3))
        assert matrix[1:, [0, 2]].all()
    sum(matrix.sum() for matrix in found.values()).backward()
    assert all(t.grad.isfinite().all() for t in inputs if t.is_floating_point())


def test_padding_gets_no_gradient():
    words, is_word, cells, is_cell = batch([(3, 5), (1, 2)])
    words.requires_grad_(), cells.requires_grad_()
    sum(
        choices(m, torch.arange(2))[0]
        for m in aligned_local(words, is_word, cells, is_cell, temperature=1.0).values()
    ).backward()
    assert not words.grad[~is_word].any() and not cells.grad[~is_cell].any()
    assert words.grad[is_word].any(dim=1).all() and cells.grad[is_cell].any(dim=1).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4), st.integers(0, 99))
def test_the_mean_of_cosines_is_the_product_of_pooled_unit_vectors(counts, seed):
    words, is_word, cells, is_cell = batch(counts, seed=seed)
    cosine = LOCAL_METRICS["cosine"]
    (found,) = mean_of_pairs(cosine(words), is_word, cosine(cells), is_cell, temperature=0.01).values()
    for i, j, caption, picture in replicated(words, is_word, cells, is_cell):
        pairs = torch.cosine_similarity(caption[:, None], picture[None], dim=2)
        pooled = normalize(caption, dim=1).mean(0) @ normalize(picture, dim=1).mean(0)
        torch.testing.assert_close(found[i, j], pairs.mean() / 0.01, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found[i, j], pooled / 0.01, rtol=1e-4, atol=1e-3)


def test_dot_is_left_as_it_is():
    vectors = torch.randn(2, 3, 4)
    assert torch.equal(LOCAL_METRICS["dot"](vectors), vectors)


def test_choices_are_cross_entropies_over_the_columns_and_over_the_rows():
    s = [[1.0, 0.5, -1.0], [0.0, 2.0, 0.3], [0.7, -0.2, 0.1]]
    picture = [-s[i][i] + math.log(sum(math.exp(x) for x in s[i])) for i in range(3)]
    caption = [-s[i][i] + math.log(sum(math.exp(row[i]) for row in s)) for i in range(3)]
    found = choices(torch.tensor(s), torch.arange(3))
    assert [float(loss) for loss in found] == pytest.approx([sum(picture) / 3, sum(caption) / 3])


def test_the_same_picture_again_is_no_candidate():
    s = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    picture, caption = choices(s, torch.tensor([5, 6, 5, 7]))
    candidates = [[0, 1, 3], [0, 1, 2, 3], [1, 2, 3], [0, 1, 2, 3]]  # the others of id 5 are left out
    rows = [s[i, of].logsumexp(0) - s[i, i] for i, of in enumerate(candidates)]
    columns = [s[of, i].logsumexp(0) - s[i, i] for i, of in enumerate(candidates)]
    torch.testing.assert_close([picture, caption], [sum(rows) / 4, sum(columns) / 4])
    (picture + caption).backward()
    assert s.grad.isfinite().all() and s.grad[0, 2] == s.grad[2, 0] == 0


def test_one_pair_has_nothing_to_choose():
    assert [float(loss) for loss in choices(torch.tensor([[3.0]]), torch.tensor([7]))] == [0.0, 0.0]


def test_scores_are_float32_inside_autocast():
    inputs = batch([(3, 5), (1, 2)])
    with torch.autocast("cpu", torch.bfloat16):
        inside = aligned_local(*inputs, temperature=10.0) | mean_of_pairs(*inputs, temperature=10.0)
    outside = aligned_local(*inputs, temperature=10.0) | mean_of_pairs(*inputs, temperature=10.0)
    assert all(torch.equal(inside[kind], matrix) for kind, matrix in outside.items())
