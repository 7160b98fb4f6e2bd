"""ClipContrast: the two-line InfoNCE, its temperature, and two processes that equal one."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import log_softmax, normalize

from clim.data.tiles import Tiles
from clim.losses import symmetric_info_nce
from clim.methods.clip import ClipContrast
from clim.methods.permuted import PermutedClip

PROGRAM = Path(__file__).parent / "clip_ranks.py"
spec = importlib.util.spec_from_file_location("clip_ranks", PROGRAM)
clip_ranks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(clip_ranks)


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


def test_a_process_with_its_own_rows_among_all():
    _, texts = clip_ranks.pairs(5, seed=2)
    images = normalize(torch.randn(5, clip_ranks.DIM, generator=torch.Generator().manual_seed(3)), dim=-1)
    shares = [
        symmetric_info_nce(images[a:b], texts[a:b], images, texts, scale=7.0, start=a)
        for a, b in ((0, 2), (2, 5))
    ]
    torch.testing.assert_close((2 * shares[0] + 3 * shares[1]) / 5, reference(images, texts, 7.0))


def test_no_pairs_give_a_loss_that_reaches_the_temperature():
    scale = torch.tensor(3.0, requires_grad=True)
    rows = torch.zeros(0, 4, requires_grad=True)
    loss = symmetric_info_nce(rows, rows, rows, rows, scale=scale)
    loss.backward()
    assert loss == 0 and scale.grad == 0


def test_embeddings_are_normalised_and_the_method_is_the_loss():
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


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip_ranks")
    subprocess.run(
        [sys.executable, str(PROGRAM), str(folder)], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
    )  # fmt: skip
    return [torch.load(folder / f"rank{rank}.pth", weights_only=False) for rank in range(2)]


def test_two_processes_equal_one_gradients_included(ranks):
    inputs, captions = clip_ranks.pairs(6, seed=1)
    alone = clip_ranks.loss_and_gradients(inputs, captions)
    for one, *both in zip(alone, *(rank["equal"] for rank in ranks), strict=True):
        torch.testing.assert_close(sum(both) / 2, one)
    # and neither process alone has the whole of it
    assert not torch.allclose(ranks[0]["equal"][1], alone[1])


def test_processes_may_hold_different_numbers_of_pairs(ranks):
    inputs, captions = clip_ranks.pairs(5, seed=1)
    for rank, start in ((0, 0), (1, 1)):
        rows, begin = ranks[rank]["unequal_gathered"]
        assert torch.equal(rows, inputs) and begin == start
    weight = torch.linspace(-1, 1, clip_ranks.WIDTH * clip_ranks.DIM).sin().view(clip_ranks.WIDTH, -1)
    weight.requires_grad_()
    images = normalize(inputs @ weight, dim=-1)
    own = [
        symmetric_info_nce(images[a:b], captions[a:b], images, captions, scale=20.0, start=a)
        for a, b in ((0, 1), (1, 5))
    ]
    mean = sum(own) / 2
    mean.backward()
    torch.testing.assert_close(sum(rank["unequal"][0] for rank in ranks) / 2, mean.detach())
    torch.testing.assert_close(sum(rank["unequal"][1] for rank in ranks) / 2, weight.grad)


def test_the_control_changes_which_text_belongs_to_which_tile_and_nothing_else():
    boxes = torch.arange(20.0).view(5, 4)
    tiles = Tiles(
        boxes=boxes, canvas=torch.tensor([0, 1, 1, 1, 1]), image_ids=torch.arange(5), captions=[["x"]] * 5,
        drawn=list("abcde"), tags=[[]] * 5, groups=torch.zeros(2, 0, 5, dtype=torch.bool),
    )  # fmt: skip
    torch.manual_seed(0)
    regions = PermutedClip(scale=1.0, max_scale=100.0).select(tiles, None)["tile"]
    assert torch.equal(regions.boxes[0], boxes[0])  # a whole picture keeps its text
    assert torch.equal(regions.boxes.sort(0).values, boxes)
    assert (regions.boxes[1:] != boxes[1:]).any(1).all()
    assert torch.equal(regions.canvas, tiles.canvas) and torch.equal(tiles.boxes, boxes)
