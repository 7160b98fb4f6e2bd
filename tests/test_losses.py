"""Every loss against loops in plain Python, written from the formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from clim import losses
from clim.losses import LOCAL_METRICS, choices, cosine_logits, matched_bce, matched_contrast


def bce(logit, target):
    """-log sigmoid(logit) for target 1, -log sigmoid(-logit) for target 0."""
    return math.log1p(math.exp(-logit if target else logit))


def randn(*shape, seed=0, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def units(*shape, seed):
    return normalize(randn(*shape, seed=seed), dim=1)


def close(actual, expected):
    torch.testing.assert_close(
        actual.detach().double(), torch.as_tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5
    )


def cosine(a, b, scale):
    return scale * sum(x * y for x, y in zip(a, b, strict=True)) / ((math.hypot(*a) * math.hypot(*b)) or 1)


def log_softmax_of(row, k):
    top = max(row)
    return row[k] - top - math.log(sum(math.exp(z - top) for z in row))


NO_CLASS = torch.zeros(0, dtype=torch.int64)


@pytest.mark.parametrize("loss", [
    lambda rows: losses.masked_class_bce(rows, NO_CLASS, torch.ones(3)),
    lambda rows: losses.federated_class_bce(rows, NO_CLASS, torch.tensor([1])),
    lambda rows: losses.sampled_class_bce(rows, NO_CLASS, torch.eye(3), torch.arange(2), scale=9.0),
    lambda rows: losses.masked_softmax_ce(rows, NO_CLASS, torch.ones(2).bool(), background_weight=0.6),
    lambda rows: matched_contrast(rows, NO_CLASS, torch.zeros(0, 3), NO_CLASS, scale=30.0),
    lambda rows: matched_contrast(rows, NO_CLASS, torch.zeros(2, 3), torch.arange(2), scale=30.0),
    lambda rows: matched_contrast(torch.zeros(2, 3), torch.arange(2), rows, NO_CLASS, scale=30.0),
    lambda rows: losses.symmetric_info_nce(rows, rows, rows, rows, scale=torch.tensor(3.0)),
])  # fmt: skip
def test_a_loss_of_nothing_is_a_zero_with_a_graph(loss):
    """So that every process has a gradient for every parameter."""
    rows = torch.zeros(0, 3, requires_grad=True)
    found = loss(rows)
    found.backward()
    assert found.item() == 0 and rows.grad.shape == (0, 3)


def test_losses_of_regions_without_regions_or_columns():
    for loss in (losses.multi_hot_bce, losses.one_hot_per_tag_bce, lambda *r: matched_bce(*r, negative_weight=0.125)):
        for shape in ((0, 3), (2, 0)):
            assert loss(torch.zeros(shape), torch.zeros(shape).bool()).tolist() == [0.0] * shape[0]


def test_losses_stay_in_float32_inside_autocast():
    """At -20, bfloat16 is 1/8 coarse: losses of different logits would fall together."""
    regions, texts, ids = randn(4, 32, seed=1), units(4, 32, seed=2), torch.arange(4)
    inputs = captions_and_tiles([(3, 5), (1, 2)])

    def all_losses():
        yield cosine_logits(regions, texts, temperature=25.0, bias=torch.tensor(-20.0))
        yield matched_contrast(texts, ids, texts, ids, scale=30.0)
        yield from losses.aligned_local(*inputs, temperature=10.0).values()
        yield from losses.mean_of_pairs(*inputs, temperature=10.0).values()

    outside = list(all_losses())
    with torch.autocast("cpu", torch.bfloat16):
        inside = list(all_losses())
        assert cosine_logits(regions.bfloat16(), texts, temperature=25.0).dtype == torch.float32
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


def test_cosine_logits_are_temperature_times_cosine_plus_bias():
    """A text of zeros gives the bias."""
    regions, texts = randn(4, 6, seed=1, scale=3), torch.cat([randn(5, 6, seed=2, scale=0.1), torch.zeros(1, 6)])
    for temperature, bias in ((25, torch.tensor(-20.0)), (50, 0.0)):
        expected = [[cosine(r, t, temperature) + bias for t in texts.tolist()] for r in regions.tolist()]
        logits = cosine_logits(regions, texts, temperature=float(temperature), bias=bias)
        close(logits, expected)
        assert (logits[:, 5] == bias).all()


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_positives_by_id_is_membership(data):
    tile_ids = data.draw(st.lists(st.integers(-1, 4), min_size=1, max_size=6))
    text_ids = data.draw(st.lists(st.integers(-1, 4), max_size=7))
    members = [[data.draw(st.booleans()) for _ in tile_ids] for _ in range(data.draw(st.integers(0, 4)))]
    positive = losses.positives_by_id(
        torch.tensor(members, dtype=torch.bool).reshape(-1, len(tile_ids)),
        torch.tensor(tile_ids),
        torch.tensor(text_ids, dtype=torch.int64),
    )
    expected = [
        [t >= 0 and any(m and t == i for m, i in zip(row, tile_ids, strict=True)) for t in text_ids] for row in members
    ]
    assert positive.shape == (len(members), len(text_ids)) and positive.tolist() == expected


# ---- losses of logits: none, one or several positives a row


def slow_matched(row, flags, weight):
    return sum(bce(z, 1) / sum(flags) if flag else weight * bce(z, 0) for z, flag in zip(row, flags, strict=True))


def slow_per_tag(row, flags):
    """Other tags of the same image are negatives of each tag; no tag, no loss."""
    total = sum(bce(z, k == tag) for tag, flag in enumerate(flags) if flag for k, z in enumerate(row))
    return total / max(sum(flags), 1)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.lists(st.floats(-60, 60), min_size=3, max_size=3), min_size=1, max_size=4), st.data())
def test_losses_of_logits(rows, data):
    logits = torch.tensor(rows, dtype=torch.float64)
    flags = [[data.draw(st.booleans()) for _ in range(3)] for _ in rows]
    gt, weight = [data.draw(st.integers(0, 3)) for _ in rows], data.draw(st.sampled_from([0.125, 1.0]))
    positive, pairs = torch.tensor(flags), list(zip(rows, flags, strict=True))
    close(matched_bce(logits, positive, negative_weight=weight), [slow_matched(*pair, weight) for pair in pairs])
    close(losses.multi_hot_bce(logits, positive), [sum(map(bce, *pair)) for pair in pairs])
    close(losses.one_hot_per_tag_bce(logits, positive), [slow_per_tag(*pair) for pair in pairs])
    expected = sum(bce(row[k], k == own) for row, own in zip(rows, gt, strict=True) for k in (0, 2)) / len(rows)
    close(losses.masked_class_bce(logits, torch.tensor(gt), torch.tensor([1.0, 0, 1])), expected)
    close(losses.federated_class_bce(logits, torch.tensor(gt), torch.tensor([3, 2, 0])), expected)  # 3: background
    extreme = torch.tensor([[-1000.0, 1000.0]])
    close(matched_bce(extreme, torch.tensor([[True, False]]), negative_weight=0.5), [1500.0])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.floats(0, 2), st.integers(0, 2**31 - 1))
def test_masked_softmax_ce_is_the_formula(regions, classes, background_weight, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 10 * torch.randn(regions, classes + 1, generator=generator)
    gt_classes = torch.randint(0, classes + 1, (regions,), generator=generator)
    has_boxes = torch.rand(classes, generator=generator) < 0.6
    columns, expected = [k for k, seen in enumerate([*has_boxes.tolist(), True]) if seen], 0.0
    for row, gt in zip(logits.tolist(), gt_classes.tolist(), strict=True):
        if gt in columns:
            weight = background_weight if gt == classes else 1.0
            expected -= weight * log_softmax_of([row[k] for k in columns], columns.index(gt)) / regions
    close(losses.masked_softmax_ce(logits, gt_classes, has_boxes, background_weight=background_weight), expected)


def test_masked_softmax_ce_leaves_classes_without_boxes_alone():
    logits = randn(3, 5).requires_grad_()
    has_boxes = torch.tensor([True, False, True, False])
    losses.masked_softmax_ce(logits, torch.tensor([0, 3, 4]), has_boxes, background_weight=0.6).backward()
    assert logits.grad.isfinite().all() and (logits.grad[:, [1, 3]] == 0).all()
    assert (logits.grad[1] == 0).all()  # a region of a class that does not count
    assert (logits.grad[0, [0, 2, 4]] != 0).all()


def slow_matched_nll(logits, positive):
    """mean_r -Σ_c Y_rc log softmax(S_r)_c / (Σ_c Y_rc + 1e-6)."""
    total = 0.0
    for row, own in zip(logits, positive, strict=True):
        total -= sum(log_softmax_of(row, c) for c, y in enumerate(own) if y) / (sum(own) + 1e-6)
    return total / len(logits)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=7),
    st.lists(st.integers(0, 4), min_size=1, max_size=7),
    st.sampled_from([1.0, 30.0]),
    st.integers(0, 999),
)
def test_matched_contrast_is_the_formula(region_ids, text_ids, scale, seed):
    """Several positives, the same image on many rows, rows and columns without a positive."""
    regions, texts = units(len(region_ids), 5, seed=seed), units(len(text_ids), 5, seed=seed + 1)
    loss = matched_contrast(regions, torch.tensor(region_ids), texts, torch.tensor(text_ids), scale=scale)
    logits = [[cosine(r, t, scale) for t in texts.tolist()] for r in regions.tolist()]
    positive = [[i == j for j in text_ids] for i in region_ids]
    turned = [list(zip(*rows, strict=True)) for rows in (logits, positive)]
    close(loss, (slow_matched_nll(logits, positive) + slow_matched_nll(*turned)) / 2)


# ---- OV-RCNN: every caption beside every image, one pair at a time


def captions_and_tiles(counts, *, dim=6, seed=0):
    """Words and locations of captions and tiles of ``counts`` [(words, locations), …]; the padding is not zero."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for numbers in zip(*counts, strict=True):
        longest = max(1, *numbers) + 1
        real = torch.zeros(len(counts), longest).bool()
        for row, number in zip(real, numbers, strict=True):
            row[torch.randperm(longest, generator=generator)[:number]] = True
        found += [torch.randn(len(counts), longest, dim, generator=generator) * 3, real]
    return found


