"""Bags of proposals: filters against loops, tiles, orders, and where boxes lie in waves."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.data.tiles import Tiles
from clim.methods.bags import BagRules, box_waves, reading_orders, tile_bags, worth_reading

RULES = BagRules(min_iof=0.3, topk=128, ratio=(0.25, 4.0), min_area=0.01, min_objectness=0.85, max_overlap=0.2, size=10)
SURE = 5.0  # logit of an objectness of .993
TILE = [10.0, 20.0, 110.0, 120.0]


def tiles_of(boxes, canvas=None):
    count = len(boxes)
    return Tiles(
        boxes=torch.tensor(boxes), canvas=torch.tensor(canvas or [0] * count), image_ids=torch.arange(count),
        captions=[["x"]] * count, drawn=["x"] * count, tags=[[]] * count,
    )  # fmt: skip


def proposals_of(*canvases, logits=None):
    """One Instances a canvas, best first."""
    found = []
    for boxes in canvases:
        scores = logits if logits is not None else [SURE - 0.001 * i for i in range(len(boxes))]
        found.append(
            Instances(
                (200, 200),
                proposal_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
                objectness_logits=torch.tensor(scores, dtype=torch.float32),
            )
        )
    return found


def kept(boxes, logits=None, rules=RULES, tile=TILE):
    logits = [SURE - 0.001 * i for i in range(len(boxes))] if logits is None else logits
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return worth_reading(boxes, torch.tensor(logits), torch.tensor(tile), rules).tolist()


# ---- worth_reading


def iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return inter / (sum(areas) - inter) if inter else 0.0


def slow_kept(boxes, logits, tile, rules):
    passed = []
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        ratio = (x1 - x0) / (y1 - y0)
        part = (x1 - x0) * (y1 - y0) / ((tile[2] - tile[0]) * (tile[3] - tile[1]))
        sure = 1 / (1 + math.exp(-logits[i])) > rules.min_objectness
        if rules.ratio[0] < ratio < rules.ratio[1] and part > rules.min_area and sure:
            passed.append(i)
    chosen = []
    for i in passed or [0]:
        if all(iou(boxes[i], boxes[j]) <= rules.max_overlap for j in chosen):
            chosen.append(i)
    return chosen


@st.composite
def boxes_inside(draw):
    """Corners on a grid of 7 px: shares are ratios of small numbers, and no threshold of the test is one."""
    x0, y0 = draw(st.integers(0, 12)), draw(st.integers(0, 12))
    w, h = draw(st.integers(1, 13 - x0)), draw(st.integers(1, 13 - y0))
    return [10.0 + 7 * x0, 20.0 + 7 * y0, 10.0 + 7 * (x0 + w), 20.0 + 7 * (y0 + h)]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(boxes_inside(), min_size=1, max_size=9),
    st.lists(st.floats(-1, 6), min_size=9, max_size=9, unique=True),
    st.sampled_from([0.2137, 0.5521]),
)
def test_the_rules_against_a_loop(boxes, logits, overlap):
    logits = sorted(torch.tensor(logits[: len(boxes)]).tolist(), reverse=True)
    rules = replace(RULES, max_overlap=overlap, min_area=0.0101)
    assert kept(boxes, logits, rules) == slow_kept(boxes, logits, TILE, rules)


def test_objectness_is_a_probability():
    """Detectron2 stores logits: sigmoid(1.7) = .8455 is not enough, sigmoid(1.8) = .858 is."""
    boxes = [[20, 30, 50, 60], [60, 70, 90, 100]]
    assert kept(boxes, [1.8, 1.7]) == [0]
    assert kept(boxes, [1.8, 1.8]) == [0, 1]


@pytest.mark.parametrize("box", [[20, 30, 30, 70], [20, 30, 60, 40], [20, 30, 30, 40]])
def test_bounds_of_shape_and_size_are_not_enough_themselves(box):
    """1 : 4, 4 : 1 and a hundredth of the tile are out; a little less extreme they are in."""
    best = [[60, 70, 100, 110]]
    assert kept([*best, box]) == [0]
    assert kept([*best, [box[0], box[1], box[2] + 1, box[3] + 1]]) == [0, 1]


def test_where_none_passes_the_best_alone_stays():
    assert kept([[20, 30, 50, 60], [60, 70, 90, 100]], [-1.0, -2.0]) == [0]
    assert kept([[20, 30, 21, 90], [60, 70, 90, 100]], [SURE, -2.0]) == [0]
    assert kept([]) == []


# ---- tile_bags


def test_each_tile_has_its_own_proposals_clipped_to_it():
    left, right = [0.0, 0.0, 50.0, 50.0], [50.0, 0.0, 100.0, 50.0]
    proposals = proposals_of([[10, 10, 30, 30], [40, 10, 80, 40], [60, 5, 75, 20], [20, 30, 60, 50]])
    bags = tile_bags(tiles_of([left, right]), proposals, replace(RULES, max_overlap=0.9))
    by_tile = {t: sorted(bags.boxes[bags.members[:, t]].tolist()) for t in range(2)}
    assert by_tile == {0: [[10, 10, 30, 30], [20, 30, 50, 50]], 1: [[50, 10, 80, 40], [60, 5, 75, 20]]}
    assert (bags.members.sum(1) == 1).all() and bags.canvas.tolist() == [0] * 4


def test_a_single_picture_is_one_tile_with_all_proposals():
    boxes = [[40.0 * x, 40.0 * y, 40.0 * x + 30, 40.0 * y + 30] for x in range(3) for y in range(3)]
    bags = tile_bags(tiles_of([[0.0, 0.0, 200.0, 200.0]]), proposals_of(boxes), RULES)
    assert sorted(bags.boxes.tolist()) == sorted(boxes)


def test_canvases_do_not_mix_and_tiles_without_proposals_have_none():
    tiles = tiles_of([[0.0, 0, 90, 90], [0.0, 0, 90, 90], [90.0, 0, 180, 90], [0.0, 0, 90, 90]], [2, 0, 0, 1])
    proposals = proposals_of([[100, 10, 140, 50]], [], [[5, 5, 50, 50]])
    bags = tile_bags(tiles, proposals, RULES)
    assert bags.boxes.tolist() == [[100, 10, 140, 50], [5, 5, 50, 50]]
    assert bags.members.tolist() == [[False, False, True, False], [True, False, False, False]]
    assert bags.canvas.tolist() == [0, 2]


def test_no_proposal_at_all():
    bags = tile_bags(tiles_of([TILE, TILE], [0, 1]), proposals_of([], []), RULES)
    assert bags.boxes.shape == (0, 4) and bags.canvas.shape == (0,) and bags.members.shape == (0, 2)


def test_only_the_best_by_score_are_looked_at_and_at_most_size_are_drawn():
    boxes = [[20.0 * i, 0, 20.0 * i + 15, 15] for i in range(10)]
    tile = tiles_of([[0.0, 0.0, 200.0, 100.0]])
    looked = tile_bags(tile, proposals_of(boxes), replace(RULES, topk=4))
    assert sorted(looked.boxes.tolist()) == boxes[:4]
    torch.manual_seed(0)
    counts = Counter()
    for _ in range(600):
        drawn = tile_bags(tile, proposals_of(boxes), replace(RULES, size=3)).boxes[:, 0].tolist()
        assert len(set(drawn)) == 3
        counts.update(drawn)
    # 180 of each expected; 4 standard deviations of a binomial(600, .3) are 45
    assert len(counts) == 10 and all(135 < n < 225 for n in counts.values())


def test_draws_come_from_torchs_random_state_and_need_no_gradient():
    boxes = [[20.0 * i, 0, 20.0 * i + 15, 15] for i in range(10)]
    proposals, tiles = proposals_of(boxes), tiles_of([[0.0, 0.0, 200.0, 100.0]])
    proposals[0].proposal_boxes.tensor.requires_grad_()
    torch.manual_seed(3)
    first = tile_bags(tiles, proposals, replace(RULES, size=4))
    torch.manual_seed(3)
    second = tile_bags(tiles, proposals, replace(RULES, size=4))
    assert torch.equal(first.boxes, second.boxes) and not first.boxes.requires_grad


# ---- reading_orders


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=6, unique=True), st.integers(1, 8), st.integers(0, 99))
def test_orders_are_different_permutations(members, count, seed):
    torch.manual_seed(seed)
    orders = [tuple(order.tolist()) for order in reading_orders(members, count=count)]
    assert len(orders) == len(set(orders)) == min(count, math.factorial(len(members)))
    assert all(sorted(order) == sorted(members) for order in orders)


def test_every_order_is_as_likely():
    torch.manual_seed(0)
    counts = Counter()
    for _ in range(1500):
        counts.update(tuple(o.tolist()) for o in reading_orders([4, 7, 9], count=2))
    assert set(counts) == set(itertools.permutations([4, 7, 9]))
    assert all(abs(n - 500) < 4 * (1500 * 2 / 9) ** 0.5 for n in counts.values())


# ---- box_waves


def slow_waves(box, frame, count, base):
    width, height = frame[2] - frame[0], frame[3] - frame[1]
    place = [
        ((box[0] + box[2]) / 2 - frame[0]) / width,
        ((box[1] + box[3]) / 2 - frame[1]) / height,
        (box[2] - box[0]) / width,
        (box[3] - box[1]) / height,
    ]
    waves = []
    for x in place:
        for i in range(count):
            angle = 2 * math.pi * x * base ** (i // 2 - count / 4)
            waves.append(math.sin(angle) if i % 2 == 0 else math.cos(angle))
    return waves


@pytest.mark.parametrize("count, base", [(8, 1.2), (128, 1.2), (4, 2.0)])
def test_waves_against_a_loop(count, base):
    boxes = torch.tensor([[12.0, 30.0, 60.0, 44.0], [10.0, 20.0, 110.0, 70.0], [10.0, 20.0, 10.0, 20.0]])
    frames = torch.tensor([TILE, [10.0, 20.0, 110.0, 70.0], TILE])
    waves = box_waves(boxes, frames, count=count, base=base)
    assert waves.shape == (3, 4 * count)
    expected = [slow_waves(b, f, count, base) for b, f in zip(boxes.tolist(), frames.tolist(), strict=True)]
    # angles reach 2π · 1.2³¹ ≈ 1,800, of which float32 keeps four decimals
    torch.testing.assert_close(waves, torch.tensor(expected), rtol=0, atol=2e-3)


def test_waves_depend_on_the_place_inside_the_frame_alone():
    box, frame = torch.tensor([[12.0, 30, 60, 44]]), torch.tensor([TILE])
    moved = box_waves(box * 2 + 64, frame * 2 + 64, count=32, base=1.2)
    torch.testing.assert_close(moved, box_waves(box, frame, count=32, base=1.2), rtol=0, atol=1e-4)


def test_no_box_has_no_waves():
    assert box_waves(torch.zeros(0, 4), torch.zeros(0, 4), count=8, base=1.2).shape == (0, 32)
