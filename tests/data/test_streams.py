"""Which samples an iteration holds: complete epochs, disjoint ranks, exact resumption."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.data.streams import alternating_batches, batches, draws, joint_batches


def take(stream, count):
    return list(islice(stream, count))


# ---- draws


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 13), st.integers(1, 5), st.integers(0, 99))
def test_the_ranks_together_draw_every_index_once_an_epoch(length, world, seed):
    epochs = 3
    ranks = [draws(length, seed=seed, stream=1, rank=r, world=world) for r in range(world)]
    per_rank = -(-epochs * length // world)
    together = [draw for group in zip(*(take(r, per_rank) for r in ranks), strict=True) for draw in group]
    together = together[: epochs * length]  # taken in turns, so the first epochs * length are whole epochs
    assert [epoch for epoch, _ in together] == [e for e in range(epochs) for _ in range(length)]
    for epoch in range(epochs):
        assert sorted(i for e, i in together if e == epoch) == list(range(length))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 13), st.integers(1, 5))
def test_the_world_only_deals_out_one_stream(length, world):
    whole = take(draws(length, seed=3, stream=2), 4 * length)
    ranks = [take(draws(length, seed=3, stream=2, rank=r, world=world), 4 * length) for r in range(world)]
    for position, draw in enumerate(whole):
        assert ranks[position % world][position // world] == draw


def test_epochs_sources_and_seeds_are_shuffled_differently():
    def order(seed, stream, epoch):
        return tuple(i for e, i in take(draws(50, seed=seed, stream=stream), 150) if e == epoch)

    orders = {order(seed, stream, epoch) for seed in (0, 1) for stream in (0, 1, 2) for epoch in (0, 1, 2)}
    assert len(orders) == 18
    assert order(0, 0, 0) == order(0, 0, 0)


# ---- batches


def test_batches_are_consecutive_draws():
    drawn = take(draws(7, seed=0, stream=0), 12)
    assert take(batches(iter(drawn), 3), 4) == [drawn[i : i + 3] for i in range(0, 12, 3)]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=15), st.integers(1, 4), st.integers(0, 9))
def test_aspect_groups_hold_one_kind_and_lose_nothing(landscape, size, seed):
    drawn = take(draws(len(landscape), seed=seed, stream=0), 60)
    grouped = list(batches(iter(drawn), size, landscape=landscape))
    for batch in grouped:
        assert len(batch) == size
        assert len({landscape[i] for _, i in batch}) == 1
    kept = Counter(draw for batch in grouped for draw in batch)
    waiting = Counter(drawn) - kept
    assert not kept - Counter(drawn)
    for kind in (True, False):  # only an incomplete batch of each kind is still waiting
        assert sum(n for (_, i), n in waiting.items() if landscape[i] is kind) < size
    for kind in (True, False):  # in the order drawn
        flat = [draw for batch in grouped for draw in batch if landscape[draw[1]] is kind]
        assert flat == [draw for draw in drawn if landscape[draw[1]] is kind][: len(flat)]


def test_a_batch_given_away_is_not_changed_later():
    stream = batches(iter([(0, i) for i in range(4)]), 2)
    first = next(stream)
    next(stream)
    assert first == [(0, 0), (0, 1)]


# ---- iterations


def sources(rank=0, world=1):
    landscape = np.random.default_rng(0).random(11) < 0.5
    return {
        "detection": batches(draws(11, seed=5, stream=0, rank=rank, world=world), 2, landscape=landscape),
        "captions": batches(draws(7, seed=5, stream=1, rank=rank, world=world), 3),
    }


def test_a_joint_iteration_holds_every_source():
    for keys in take(joint_batches(sources()), 20):
        assert Counter(name for name, _, _ in keys) == {"detection": 2, "captions": 3}


def test_joint_sources_go_through_their_own_streams():
    keys = [key for batch in take(joint_batches(sources()), 20) for key in batch]
    for name in ("detection", "captions"):
        own = [draw for batch in take(sources()[name], 20) for draw in batch]
        assert [(epoch, i) for n, epoch, i in keys if n == name] == own


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("start", [0, 1, 6, 17])
def test_a_resumed_joint_stream_continues(start, rank):
    whole = take(joint_batches(sources(rank, 2)), 25)
    assert take(joint_batches(sources(rank, 2), start=start), 25 - start) == whole[start:]


def alternating(rank=0, world=1, start=0, weights=(1, 1), seed=5):
    return alternating_batches(sources(rank, world), weights=weights, seed=seed, start=start)


def test_an_alternating_iteration_holds_one_source_and_skips_nothing():
    taken = take(alternating(), 60)
    assert all(len({name for name, _, _ in keys}) == 1 for keys in taken)
    for name in ("detection", "captions"):
        own = [[(e, i) for _, e, i in keys] for keys in taken if keys[0][0] == name]
        assert len(own) > 15
        assert own == take(sources()[name], len(own))


def test_all_ranks_alternate_together():
    names = [[keys[0][0] for keys in take(alternating(rank, 3), 50)] for rank in range(3)]
    assert names[0] == names[1] == names[2]
    assert len(set(names[0])) == 2


def test_alternation_follows_weights_and_seed():
    share = sum(keys[0][0] == "captions" for keys in take(alternating(weights=(1, 4)), 1000)) / 1000
    assert abs(share - 0.8) < 0.05
    assert {keys[0][0] for keys in take(alternating(weights=(1, 0)), 50)} == {"detection"}
    assert [k[0][0] for k in take(alternating(seed=1), 50)] != [k[0][0] for k in take(alternating(seed=2), 50)]


@pytest.mark.parametrize("start", [0, 1, 9, 30])
def test_a_resumed_alternating_stream_continues(start):
    whole = take(alternating(1, 2), 40)
    assert take(alternating(1, 2, start=start), 40 - start) == whole[start:]
