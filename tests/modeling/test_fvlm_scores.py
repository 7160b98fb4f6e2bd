"""F-VLM's fused scores against a loop in plain Python, and what follows from the formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.modeling.fvlm import fused_log_scores, log_odds

ALPHA, BETA = 0.1, 0.8


def softmax(row):
    top = max(row)
    powers = [math.exp(v - top) for v in row]
    return [p / sum(powers) for p in powers]


def slow(detection, vlm, has_boxes):
    """Σ-free: one region and one class after the other."""
    rows = []
    for a, b in zip(detection.tolist(), vlm.tolist(), strict=True):
        p, q = softmax(a), softmax(b)
        weights = [ALPHA if seen else BETA for seen in has_boxes.tolist()] + [ALPHA]
        rows.append([p[k] ** (1 - w) * q[k] ** w for k, w in enumerate(weights)])
    return torch.tensor(rows, dtype=torch.float64).reshape(detection.shape)


def fuse(detection, vlm, has_boxes, alpha=ALPHA, beta=BETA):
    return fused_log_scores(detection, vlm, has_boxes, alpha=alpha, beta=beta)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5), st.integers(1, 6), st.integers(0, 2**31 - 1))
def test_the_geometric_mean_of_two_softmaxes(regions, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    detection, vlm = (20 * torch.randn(regions, classes + 1, generator=generator) for _ in range(2))
    has_boxes = torch.rand(classes, generator=generator) < 0.5
    fused = fuse(detection, vlm, has_boxes)
    assert fused.shape == (regions, classes + 1)
    torch.testing.assert_close(fused.exp(), slow(detection, vlm, has_boxes), rtol=1e-9, atol=0)


def test_a_row_by_hand():
    """p = (.6, .3, .1), q = (.2, .7, .1): class 0 had boxes, class 1 had not, column 2 is the background."""
    detection, vlm = torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.tensor([[0.2, 0.7, 0.1]]).log()
    (scores,) = fuse(detection, vlm, torch.tensor([True, False])).exp().tolist()
    expected = [0.6**0.9 * 0.2**0.1, 0.3**0.2 * 0.7**0.8, 0.1]
    assert scores == pytest.approx(expected, rel=1e-6)
    assert sum(scores) != pytest.approx(1, abs=0.05)  # nothing is renormalised


def test_one_side_alone():
    detection, vlm = torch.randn(4, 6), torch.randn(4, 6)
    seen = torch.tensor([True, False, True, True, False])
    torch.testing.assert_close(fuse(detection, vlm, seen, 0, 0).exp().float(), detection.softmax(1))
    torch.testing.assert_close(fuse(detection, vlm, seen, 1, 1).exp().float(), vlm.softmax(1))


def test_classes_without_boxes_compete_in_the_detectors_softmax():
    detection, vlm = torch.zeros(1, 3), torch.zeros(1, 3)
    before = fuse(detection, vlm, torch.tensor([True, False]))[0, 0]
    detection[0, 1] = 3.0
    assert fuse(detection, vlm, torch.tensor([True, False]))[0, 0] < before - 1


def test_sure_heads_do_not_tie():
    """In float32 both rows' softmax is exactly 1: they would rank by chance."""
    detection = torch.tensor([[20.0, 0.0, 0.0], [25.0, 0.0, 0.0]])
    assert (detection.softmax(1)[:, 0] == 1).all()
    odds = log_odds(fuse(detection, detection, torch.tensor([True, True])))[:, 0].float()
    assert odds[0] < odds[1]
    assert odds.sigmoid().tolist() == [1, 1]


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-12, 1 - 1e-9))
def test_log_odds_are_the_inverse_of_sigmoid(score):
    odds = log_odds(torch.tensor([math.log(score)], dtype=torch.float64))
    assert odds.sigmoid().item() == pytest.approx(score, rel=1e-12)


def test_log_odds_stay_finite():
    odds = log_odds(torch.tensor([0.0, -1e-300, -200.0], dtype=torch.float64))
    assert odds.isfinite().all() and odds[0] >= odds[1] > 600 and odds[2].item() == pytest.approx(-200)
