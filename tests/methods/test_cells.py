"""Cells of tiles, against looking at every cell and every tile; spatial dropout; padding by tiles."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.data.mosaic import grid_cells
from clim.data.tiles import Tiles
from clim.methods.cells import Cells, Grid, cells_of_tiles, drop_cells, padded


def tiles_on(*canvases):
    """Tiles whose boxes are given canvas by canvas."""
    count = [len(boxes) for boxes in canvases]
    total = sum(count)
    return Tiles(
        boxes=torch.tensor([box for boxes in canvases for box in boxes], dtype=torch.float32).view(-1, 4),
        canvas=torch.arange(len(canvases)).repeat_interleave(torch.tensor(count)),
        image_ids=torch.arange(total), captions=[["x"]] * total, drawn=["x"] * total, tags=[[]] * total,
    )  # fmt: skip


def square(side, *, stride=32):
    return Grid.of((side, side), padded=(side, side), cells=(side // stride, side // stride))


def slow_cells(size, grid_size, cells, boxes):
    """[(tile, row, column)] by the definition: the visible part of every cell, its centre, and who holds it."""
    (height, width), (padded_h, padded_w), (h, w) = size, grid_size, cells
    found = []
    for tile, (x0, y0, x1, y1) in enumerate(boxes):
        for row in range(h):
            for column in range(w):
                top, left = row * padded_h / h, column * padded_w / w
                if top >= height or left >= width:
                    continue  # padding
                y = (top + min((row + 1) * padded_h / h, height)) / 2
                x = (left + min((column + 1) * padded_w / w, width)) / 2
                if x0 <= x < x1 and y0 <= y < y1:
                    found.append((tile, row, column))
    return found


def listed(cells):
    return list(zip(cells.tile.tolist(), cells.row.tolist(), cells.column.tolist(), strict=True))


@pytest.mark.parametrize("side, n, counts", [
    (768, 2, [12, 12]), (768, 3, [8, 8, 8]), (768, 4, [6, 6, 6, 6]),
    (800, 2, [12, 13]), (800, 3, [8, 9, 8]), (384, 4, [3, 3, 3, 3]),
])  # fmt: skip
def test_a_canvas_is_parted_without_a_rest(side, n, counts):
    tiles = tiles_on(grid_cells(n, size=(side, side)).tolist())
    cells = cells_of_tiles(tiles, [square(side)])
    expected = [down * across for down in counts for across in counts]
    assert torch.bincount(cells.tile).tolist() == expected and len(cells) == (side // 32) ** 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cells_are_those_of_the_definition(data):
    padded_size = tuple(data.draw(st.integers(8, 96)) for _ in range(2))
    size = tuple(data.draw(st.integers(1, extent)) for extent in padded_size)
    cells = tuple(math.ceil(extent / 8) for extent in padded_size)
    n = data.draw(st.integers(1, 3))
    boxes = grid_cells(n, size=size).tolist()
    found = cells_of_tiles(tiles_on(boxes), [Grid.of(size, padded=padded_size, cells=cells)])
    assert listed(found) == slow_cells(size, padded_size, cells, boxes)
    if n == 1:  # official OVR-CNN: ⌈H h / H'⌉ x ⌈W w / W'⌉
        shape = [math.ceil(s * c / p) for s, c, p in zip(size, cells, padded_size, strict=True)]
        assert len(found) == shape[0] * shape[1]


def test_several_canvases_gaps_and_places():
    plain, gappy = [[0, 0, 40, 64]], [[0, 0, 20, 20], [32, 32, 64, 64], [21, 0, 22, 1]]
    grids = [Grid.of((64, 40), padded=(64, 64), cells=(4, 4)), square(64, stride=16)]
    cells = cells_of_tiles(tiles_on(plain, gappy), grids)
    assert torch.bincount(cells.tile, minlength=4).tolist() == [12, 1, 4, 0]  # 4 x 3; none between two centres
    assert cells.canvas.tolist() == [0] * 12 + [1] * 5
    assert cells.place[:4].tolist() == pytest.approx(
        torch.tensor([[1 / 6, 1 / 8], [3 / 6, 1 / 8], [5 / 6, 1 / 8], [1 / 6, 3 / 8]])
    )
    assert cells.place[12].tolist() == [1 / 8, 1 / 8]


def test_dropout_keeps_small_tiles_whole_and_draws_from_large_ones_uniformly():
    cells = cells_of_tiles(tiles_on([[0, 0, 96, 96]], [[0, 0, 32, 32]]), [square(96, stride=16), square(32, stride=16)])
    torch.manual_seed(0)
    drawn = torch.zeros(36)
    for _ in range(400):
        kept = drop_cells(cells, 9)
        assert torch.bincount(kept.tile).tolist() == [9, 4]
        places = listed(kept)
        assert places == sorted(set(places)) and places[9:] == listed(cells)[36:]
        drawn[[6 * row + column for tile, row, column in places if tile == 0]] += 1
    assert drawn.min() > 100 - 5 * 75**0.5 and drawn.max() < 100 + 5 * 75**0.5  # binomial(400, 1/4)
    assert listed(drop_cells(cells, 36)) == listed(cells)


def test_dropout_of_nothing():
    empty = torch.zeros(0, dtype=torch.int64)
    assert len(drop_cells(Cells(empty, empty, empty, empty, torch.zeros(0, 2)), 5)) == 0


def test_rows_of_tiles_are_padded_in_their_order():
    tile = torch.tensor([0, 2, 2, 0, 2])
    rows = torch.arange(10.0).view(5, 2).requires_grad_()
    out, real = padded(rows, tile, count=4)
    assert out.shape == (4, 3, 2)
    assert real.tolist() == [[True, True, False], [False] * 3, [True] * 3, [False] * 3]
    assert torch.equal(out[0, :2], rows[[0, 3]]) and torch.equal(out[2], rows[[1, 2, 4]])
    assert not out[~real].any()
    out.sum().backward()
    assert torch.equal(rows.grad, torch.ones(5, 2))


def test_padding_of_nothing_has_one_place():
    out, real = padded(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), count=2)
    assert out.shape == (2, 1, 3) and real.tolist() == [[False], [False]]