def replicated(words, is_word, locations, is_location):
    """(i, j, words of caption i, locations of image j) of all pairs, without padding."""
    for i in range(len(words)):
        for j in range(len(words)):
            yield i, j, words[i][is_word[i]], locations[j][is_location[j]]


def chosen(row):
    """Σ softmax(row) · row."""
    return sum(math.exp(log_softmax_of(row, k)) * s for k, s in enumerate(row)) if row else 0.0


@pytest.mark.parametrize("temperature", [10.0, 0.5])
@pytest.mark.parametrize("counts", [[(3, 5), (1, 2), (4, 1)], [(0, 3), (2, 0), (2, 2)]])
def test_aligned_local_is_the_replicated_form(counts, temperature):
    """Captions without words and tiles without locations score 0; padding gets no gradient, which is finite."""
    inputs = [tensor.requires_grad_(tensor.is_floating_point()) for tensor in captions_and_tiles(counts)]
    found = losses.aligned_local(*inputs, temperature=temperature)
    expected = {"words": torch.zeros(3, 3), "cells": torch.zeros(3, 3)}
    for i, j, caption, image in replicated(*inputs):
        s = [[float(e @ v) / temperature for v in image] for e in caption]
        expected["words"][i, j] = sum(map(chosen, s)) / max(len(caption), 1)
        expected["cells"][i, j] = sum(chosen(list(column)) for column in zip(*s, strict=True)) / max(len(image), 1)
    assert found.keys() == expected.keys()
    for kind, matrix in expected.items():
        torch.testing.assert_close(found[kind], matrix, rtol=1e-4, atol=1e-5)
    sum(choices(matrix, torch.arange(3))[0] for matrix in found.values()).backward()
    for vectors, real in (inputs[:2], inputs[2:]):
        assert vectors.grad.isfinite().all() and not vectors.grad[~real].any()
        assert vectors.grad[real].any(dim=1).all() or 0 in sum(counts, ())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4), st.integers(0, 99))
