"""ClipContrast: the two-line InfoNCE, its temperature, and two processes that equal one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import log_softmax, normalize

from clim.losses import symmetric_info_nce
from clim.methods.clip import ClipContrast


def reference(images, texts, scale):
    """Pair by pair: each image must find its text among all, and each text its image."""
    logits = scale * images @ texts.T
    terms = [-log_softmax(logits[i], 0)[i] - log_softmax(logits[:, i], 0)[i] for i in range(len(images))]
    return sum(terms) / (2 * len(images))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 6), seed=st.integers(0, 2**31), scale=st.floats(1.0, 100.0))
def test_loss_equals_the_reference(count, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    images, texts = (
        normalize(torch.randn(count, 4, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2)
    )
    loss = symmetric_info_nce(images, texts, images, texts, scale=scale)
    torch.testing.assert_close(loss, reference(images, texts, scale))


def test_a_process_with_its_own_rows_among_all(clip_ranks):
    _, texts = clip_ranks.pairs(5, seed=2)
    images = normalize(torch.randn(5, clip_ranks.DIM, generator=torch.Generator().manual_seed(3)), dim=-1)
    shares = [
        symmetric_info_nce(images[a:b], texts[a:b], images, texts, scale=7.0, start=a) for a, b in ((0, 2), (2, 5))
    ]
    torch.testing.assert_close((2 * shares[0] + 3 * shares[1]) / 5, reference(images, texts, 7.0))


def test_no_pairs_give_a_loss_that_reaches_the_temperature():
    scale = torch.tensor(3.0, requires_grad=True)
    rows = torch.zeros(0, 4, requires_grad=True)
    loss = symmetric_info_nce(rows, rows, rows, rows, scale=scale)
    loss.backward()
    assert loss == 0 and scale.grad == 0


def test_embeddings_are_normalised_and_the_method_is_the_loss(clip_ranks):
    inputs, captions = clip_ranks.pairs(6, seed=4)
    loss, weight_grad, scale_grad = clip_ranks.loss_and_gradients(inputs, captions)
    weight = torch.linspace(-1, 1, clip_ranks.WIDTH * clip_ranks.DIM).sin().view(clip_ranks.WIDTH, -1)
    weight.requires_grad_()
    log_scale = torch.tensor(math.log(20.0), requires_grad=True)
    expected = reference(normalize(inputs @ weight, dim=-1), captions, log_scale.exp())
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(weight_grad, weight.grad)
    torch.testing.assert_close(scale_grad, log_scale.grad)


@pytest.mark.parametrize("value, kept", [(-1.0, 0.0), (2.0, 2.0), (9.0, math.log(100))])
def test_the_temperature_stays_in_its_range(value, kept):
    method = ClipContrast(scale=1.0, max_scale=100.0)
    method.logit_scale.data.fill_(value)
    method.after_update()
    assert method.logit_scale.item() == pytest.approx(kept)


def test_two_processes_equal_one_gradients_included(ranks, clip_ranks):
    inputs, captions = clip_ranks.pairs(6, seed=1)
    alone = clip_ranks.loss_and_gradients(inputs, captions)
    for one, *both in zip(alone, *(rank["equal"] for rank in ranks), strict=True):
        torch.testing.assert_close(sum(both) / 2, one)
    # and neither process alone has the whole of it
    assert not torch.allclose(ranks[0]["equal"][1], alone[1])
