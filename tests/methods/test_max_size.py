"""The largest proposal inside each tile, against a brute-force loop."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.data.mosaic import grid_cells
from clim.data.tiles import Tiles
from clim.methods.max_size import largest_inside


def tiles_of(boxes, canvas=None):
    count = len(boxes)
    return Tiles(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        canvas=torch.tensor(canvas if canvas is not None else [0] * count),
        image_ids=torch.arange(count),
        captions=[["x"]] * count,
        drawn=["x"] * count,
        tags=[[]] * count,
    )


def proposals_of(*canvases):
    """One Instances a canvas, best first."""
    return [
        Instances(
            (100, 100),
            proposal_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
            objectness_logits=torch.arange(len(boxes), 0, -1.0),
        )
        for boxes in canvases
    ]


def largest(boxes, *canvases, canvas=None, min_iof=0.3, topk=128):
    return largest_inside(tiles_of(boxes, canvas), proposals_of(*canvases), min_iof=min_iof, topk=topk).tolist()


def clip(box, tile):
    return [max(box[0], tile[0]), max(box[1], tile[1]), min(box[2], tile[2]), min(box[3], tile[3])]


def area(box):
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def intersection(box, tile):
    x0, y0, x1, y1 = clip(box, tile)
    return max(x1 - x0, 0) * max(y1 - y0, 0)


def slow(tile_boxes, canvas, per_canvas, *, min_iof, topk):
    """The definition, proposal by proposal."""
    chosen = []
    for index, (tile, own) in enumerate(zip(tile_boxes, canvas, strict=True)):
        mine = []
        for box in per_canvas[own]:
            shares = {
                t: intersection(box, other) / area(box)
                for t, other in enumerate(tile_boxes)
                if canvas[t] == own and area(box) > 0
            }
            if shares and max(shares.values()) > min_iof and max(shares, key=shares.get) == index:
                mine.append(clip(box, tile))
        mine = mine[:topk]
        chosen.append(max(mine, key=area) if mine else tile)
    return chosen


TILE = [10, 10, 50, 60]


def test_the_largest_proposal_wins_over_better_ones():
    assert largest([TILE], [[12, 12, 20, 20], [11, 11, 40, 50], [30, 30, 35, 35]]) == [[11, 11, 40, 50]]


def test_the_answer_is_clipped_and_areas_are_compared_after_clipping():
    # 40 x 30 with a third outside, 40 x 20 once clipped; the other is 30 x 30 and all inside.
    assert largest([TILE], [[10, 0, 50, 30], [15, 15, 45, 45]]) == [[15, 15, 45, 45]]
    assert largest([TILE], [[10, 0, 50, 40], [15, 15, 30, 30]]) == [[10, 10, 50, 40]]


@pytest.mark.parametrize("rows_inside, used", [(29, False), (31, True)])
def test_a_proposal_must_lie_inside_by_more_than_the_threshold(rows_inside, used):
    tile = [0, 0, 50, 60]
    proposal = [0, rows_inside - 100, 50, rows_inside]  # 100 rows, the last ones inside
    assert largest([tile], [proposal], min_iof=0.3) == [[0, 0, 50, rows_inside] if used else tile]


def test_exactly_the_threshold_is_not_enough():
    assert largest([[0, 10, 50, 60]], [[0, 0, 50, 20]], min_iof=0.5) == [[0, 10, 50, 60]]
    assert largest([[0, 10, 50, 60]], [[0, 0, 50, 20]], min_iof=0.499) == [[0, 10, 50, 20]]


def test_each_proposal_belongs_to_the_tile_that_holds_most_of_it():
    left, right = [0, 0, 50, 50], [50, 0, 100, 50]
    # 40 columns in the left one, 35 in the right one: only the left one may use it, though both hold > .3.
    assert largest([left, right], [[10, 0, 85, 50]]) == [[10, 0, 50, 50], right]
    assert largest([left, right], [[16, 0, 91, 50]]) == [left, [50, 0, 91, 50]]


def test_only_the_best_by_score_inside_a_tile_count():
    left, right = [0, 0, 50, 50], [50, 0, 100, 50]
    boxes = [
        [0, 0, 5, 5], [60, 0, 70, 10], [60, 0, 72, 12],  # first of the left one; first two of the right one
        [0, 0, 10, 10], [60, 0, 90, 40], [0, 0, 40, 40],  # second left, third right, third left
    ]  # fmt: skip
    assert largest([left, right], boxes, topk=1) == [[0, 0, 5, 5], [60, 0, 70, 10]]
    assert largest([left, right], boxes, topk=2) == [[0, 0, 10, 10], [60, 0, 72, 12]]
    assert largest([left, right], boxes, topk=3) == [[0, 0, 40, 40], [60, 0, 90, 40]]


def test_official_detic_takes_the_largest_of_the_first_32():
    """One tile a canvas: the largest of the best 32; in the preset without an image box, of the best 31."""
    image = [0, 0, 100, 100]
    boxes = [[0, 0, 10 + i, 10] for i in range(40)]  # growing
    assert largest([image], boxes, topk=32) == [boxes[31]]
    assert largest([image], boxes, topk=31) == [boxes[30]]


def test_without_a_proposal_it_is_the_tile_itself():
    assert largest([TILE], []) == [TILE]
    assert largest([TILE], [[70, 70, 90, 90]]) == [TILE]
    assert largest([TILE, [60, 60, 90, 90]], [[61, 61, 70, 70]]) == [TILE, [61, 61, 70, 70]]


def test_a_proposal_without_area_is_ignored():
    assert largest([TILE], [[20, 20, 20, 40], [20, 20, 40, 20]]) == [TILE]
    assert largest([TILE], [[20, 20, 20, 40], [20, 20, 22, 22]]) == [[20, 20, 22, 22]]


def test_canvases_do_not_mix():
    tiles, canvas = [[0, 0, 50, 50], [0, 0, 50, 50], [50, 0, 99, 50], [0, 0, 50, 50]], [2, 0, 0, 1]
    per_canvas = [[[1, 1, 9, 9]], [], [[2, 2, 30, 30]]]
    assert largest(tiles, *per_canvas, canvas=canvas) == [[2, 2, 30, 30], [1, 1, 9, 9], [50, 0, 99, 50], [0, 0, 50, 50]]


coordinate = st.integers(-8, 48)


@st.composite
def boxes(draw):
    x0, x1 = sorted(draw(st.tuples(coordinate, coordinate)))
    y0, y1 = sorted(draw(st.tuples(coordinate, coordinate)))
    return [x0, y0, x1 + 1, y1 + 1]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.lists(boxes(), max_size=8)), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    st.integers(1, 4),
)
def test_against_brute_force(canvases, min_iof, topk):
    tile_boxes, canvas, per_canvas = [], [], []
    for i, (n, proposals) in enumerate(canvases):
        cells = grid_cells(n, size=(40, 42))
        tile_boxes += (cells + [1, 0, 0, -1]).tolist()  # a little smaller than the cells, as packed pictures are
        canvas += [i] * len(cells)
        per_canvas.append(proposals)
    actual = largest(tile_boxes, *per_canvas, canvas=canvas, min_iof=min_iof, topk=topk)
    expected = slow(tile_boxes, canvas, per_canvas, min_iof=min_iof, topk=topk)
    for tile, ours, reference in zip(tile_boxes, actual, expected, strict=True):
        assert clip(ours, tile) == ours
        assert area(ours) == area(reference)  # equal areas may tie


def test_no_gradient_and_no_side_effect():
    tiles, proposals = tiles_of([TILE]), proposals_of([[12, 12, 20, 20]])
    proposals[0].proposal_boxes.tensor.requires_grad_()
    tiles.boxes.requires_grad_()
    result = largest_inside(tiles, proposals, min_iof=0.3, topk=4)
    assert not result.requires_grad
    assert tiles.boxes.tolist() == [TILE] and proposals[0].proposal_boxes.tensor.tolist() == [[12, 12, 20, 20]]
    result += 1
    assert tiles.boxes.tolist() == [TILE]