def test_the_mean_of_cosines_is_the_product_of_pooled_unit_vectors(counts, seed):
    words, is_word, locations, is_location = captions_and_tiles(counts, seed=seed)
    unit = LOCAL_METRICS["cosine"]
    (found,) = losses.mean_of_pairs(unit(words), is_word, unit(locations), is_location, temperature=0.01).values()
    for i, j, caption, image in replicated(words, is_word, locations, is_location):
        pairs = torch.cosine_similarity(caption[:, None], image[None], dim=2)
        pooled = normalize(caption, dim=1).mean(0) @ normalize(image, dim=1).mean(0)
        torch.testing.assert_close(found[i, j], pairs.mean() / 0.01, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found[i, j], pooled / 0.01, rtol=1e-4, atol=1e-3)
    assert torch.equal(LOCAL_METRICS["dot"](words), words)


@pytest.mark.parametrize("ids", [[5, 6, 8, 7], [5, 6, 5, 7]])
def test_choices_are_cross_entropies_over_the_columns_and_over_the_rows(ids):
    """Another tile of the same image is no candidate."""
    s = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    image, caption = choices(s, torch.tensor(ids))
    candidates = [[j for j in range(4) if j == i or ids[j] != ids[i]] for i in range(4)]
    rows = [s[i, of].logsumexp(0) - s[i, i] for i, of in enumerate(candidates)]
    columns = [s[of, i].logsumexp(0) - s[i, i] for i, of in enumerate(candidates)]
    torch.testing.assert_close([image, caption], [sum(rows) / 4, sum(columns) / 4])
    (image + caption).backward()
    assert s.grad.isfinite().all() and (s.grad[0, 2] == s.grad[2, 0] == 0) == (ids[0] == ids[2])
    assert [float(loss) for loss in choices(torch.tensor([[3.0]]), torch.tensor([7]))] == [0.0, 0.0]  # no choice
