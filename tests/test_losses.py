"""Every loss against loops in plain Python, written from the formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from clim.losses import (
    LOCAL_METRICS,
    aligned_local,
    choices,
    cosine_logits,
    masked_class_bce,
    masked_softmax_ce,
    matched_bce,
    matched_contrast,
    mean_of_pairs,
    multi_hot_bce,
    one_hot_per_tag_bce,
    positives_by_id,
    symmetric_info_nce,
)


def bce(logit, target):
    """-log sigmoid(logit) for target 1, -log sigmoid(-logit) for target 0."""
    signed = -logit if target else logit
    return max(signed, 0.0) + math.log1p(math.exp(-abs(signed)))


def randn(*shape, seed=0, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def close(actual, expected, **kwargs):
    torch.testing.assert_close(
        actual.detach().double(), torch.as_tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5, **kwargs
    )


# ---- cosine_logits


def test_cosine_logits_are_temperature_times_cosine_plus_bias():
    regions, texts = randn(4, 6, seed=1, scale=3), randn(5, 6, seed=2, scale=0.1)
    logits = cosine_logits(regions, texts, temperature=25.0, bias=torch.tensor(-20.0))
    expected = [
        [
            25 * sum(a * b for a, b in zip(r, t, strict=True)) / (math.hypot(*r) * math.hypot(*t)) - 20
            for t in texts.tolist()
        ]
        for r in regions.tolist()
    ]
    assert logits.dtype == torch.float32
    close(logits, expected)


def test_a_zero_text_gives_the_bias():
    texts = torch.cat([randn(1, 6), torch.zeros(1, 6)])
    assert cosine_logits(randn(3, 6), texts, temperature=50.0)[:, 1].tolist() == [0, 0, 0]
    assert cosine_logits(randn(3, 6), texts, temperature=25.0, bias=-20.0)[:, 1].tolist() == [-20, -20, -20]


def test_parallel_and_opposite():
    close(cosine_logits(randn(1, 6), torch.cat([randn(1, 6) * 7, -randn(1, 6)]), temperature=50.0), [[50, -50]])


def test_cosine_logits_stay_in_float32_inside_autocast():
    """At -20, bfloat16 is 1/8 coarse: losses of different logits would fall together."""
    regions, texts = randn(4, 32, seed=1), randn(5, 32, seed=2)
    expected = cosine_logits(regions, texts, temperature=25.0, bias=torch.tensor(-20.0))
    with torch.autocast("cpu", torch.bfloat16):
        logits = cosine_logits(regions.bfloat16(), texts, temperature=25.0, bias=torch.tensor(-20.0))
        exact = cosine_logits(regions, texts, temperature=25.0, bias=torch.tensor(-20.0))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-5)


# ---- positives_by_id


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_positives_by_id_is_membership(data):
    ids = st.integers(0, 4)
    tile_ids = data.draw(st.lists(ids, min_size=1, max_size=6))
    text_ids = data.draw(st.lists(st.integers(-1, 4), max_size=7))
    members = [[data.draw(st.booleans()) for _ in tile_ids] for _ in range(data.draw(st.integers(0, 4)))]
    positive = positives_by_id(
        torch.tensor(members, dtype=torch.bool).reshape(-1, len(tile_ids)),
        torch.tensor(tile_ids),
        torch.tensor(text_ids, dtype=torch.int64),
    )
    expected = [
        [t >= 0 and any(m and t == i for m, i in zip(row, tile_ids, strict=True)) for t in text_ids] for row in members
    ]
    assert positive.shape == (len(members), len(text_ids))
    assert positive.tolist() == expected


def test_the_id_of_an_empty_place_belongs_to_nothing():
    assert not positives_by_id(torch.ones(1, 1, dtype=torch.bool), torch.tensor([-1]), torch.tensor([-1])).any()


# ---- matched_bce


def slow_matched(logits, positive, negative_weight):
    rows = []
    for row, flags in zip(logits.tolist(), positive.tolist(), strict=True):
        count = sum(flags)
        rows.append(
            sum(bce(z, 1) / count if flag else negative_weight * bce(z, 0) for z, flag in zip(row, flags, strict=True))
        )
    return rows


@pytest.mark.parametrize("negative_weight", [0.125, 1.0])
def test_matched_bce_with_none_one_and_several_positives(negative_weight):
    logits = randn(3, 5, scale=8) - 3
    positive = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 0, 1, 0, 1]], dtype=torch.bool)
    close(
        matched_bce(logits, positive, negative_weight=negative_weight), slow_matched(logits, positive, negative_weight)
    )


def test_matched_bce_closed_form():
    """At logit 0 every entry is ln 2: one for all positives together, 1/8 for each negative."""
    positive = torch.tensor([[1, 1, 0, 0, 0]], dtype=torch.bool)
    close(matched_bce(torch.zeros(1, 5), positive, negative_weight=0.125), [math.log(2) * (1 + 3 / 8)])


def test_matched_bce_survives_extreme_logits():
    logits = torch.tensor([[-1000.0, 1000.0]])
    close(matched_bce(logits, torch.tensor([[True, False]]), negative_weight=0.5), [1500.0])


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_matched_bce_of_nothing(shape):
    loss = matched_bce(torch.zeros(shape), torch.zeros(shape, dtype=torch.bool), negative_weight=0.125)
    assert loss.tolist() == [0.0] * shape[0]


# ---- multi_hot_bce and one_hot_per_tag_bce


TARGETS = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 1]])


def test_multi_hot_bce():
    logits = randn(3, 4, scale=6)
    expected = [
        sum(bce(z, t) for z, t in zip(row, target, strict=True))
        for row, target in zip(logits.tolist(), TARGETS.tolist(), strict=True)
    ]
    close(multi_hot_bce(logits, TARGETS), expected)


def test_one_hot_per_tag_bce():
    """Other tags of the same image are negatives of each tag; no tag, no loss."""
    logits = randn(3, 4, scale=6)
    expected = []
    for row, target in zip(logits.tolist(), TARGETS.tolist(), strict=True):
        tags = [k for k, t in enumerate(target) if t]
        total = sum(bce(z, k == tag) for tag in tags for k, z in enumerate(row))
        expected.append(total / len(tags) if tags else 0.0)
    close(one_hot_per_tag_bce(logits, TARGETS), expected)


def test_one_hot_per_tag_has_no_gradient_without_tags():
    logits = randn(3, 4).requires_grad_()
    one_hot_per_tag_bce(logits, TARGETS).sum().backward()
    assert logits.grad[0].tolist() == [0] * 4
    assert (logits.grad[1:] != 0).all()


def test_closed_forms_at_logit_zero():
    close(multi_hot_bce(torch.zeros(3, 4), TARGETS), [4 * math.log(2)] * 3)
    close(one_hot_per_tag_bce(torch.zeros(3, 4), TARGETS), [0, 4 * math.log(2), 4 * math.log(2)])


@pytest.mark.parametrize("loss", [multi_hot_bce, one_hot_per_tag_bce])
def test_tag_losses_of_no_region(loss):
    assert loss(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


# ---- masked_class_bce


def slow_class_loss(logits, gt_classes, mask):
    total = 0.0
    for row, gt in zip(logits.tolist(), gt_classes.tolist(), strict=True):
        for k, z in enumerate(row):
            total += mask[k] * bce(z, k == gt)
    return total / len(logits)


def test_class_loss_is_masked_and_divided_by_the_number_of_rois():
    logits = randn(6, 4, scale=5)
    gt_classes = torch.tensor([0, 4, 3, 4, 2, 1])  # 4: background
    mask = [1.0, 0.0, 1.0, 1.0]
    close(masked_class_bce(logits, gt_classes, torch.tensor(mask)), slow_class_loss(logits, gt_classes, mask))


def test_class_loss_closed_form():
    """ln 2 for each of the base columns, of whatever class the regions are: no 1 / K."""
    loss = masked_class_bce(torch.zeros(7, 80), torch.arange(7), torch.cat([torch.ones(48), torch.zeros(32)]))
    close(loss, 48 * math.log(2))


def test_masked_classes_get_no_gradient():
    logits = randn(5, 4).requires_grad_()
    masked_class_bce(logits, torch.tensor([0, 1, 2, 3, 4]), torch.tensor([1.0, 0, 1, 0])).backward()
    assert (logits.grad[:, [1, 3]] == 0).all()
    assert (logits.grad[:, [0, 2]] != 0).all()


def test_class_loss_of_no_roi_is_a_zero_with_a_graph():
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = masked_class_bce(logits, torch.zeros(0, dtype=torch.int64), torch.ones(4))
    loss.backward()
    assert loss.item() == 0 and logits.grad.shape == (0, 4)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.floats(-60, 60), min_size=3, max_size=3), min_size=1, max_size=4), st.data())
def test_all_losses_on_arbitrary_logits(rows, data):
    logits = torch.tensor(rows, dtype=torch.float64)
    flags = [[data.draw(st.booleans()) for _ in range(3)] for _ in rows]
    positive = torch.tensor(flags)
    gt = torch.tensor([data.draw(st.integers(0, 3)) for _ in rows])
    close(matched_bce(logits, positive, negative_weight=0.125), slow_matched(logits, positive, 0.125))
    close(masked_class_bce(logits, gt, torch.tensor([1.0, 0, 1])), slow_class_loss(logits, gt, [1, 0, 1]))
    expected = [
        sum(bce(z, t) for z, t in zip(row, target, strict=True)) for row, target in zip(rows, flags, strict=True)
    ]
    close(multi_hot_bce(logits, positive), expected)


# ---- masked_softmax_ce


def slow_softmax_ce(logits, gt_classes, has_boxes, background_weight):
    total = 0.0
    for row, gt in zip(logits.tolist(), gt_classes.tolist(), strict=True):
        columns = [k for k, seen in enumerate([*has_boxes.tolist(), True]) if seen]
        if gt not in columns:
            continue
        top = max(row[k] for k in columns)
        log_sum = top + math.log(sum(math.exp(row[k] - top) for k in columns))
        weight = background_weight if gt == len(has_boxes) else 1.0
        total += weight * (log_sum - row[gt])
    return total / len(logits)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.floats(0, 2), st.integers(0, 2**31 - 1))
def test_masked_softmax_ce_is_the_formula(regions, classes, background_weight, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 10 * torch.randn(regions, classes + 1, generator=generator)
    gt_classes = torch.randint(0, classes + 1, (regions,), generator=generator)
    has_boxes = torch.rand(classes, generator=generator) < 0.6
    loss = masked_softmax_ce(logits, gt_classes, has_boxes, background_weight=background_weight)
    close(loss, slow_softmax_ce(logits, gt_classes, has_boxes, background_weight))


def test_masked_softmax_ce_divides_by_regions_not_by_weights():
    """One base and three background regions, all logits equal: (1 + 3 · .6) · log 3 / 4, column 1 masked."""
    has_boxes = torch.tensor([True, False, True])
    loss = masked_softmax_ce(torch.zeros(4, 4), torch.tensor([0, 3, 3, 3]), has_boxes, background_weight=0.6)
    close(loss, 2.8 * math.log(3) / 4)


def test_masked_softmax_ce_leaves_classes_without_boxes_alone():
    logits = randn(3, 5).requires_grad_()
    has_boxes = torch.tensor([True, False, True, False])
    masked_softmax_ce(logits, torch.tensor([0, 3, 4]), has_boxes, background_weight=0.6).backward()
    assert logits.grad.isfinite().all() and (logits.grad[:, [1, 3]] == 0).all()
    assert (logits.grad[1] == 0).all()  # a region of a class that does not count
    assert (logits.grad[0, [0, 2, 4]] != 0).all()


def test_masked_softmax_ce_of_nothing_keeps_the_graph():
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = masked_softmax_ce(
        logits, torch.zeros(0, dtype=torch.int64), torch.tensor([True, True]), background_weight=0.6
    )
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None


# ---- matched_contrast


def slow_matched_nll(logits, positive):
    """mean_r -Σ_c Y_rc log softmax(S_r)_c / (Σ_c Y_rc + 1e-6)."""
    total = 0.0
    for row, own in zip(logits, positive, strict=True):
        top = max(row)
        log_sum = top + math.log(sum(math.exp(s - top) for s in row))
        total += sum(log_sum - s for s, y in zip(row, own, strict=True) if y) / (sum(own) + 1e-6)
    return total / len(logits)


def slow_matched_contrast(regions, region_ids, texts, text_ids, scale):
    logits = [[scale * sum(a * b for a, b in zip(r, t, strict=True)) for t in texts.tolist()] for r in regions.tolist()]
    positive = [[i == j for j in text_ids.tolist()] for i in region_ids.tolist()]
    turned = (
        [list(column) for column in zip(*logits, strict=True)],
        [list(column) for column in zip(*positive, strict=True)],
    )
    return (slow_matched_nll(logits, positive) + slow_matched_nll(*turned)) / 2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=7),
    st.lists(st.integers(0, 4), min_size=1, max_size=7),
    st.sampled_from([1.0, 30.0]),
    st.integers(0, 999),
)
def test_matched_contrast_is_the_formula(region_ids, text_ids, scale, seed):
    """Several positives, the same image on many rows, rows and columns without a positive."""
    regions = torch.nn.functional.normalize(randn(len(region_ids), 5, seed=seed), dim=1)
    texts = torch.nn.functional.normalize(randn(len(text_ids), 5, seed=seed + 1), dim=1)
    region_ids, text_ids = torch.tensor(region_ids), torch.tensor(text_ids)
    loss = matched_contrast(regions, region_ids, texts, text_ids, scale=scale)
    close(loss, slow_matched_contrast(regions, region_ids, texts, text_ids, scale))


def test_matched_contrast_with_one_positive_each_is_info_nce():
    regions = torch.nn.functional.normalize(randn(4, 6, seed=1), dim=1)
    texts = torch.nn.functional.normalize(randn(4, 6, seed=2), dim=1)
    ids = torch.tensor([5, 1, 8, 0])
    loss = matched_contrast(regions, ids, texts, ids, scale=20.0)
    close(loss, symmetric_info_nce(regions, texts, regions, texts, scale=20.0).item())


def test_rows_of_the_queue_are_anchors_and_rows_without_positive_count_as_zero():
    """Two rows alike and two texts alike: log 2 for the one positive; the lone row halves the mean, both ways."""
    rows = torch.eye(2)[:1].expand(2, 2)
    loss = matched_contrast(rows, torch.tensor([1, 2]), rows, torch.tensor([1, 3]), scale=30.0)
    close(loss, math.log(2) / 2)


def test_matched_contrast_stays_in_float32_inside_autocast():
    rows = torch.nn.functional.normalize(randn(6, 32, seed=1), dim=1)
    ids = torch.arange(6)
    expected = matched_contrast(rows, ids, rows, ids, scale=30.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(matched_contrast(rows, ids, rows, ids, scale=30.0), expected)


@pytest.mark.parametrize("regions, texts", [(0, 0), (0, 2), (2, 0)])
def test_matched_contrast_of_nothing_keeps_the_graph(regions, texts):
    rows = torch.zeros(regions, 3, requires_grad=True)
    loss = matched_contrast(rows, torch.arange(regions), torch.zeros(texts, 3), torch.arange(texts), scale=30.0)
    loss.backward()
    assert loss.item() == 0 and rows.grad is not None


# ---- OV-RCNN: every caption beside every image, one pair at a time


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
    """Both sides repeated so that row i · B + j holds caption i and image j, without padding."""
    count = len(words)
    for i in range(count):
        for j in range(count):
            yield i, j, words[i][is_word[i]], cells[j][is_cell[j]]


def slow_aligned(inputs, temperature):
    count = len(inputs[0])
    of_words, of_cells = torch.zeros(count, count), torch.zeros(count, count)
    for i, j, caption, image in replicated(*inputs):
        s = [[float(e @ v) / temperature for v in image] for e in caption]
        for row in s:
            weights = [math.exp(x - max(row)) for x in row]
            of_words[i, j] += (
                sum(w * x for w, x in zip(weights, row, strict=True)) / max(sum(weights), 1e-9) / len(s) if row else 0
            )
        for column in zip(*s, strict=True):
            weights = [math.exp(x - max(column)) for x in column]
            of_cells[i, j] += sum(w * x for w, x in zip(weights, column, strict=True)) / sum(weights) / len(image)
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
        choices(m, torch.arange(2))[0] for m in aligned_local(words, is_word, cells, is_cell, temperature=1.0).values()
    ).backward()
    assert not words.grad[~is_word].any() and not cells.grad[~is_cell].any()
    assert words.grad[is_word].any(dim=1).all() and cells.grad[is_cell].any(dim=1).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4), st.integers(0, 99))
def test_the_mean_of_cosines_is_the_product_of_pooled_unit_vectors(counts, seed):
    words, is_word, cells, is_cell = batch(counts, seed=seed)
    cosine = LOCAL_METRICS["cosine"]
    (found,) = mean_of_pairs(cosine(words), is_word, cosine(cells), is_cell, temperature=0.01).values()
    for i, j, caption, image in replicated(words, is_word, cells, is_cell):
        pairs = torch.cosine_similarity(caption[:, None], image[None], dim=2)
        pooled = normalize(caption, dim=1).mean(0) @ normalize(image, dim=1).mean(0)
        torch.testing.assert_close(found[i, j], pairs.mean() / 0.01, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found[i, j], pooled / 0.01, rtol=1e-4, atol=1e-3)


def test_dot_is_left_as_it_is():
    vectors = torch.randn(2, 3, 4)
    assert torch.equal(LOCAL_METRICS["dot"](vectors), vectors)


def test_choices_are_cross_entropies_over_the_columns_and_over_the_rows():
    s = [[1.0, 0.5, -1.0], [0.0, 2.0, 0.3], [0.7, -0.2, 0.1]]
    image = [-s[i][i] + math.log(sum(math.exp(x) for x in s[i])) for i in range(3)]
    caption = [-s[i][i] + math.log(sum(math.exp(row[i]) for row in s)) for i in range(3)]
    found = choices(torch.tensor(s), torch.arange(3))
    assert [float(loss) for loss in found] == pytest.approx([sum(image) / 3, sum(caption) / 3])


def test_the_same_image_again_is_no_candidate():
    s = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    image, caption = choices(s, torch.tensor([5, 6, 5, 7]))
    candidates = [[0, 1, 3], [0, 1, 2, 3], [1, 2, 3], [0, 1, 2, 3]]  # the others of id 5 are left out
    rows = [s[i, of].logsumexp(0) - s[i, i] for i, of in enumerate(candidates)]
    columns = [s[of, i].logsumexp(0) - s[i, i] for i, of in enumerate(candidates)]
    torch.testing.assert_close([image, caption], [sum(rows) / 4, sum(columns) / 4])
    (image + caption).backward()
    assert s.grad.isfinite().all() and s.grad[0, 2] == s.grad[2, 0] == 0


def test_one_pair_has_nothing_to_choose():
    assert [float(loss) for loss in choices(torch.tensor([[3.0]]), torch.tensor([7]))] == [0.0, 0.0]


def test_scores_are_float32_inside_autocast():
    inputs = batch([(3, 5), (1, 2)])
    with torch.autocast("cpu", torch.bfloat16):
        inside = aligned_local(*inputs, temperature=10.0) | mean_of_pairs(*inputs, temperature=10.0)
    outside = aligned_local(*inputs, temperature=10.0) | mean_of_pairs(*inputs, temperature=10.0)
    assert all(torch.equal(inside[kind], matrix) for kind, matrix in outside.items())
