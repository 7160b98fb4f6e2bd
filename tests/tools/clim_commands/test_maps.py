"""Maps over images: bilinear by hand, min-max, colours, outlines and rings where they belong; sheets of panels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clim_commands import maps
from clim_commands.classes import PASCAL_CONTEXT
from clim_commands.drawing import class_colours
from clim_commands.maps import heat, outline, overlay, peak
from reports.sheet import GAP, Panel, class_legend, panel_size, response_legend, sheet


def grey(height, width, value=100):
    return np.full((height, width, 3), value, np.uint8)


def bilinear(cells, size):
    """Slow and obvious: the value at a pixel's centre, between the four nearest cells' centres."""
    (h, w), (height, width) = cells.shape, size
    out = np.zeros(size)
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * h / height - 0.5, 0), h - 1)
            u = min(max((x + 0.5) * w / width - 0.5, 0), w - 1)
            y0, x0 = int(v), int(u)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            top = (1 - u + x0) * cells[y0, x0] + (u - x0) * cells[y0, x1]
            bottom = (1 - u + x0) * cells[y1, x0] + (u - x0) * cells[y1, x1]
            out[y, x] = (1 - v + y0) * top + (v - y0) * bottom
    return out


@pytest.mark.parametrize("size", [(7, 11), (1, 5), (2, 3), (12, 9)])
def test_upsampling_puts_a_locations_value_at_its_centre(size):
    values = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    found = maps.upsample(values, size)
    assert found.shape == (3, *size)
    for cells, response in zip(values.numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(response, bilinear(cells, size), atol=1e-5)


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12))
def test_min_max_reaches_0_and_1_and_keeps_the_order(values):
    response = np.array([values], np.float32)
    unit = maps.min_max(response)
    assert unit.dtype == np.float32 and unit.shape == response.shape
    if response.max() > response.min():
        assert unit.min() == 0 and unit.max() == pytest.approx(1)
        assert (np.diff(unit[0][np.argsort(response[0])]) >= 0).all()
    else:
        assert (unit == 0).all()


def test_colours_rise_from_dark_to_bright_and_hold_no_red():
    bar = maps.colour_bar(256, 3)
    assert bar.shape == (3, 256, 3) and (bar[0] == bar[2]).all()
    brightness = bar[0] @ [0.299, 0.587, 0.114]
    assert (np.diff(brightness) > -2).all() and brightness[0] < 40 and brightness[-1] > 200
    assert not ((bar[0, :, 0] > 150) & (bar[0, :, 1] < 100)).any()
    assert (heat(np.array([[-1.0, 2.0]])) == heat(np.array([[0.0, 1.0]]))).all()
    unit, image = np.array([[0.0, 1.0]]), grey(1, 2, 80)
    assert (overlay(image, unit, strength=1.0) == heat(unit)).all() and (overlay(image, unit, strength=0.0) == 80).all()


def test_outlines_and_rings():
    """An outline is red between white rims inside its box; a ring leaves what it marks visible."""
    image, white = grey(40, 60), (255, 255, 255)
    drawn = outline(image, [10, 5, 30, 25], width=3)
    rows, columns = np.nonzero((drawn != 100).any(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 24, 10, 29)
    assert [tuple(p) for p in drawn[15, 10:16]] == [white, maps.RED, maps.RED, maps.RED, white, (100, 100, 100)]
    assert (image == 100).all()
    for odd in ([-5, -5, 100, 100], [3, 3, 3, 3], [0, 0, 1, 1], [9, 9, 30, 30]):
        assert outline(grey(10, 10), odd).shape == (10, 10, 3)
    cells = np.zeros((2, 4))
    cells[1, 2] = 1
    assert peak(cells, (20, 80)) == (50, 15)
    assert peak(np.zeros((3, 3)), (9, 9)) == (1, 1)  # constant: the first one
    drawn = maps.mark_peak(grey(90, 90), (50, 40))
    rows, columns = np.nonzero((drawn != 100).any(axis=2))
    assert abs(rows.mean() - 40) < 0.5 and abs(columns.mean() - 50) < 0.5
    assert (drawn[40, 50] == 100).all()


def test_a_sheet_holds_every_panel_as_it_is_with_white_between():
    assert panel_size(100, 200, panel=320) == (160, 320)
    assert panel_size(2000, 100, panel=100) == (150, 8) and panel_size(1, 3000, panel=100) == (1, 100)
    left, right, footer = grey(50, 100, 10), grey(30, 100, 20), grey(20, 200, 30)
    page = sheet([[Panel(left), Panel(right)]] * 2, ["", ""], panel=100, footer=footer)
    assert page.shape[1] == 2 * 100 + 3 * GAP
    assert [(page == v).all(axis=2).sum() for v in (10, 20, 30)] == [2 * 5000, 2 * 3000, 4000]
    assert (page[:, :GAP] == 255).all() and (page[:, GAP + 100 : 2 * GAP + 100][: page.shape[0] - 40] == 255).all()
    assert (page[-GAP:] == 255).all()
    # Long texts end at their panel.
    page = sheet([[Panel(grey(40, 120, 255), "w" * 200, strong=True)]], ["M" * 100], panel=120)
    assert (page[:, GAP + 121 :] == 255).all() and (page < 100).any()


def test_legends():
    legend = response_legend(width=500, size=12, note="a note " * 50)
    assert legend.shape[1] == 500
    assert (legend.reshape(-1, 3) == heat(np.array([[1.0]]))[0, 0]).all(axis=1).any()
    colours = class_colours(59)
    for width in (900, 120):
        legend = class_legend(PASCAL_CONTEXT, colours, width=width, size=12, note="and 3 more")
        assert legend.shape[1] == width
        pixels = legend.reshape(-1, 3)
        assert all((pixels == colour).all(axis=1).sum() >= 100 for colour in colours)
    assert class_legend([], colours[:0], width=100, size=12).shape == (0, 100, 3)


def test_class_maps():
    """A class that is second on both sides wins between them; each class gets its colour, with white borders."""
    scores = torch.tensor([[[1.0, -1.0]], [[-1.0, 1.0]], [[0.5, 0.5]]])
    classes = maps.class_map(scores, (1, 8))
    assert classes[0].tolist() == [0, 0, 0, 2, 2, 1, 1, 1]
    assert maps.shares(classes, 4).tolist() == [3 / 8, 3 / 8, 2 / 8, 0]
    classes = np.zeros((6, 8), np.int64)
    classes[:, 4:] = 1
    painted = maps.paint(grey(6, 8, 50), classes, np.array([[200, 0, 0], [0, 0, 200]], np.uint8))
    assert (painted[:, 4] == 255).all()
    assert (painted[:, :4] == [140, 20, 20]).all() and (painted[:, 5:] == [20, 20, 140]).all()


def test_names_are_written_where_they_fit_and_nowhere_else():
    image, classes = grey(60, 200, 120), np.zeros((60, 200), np.int64)
    classes[:, 120:125] = 1  # a stripe that no name fits into
    classes[20:50, 130:200] = 2
    ink = (maps.name_regions(image, classes, ["sky", "pole", "cat"], size=14) != 120).any(axis=2)
    assert ink[:, :119].any() and ink[20:50, 130:].any()
    assert not ink[:, 120:125].any() and not ink[:18, 130:].any() and not ink[52:, 130:].any()
    assert (image == 120).all()
    assert (maps.name_regions(grey(9, 9), np.zeros((9, 9), np.int64), ["a long name"], size=12) == 100).all()
