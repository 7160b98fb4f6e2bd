"""Which tile a proposal belongs to, and boxes cut off at tiles, on numbers that can be checked by eye."""

import pytest
import torch
from detectron2.structures import Boxes

from clim.methods.ownership import clipped, owned_by

LEFT, RIGHT = [0.0, 0, 50, 50], [50.0, 0, 100, 50]


def owners(tiles, proposals, *, min_iof=0.3, topk=128):
    """(owned, inside) as lists."""
    found = owned_by(torch.tensor(tiles), Boxes(torch.tensor(proposals)), min_iof=min_iof, topk=topk)
    return [part.tolist() for part in found]


def test_a_proposal_belongs_to_the_tile_that_holds_most_of_it():
    proposals = [
        [10.0, 0, 20, 10],  # inside the left one
        [40, 0, 80, 10],  # a quarter in the left one
        [20, 0, 60, 10],  # a quarter in the right one
        [0, 200, 10, 210],  # in none
    ]
    owned, inside = owners([LEFT, RIGHT], proposals)
    assert owned == [[True, False], [False, True], [True, False], [False, False]]
    assert inside == [[100, 0], [100, 300], [300, 100], [0, 0]]


@pytest.mark.parametrize("min_iof, owned", [(0.249, True), (0.25, False)])
def test_it_must_hold_more_than_the_threshold(min_iof, owned):
    assert owners([LEFT], [[40.0, 0, 80, 10]], min_iof=min_iof) == [[[owned]], [[100]]]


def test_each_tile_counts_its_own_best():
    proposals = [[0.0, 0, 10, 10], [60, 0, 70, 10], [5, 5, 15, 15], [80, 5, 90, 15], [20, 20, 30, 30]]
    belongs = [(True, False), (False, True), (True, False), (False, True), (True, False)]
    for topk, counted in ((1, 2), (2, 4), (3, 5)):
        owned, _ = owners([LEFT, RIGHT], proposals, topk=topk)
        assert [tuple(row) for row in owned] == belongs[:counted] + [(False, False)] * (5 - counted)


def test_a_proposal_without_area_belongs_to_no_tile():
    assert owners([LEFT], [[10.0, 10, 10, 40]], min_iof=0.0) == [[[False]], [[0]]]


def test_boxes_are_cut_off_at_a_tile_of_their_own_or_of_all():
    boxes = torch.tensor([[-5.0, 10, 60, 40], [45, 20, 70, 90]])
    assert clipped(boxes, torch.tensor([LEFT, RIGHT])).tolist() == [[0, 10, 50, 40], [50, 20, 70, 50]]
    assert clipped(boxes, torch.tensor(LEFT)).tolist() == [[0, 10, 50, 40], [45, 20, 50, 50]]
