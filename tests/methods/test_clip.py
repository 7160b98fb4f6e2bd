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
@given(count=st.integers(1, 6), share=st.integers(0, 6), seed=st.integers(0, 2**31), scale=st.floats(1.0, 100.0))
def test_the_loss_of_all_rows_and_of_each_process_with_its_own_rows_among_all(count, share, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    images, texts = (
        normalize(torch.randn(count, 4, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2)
    )
    loss = symmetric_info_nce(images, texts, images, texts, scale=scale)
    torch.testing.assert_close(loss, reference(images, texts, scale))
    share = min(share, count)
    shares = [
        (b - a) * symmetric_info_nce(images[a:b], texts[a:b], images, texts, scale=scale, start=a)
        for a, b in ((0, share), (share, count))
    ]
    torch.testing.assert_close(sum(shares) / count, loss)


def test_no_pairs_give_a_loss_that_reaches_the_temperature():
    scale = torch.tensor(3.0, requires_grad=True)
    rows = torch.zeros(0, 4, requires_grad=True)
    loss = symmetric_info_nce(rows, rows, rows, rows, scale=scale)
    loss.backward()
    assert loss == 0 and scale.grad == 0


def test_embeddings_are_normalised_and_the_method_is_the_loss(clip_ranks):
    inputs, captions = clip_ranks.pairs(6, seed=4)
    found = clip_ranks.loss_and_gradients(inputs, captions)
    weight, log_scale = clip_ranks.start_weight(), torch.tensor(math.log(20.0), requires_grad=True)
    expected = reference(normalize(inputs @ weight, dim=-1), captions, log_scale.exp())
    expected.backward()
    torch.testing.assert_close(found, (expected.detach(), weight.grad, log_scale.grad))


@pytest.mark.parametrize("value, kept", [(-1.0, 0.0), (2.0, 2.0), (9.0, math.log(100))])
def test_the_temperature_stays_in_its_range(value, kept):
    method = ClipContrast(scale=1.0, max_scale=100.0)
    method.logit_scale.data.fill_(value)
    method.after_update()
    assert method.logit_scale.item() == pytest.approx(kept)


def test_two_processes_equal_one_gradients_included(ranks, clip_ranks):
    alone = clip_ranks.loss_and_gradients(*clip_ranks.pairs(6, seed=1))
    for one, *both in zip(alone, *(rank["equal"] for rank in ranks), strict=True):
        torch.testing.assert_close(sum(both) / 2, one)
    # and neither process alone has the whole of it
    assert not torch.allclose(ranks[0]["equal"][1], alone[1])
