"""Canvases composed in the step: CLIM's counts and order, exact cells, pixels resized as a whole."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from clim.data.tiles import Tiles
from clim.errors import UserError
from clim.modeling.image_text import Canvases, compose_groups


def singles(count, side=6):
    pixels = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))
    tiles = [
        Tiles(
            boxes=torch.tensor([[0.0, 0, side, side]]), canvas=torch.zeros(1, dtype=torch.int64),
            image_ids=torch.tensor([i]), captions=[[f"caption {i}"]], drawn=[f"caption {i}"], tags=[[i]],
        )
        for i in range(count)
    ]  # fmt: skip
    return Canvases(pixels, tiles)


def test_the_release_makes_three_canvases_and_three_singles_of_32():
    left, canvases = compose_groups(singles(32), grids=(2, 3, 4), size=20)
    assert [t.image_ids.tolist() for t in left.tiles] == [[29], [30], [31]] and len(left.pixels) == 3
    ids = [t.image_ids.tolist() for t in canvases.tiles]
    assert ids == [list(range(4)), list(range(4, 13)), list(range(13, 29))]
    assert canvases.pixels.shape == (3, 3, 20, 20)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(29, 130))
def test_every_single_is_used_once_and_canvases_of_a_grid_are_as_many(count):
    left, canvases = compose_groups(singles(count, side=2), grids=(2, 3, 4), size=8)
    ids = sum((t.image_ids.tolist() for t in [*canvases.tiles, *left.tiles]), [])
    assert ids == list(range(count))
    lengths = [len(t) for t in canvases.tiles]
    assert all(lengths.count(n * n) == count // 29 for n in (2, 3, 4)) and len(left.tiles) == count % 29


def test_cells_are_exact_and_row_major_where_the_canvas_is_no_multiple():
    _, canvases = compose_groups(singles(9), grids=(3,), size=1024)
    third = 1024 / 3
    expected = [[x * third, y * third, (x + 1) * third, (y + 1) * third] for y in range(3) for x in range(3)]
    np.testing.assert_allclose(canvases.tiles[0].boxes.numpy(), expected, rtol=1e-6)
    assert canvases.tiles[0].drawn == [f"caption {i}" for i in range(9)]
    assert canvases.tiles[0].tags == [[i] for i in range(9)] and canvases.tiles[0].canvas.tolist() == [0] * 9


def test_pixels_are_laid_out_and_then_resized_as_one_picture():
    given_ = singles(4)
    _, canvases = compose_groups(given_, grids=(2,), size=30)
    a, b, c, d = given_.pixels
    whole = torch.cat([torch.cat([a, b], dim=2), torch.cat([c, d], dim=2)], dim=1)
    expected = interpolate(whole[None], size=(30, 30), mode="bicubic", align_corners=False, antialias=False)
    assert torch.equal(canvases.pixels, expected)
    _, untouched = compose_groups(given_, grids=(2,), size=12)
    torch.testing.assert_close(untouched.pixels[0], whole)


def test_permuted_texts_are_those_of_another_tile_of_the_canvas():
    torch.manual_seed(3)
    by = [int(torch.randint(1, n * n, ())) for n in (2, 3, 4)]
    _, true = compose_groups(singles(32), grids=(2, 3, 4), size=20)
    torch.manual_seed(3)
    left, found = compose_groups(singles(32), grids=(2, 3, 4), size=20, permute_texts=True)
    for tiles, before, k in zip(found.tiles, true.tiles, by, strict=True):
        assert tiles.image_ids.tolist() == before.image_ids.roll(k).tolist()
        assert tiles.drawn == [f"caption {i}" for i in tiles.image_ids.tolist()]
        assert torch.equal(tiles.boxes, before.boxes)
    assert torch.equal(found.pixels, true.pixels)
    assert [t.image_ids.tolist() for t in left.tiles] == [[29], [30], [31]]


def test_a_batch_that_is_too_small_is_told():
    with pytest.raises(UserError, match=r"from 29 single crops, but a process has 28"):
        compose_groups(singles(28), grids=(2, 3, 4), size=8)
