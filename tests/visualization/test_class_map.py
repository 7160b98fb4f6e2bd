"""Class maps: argmax against a slow reference, shares, colours, names that fit, legends."""

import numpy as np
import pytest
import torch

from clim.data.categories import PASCAL_CONTEXT
from clim.visualization.class_map import class_map, name_regions, paint, shares
from clim.visualization.draw import class_colours
from clim.visualization.response import upsample
from clim.visualization.sheet import class_legend


def test_the_best_class_of_every_pixel_after_upsampling():
    scores = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    found = class_map(scores, (13, 17))
    assert found.shape == (13, 17)
    maps = upsample(scores, (13, 17)).numpy()
    for y in range(13):
        for x in range(17):
            assert maps[found[y, x], y, x] == max(maps[k, y, x] for k in range(5))


def test_upsampling_comes_before_the_argmax():
    """A class that is second on both sides wins between them; upsampled labels would never show it."""
    scores = torch.tensor([[[1.0, -1.0]], [[-1.0, 1.0]], [[0.5, 0.5]]])
    assert class_map(scores, (1, 8))[0].tolist() == [0, 0, 0, 2, 2, 1, 1, 1]


def test_shares_count_pixels():
    found = shares(np.array([[0, 2], [2, 2]]), 4)
    assert found.tolist() == [0.25, 0, 0.75, 0]


def test_regions_get_their_colour_and_white_borders():
    classes = np.zeros((6, 8), np.int64)
    classes[:, 4:] = 1
    colours = np.array([[200, 0, 0], [0, 0, 200]], np.uint8)
    painted = paint(np.full((6, 8, 3), 50, np.uint8), classes, colours)
    assert (painted[:, 4] == 255).all()
    assert (painted[:, :4] == [140, 20, 20]).all() and (painted[:, 5:] == [20, 20, 140]).all()


def test_names_are_written_where_they_fit_and_nowhere_else():
    picture = np.full((60, 200, 3), 120, np.uint8)
    classes = np.zeros((60, 200), np.int64)
    classes[:, 120:125] = 1  # a stripe that no name fits into
    classes[20:50, 130:200] = 2
    drawn = name_regions(picture, classes, ["sky", "pole", "cat"], size=14)
    ink = (drawn != 120).any(axis=2)
    assert ink[:, :119].any() and ink[20:50, 130:].any()
    assert not ink[:, 120:125].any()
    assert not ink[:18, 130:].any() and not ink[52:, 130:].any()
    assert (picture == 120).all()


def test_maps_without_room_stay_as_they_are():
    picture = np.full((9, 9, 3), 7, np.uint8)
    assert (name_regions(picture, np.zeros((9, 9), np.int64), ["a long name"], size=12) == 7).all()
    speckled = np.indices((40, 40)).sum(axis=0) % 2
    picture = np.full((40, 40, 3), 7, np.uint8)
    assert (name_regions(picture, speckled, ["a", "b"], size=12) == 7).all()


def test_a_legend_shows_each_colour_once_in_as_many_lines_as_it_needs():
    colours = class_colours(59)
    for width in (900, 120):
        legend = class_legend(PASCAL_CONTEXT, colours, width=width, size=12, note="and 3 more")
        assert legend.shape[1] == width
        pixels = legend.reshape(-1, 3)
        assert all((pixels == colour).all(axis=1).sum() >= 100 for colour in colours)
    assert class_legend([], colours[:0], width=100, size=12).shape == (0, 100, 3)


def test_pascal_context_has_59_names():
    assert len(PASCAL_CONTEXT) == len(set(PASCAL_CONTEXT)) == 59
    assert PASCAL_CONTEXT[0] == "aeroplane" and PASCAL_CONTEXT[-1] == "wood"
    assert PASCAL_CONTEXT == tuple(name.strip().lower() for name in PASCAL_CONTEXT)


@pytest.mark.parametrize("size", [(1, 1), (2, 30)])
def test_tiny_pictures(size):
    classes = class_map(torch.zeros(2, 1, 1), size)
    assert (classes == 0).all()
    picture = np.zeros((*size, 3), np.uint8)
    assert name_regions(paint(picture, classes, class_colours(2)), classes, ["a", "b"], size=9).shape == (
        *size,
        3,
    )
