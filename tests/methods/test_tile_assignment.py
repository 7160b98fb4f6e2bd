"""Proposals and their tiles, counted by hand; the largest proposal of each tile, against a brute-force loop."""

import math

import torch
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.data.mosaic import grid_cells
from clim.methods import Regions
from clim.methods.tile_assignment import assign_to_tiles, last_and_largest, max_size_boxes

LEFT, RIGHT, TILE = [0.0, 0, 50, 50], [50.0, 0, 100, 50], [10, 10, 90, 60]


def assign(tiles, proposals, *, min_iof=0.3, topk=128):
    """(assigned, inside) as lists."""
    found = assign_to_tiles(torch.tensor(tiles), Boxes(torch.tensor(proposals)), min_iof=min_iof, topk=topk)
    return [part.tolist() for part in found]


def test_a_proposal_is_assigned_to_the_tile_that_holds_most_of_it():
    proposals = [
        [10.0, 0, 20, 10],  # inside the left one
        [40, 0, 80, 10],  # a quarter in the left one
        [20, 0, 60, 10],  # a quarter in the right one
        [0, 200, 10, 210],  # in none
    ]
    assigned, inside = assign([LEFT, RIGHT], proposals)
    assert assigned == [[True, False], [False, True], [True, False], [False, False]]
    assert inside == [[100, 0], [100, 300], [300, 100], [0, 0]]
    for min_iof, expected in ((0.249, True), (0.25, False)):  # more than the threshold
        assert assign([LEFT], [[40.0, 0, 80, 10]], min_iof=min_iof) == [[[expected]], [[100]]]
    assert assign([LEFT], [[10.0, 10, 10, 40]], min_iof=0.0) == [[[False]], [[0]]]  # no area, no tile


coordinate = st.integers(-8, 48)
box = st.tuples(coordinate, coordinate, st.integers(1, 57), st.integers(1, 57)).map(
    lambda b: [b[0], b[1], min(b[0] + b[2], 49), min(b[1] + b[3], 49)]
)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.lists(box, max_size=8)), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    st.sampled_from([1, 2, 3, 4, None]),
)
def test_against_brute_force(tiles_of, proposals_of, by_loops, canvases, min_iof, topk):
    tile_boxes, canvas = [], []
    for i, (n, _) in enumerate(canvases):
        cells = grid_cells(n, size=(40, 42))
        tile_boxes += (cells + [1, 0, 0, -1]).tolist()  # a little smaller than the cells, as packed images are
        canvas += [i] * len(cells)
    per_canvas = [boxes for _, boxes in canvases]
    tiles = tiles_of(tile_boxes, canvas=canvas)
    actual = max_size_boxes(tiles, proposals_of(*per_canvas), min_iof=min_iof, topk=topk or math.inf).tolist()
    expected = by_loops.largest(tile_boxes, canvas, per_canvas, min_iof=min_iof, topk=topk)
    for tile, ours, reference in zip(tile_boxes, actual, expected, strict=True):
        assert by_loops.clip(ours, tile) == ours
        assert by_loops.area(ours) == by_loops.area(reference)  # equal areas may tie


def test_official_detic_takes_the_largest_of_the_first_without_gradient_or_side_effect(tiles_of, proposals_of):
    """One tile a canvas: the largest of the best 32; in the preset without an image box, of the best 31."""
    tiles, boxes = tiles_of([TILE]), [[10, 10, 20 + i, 20] for i in range(40)]  # growing
    proposals = proposals_of(boxes)
    proposals[0].proposal_boxes.tensor.requires_grad_()
    tiles.boxes.requires_grad_()
    for topk in (32, 31):
        result = max_size_boxes(tiles, proposals, min_iof=0.3, topk=topk)
        assert result.tolist() == [boxes[topk - 1]]
        assert not result.requires_grad
        result += 1
    assert tiles.boxes.tolist() == [TILE] and proposals[0].proposal_boxes.tensor.tolist() == boxes


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(box, max_size=5), max_size=4))
def test_last_and_largest_against_a_loop(by_loops, per_canvas):
    """The first of equal ones; a canvas without boxes is left out."""
    canvas = [i for i, boxes in enumerate(per_canvas) for _ in boxes]
    expected, start = [], 0
    for boxes in filter(None, per_canvas):
        others = [by_loops.area(b) for b in boxes[:-1]]
        expected.append((start + len(boxes) - 1, start + (others.index(max(others)) if others else 0)))
        start += len(boxes)
    boxes = torch.tensor([b for boxes in per_canvas for b in boxes]).reshape(-1, 4).float()
    regions = Regions(boxes, torch.tensor(canvas, dtype=torch.int64), torch.zeros(len(boxes), 1, dtype=torch.bool))
    last, largest = last_and_largest(regions)
    assert list(zip(last.tolist(), largest.tolist(), strict=True)) == expected
