"""Drawings: where ink falls, that inputs stay untouched, sizes, and mosaics as the mapper makes them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.data.tiles import Tiles
from clim.visualization.draw import (
    class_colours,
    draw_boxes,
    draw_canvas,
    draw_objects,
    enlarge,
    side_by_side,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)


def grey(height, width):
    return np.full((height, width, 3), 100, np.uint8)


def test_class_colours_are_distinct_and_readable():
    colours = class_colours(80)
    assert colours.shape == (80, 3) and colours.dtype == np.uint8
    assert len({tuple(colour) for colour in colours}) == 80
    assert class_colours(0).shape == (0, 3)
    assert (colours[:65] == class_colours(65)).all()  # a class keeps its colour when the vocabulary grows
    neighbours = np.abs(colours[1:].astype(int) - colours[:-1]).sum(axis=1)
    assert neighbours.min() > 100


def test_small_pictures_are_enlarged_and_large_ones_left_alone():
    image, scale = enlarge(grey(100, 50), side=640)
    assert image.shape == (640, 320, 3) and scale == 6.4
    large = grey(700, 1000)
    image, scale = enlarge(large, side=640)
    assert image is large and scale == 1.0


def test_box_lines_lie_on_the_scaled_box_and_nowhere_else():
    image = grey(320, 320)
    drawn = draw_boxes(image, [[50, 100, 150, 200]], [""], colours=[RED])
    assert drawn.shape == (640, 640, 3)
    red = (drawn == RED).all(axis=2)
    rows, columns = np.nonzero(red)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (200, 400, 100, 300)
    assert not red[210:390, 110:290].any()  # inside
    assert (drawn[~red] == 100).all()
    assert (image == 100).all()  # the input is not drawn on


def test_no_boxes_give_the_picture_back():
    image = grey(640, 480)
    drawn = draw_boxes(image, np.zeros((0, 4)), [], colours=[])
    assert (drawn == image).all()


def test_marked_boxes_get_a_white_rim():
    plain = draw_boxes(grey(640, 640), [[100, 100, 300, 300]], [""], colours=[RED])
    marked = draw_boxes(grey(640, 640), [[100, 100, 300, 300]], [""], colours=[RED], marked=[0])
    assert not (plain == 255).all(axis=2).any()
    assert (marked[98:100, 200] == 255).all() and (marked[100, 200] == RED).all()


def test_labels_of_neighbours_do_not_cover_each_other():
    boxes = [[100, 100, 200, 200], [104, 104, 204, 204]]
    both = draw_boxes(grey(640, 640), boxes, ["umbrella", "umbrella"], colours=[RED, BLUE])
    for box, colour in zip(boxes, (RED, BLUE), strict=True):
        alone = draw_boxes(grey(640, 640), [box], ["umbrella"], colours=[colour])
        areas = [(drawn == colour).all(axis=2).sum() for drawn in (alone, both)]
        assert areas[1] > 0.9 * areas[0]


def test_labels_stay_whole_inside_the_picture():
    def label_area(box):
        drawn = [draw_boxes(grey(640, 640), [box], [text], colours=[RED]) for text in ("a long label", "")]
        with_label, alone = ((picture == RED).all(axis=2) for picture in drawn)
        return with_label.sum() - alone.sum()

    in_the_middle = label_area([300, 300, 500, 500])
    assert in_the_middle > 500
    for box in ([0, 0, 20, 20], [630, 0, 640, 10], [0, 630, 10, 640], [600, 600, 640, 640]):
        assert label_area(box) > 0.85 * in_the_middle  # it may lie on some of the box's own lines


def test_letters_are_readable_at_256_and_at_1000_pixels():
    def label_height(side):
        drawn = draw_boxes(grey(side, side), [[10, 100, 200, 200]], ["a long label"], colours=[RED])
        rows = (drawn == RED).all(axis=2)[:, 40:120].sum(axis=1) > 20
        return rows.sum(), drawn.shape[0]

    for side in (256, 1000):
        rows, height = label_height(side)
        assert rows >= 14 and 0.02 < rows / height < 0.06


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-50, 400)] * 4), max_size=4), st.booleans())
def test_any_boxes_can_be_drawn(boxes, star):
    drawn = draw_boxes(
        grey(120, 300),
        boxes,
        ["x"] * len(boxes),
        colours=class_colours(len(boxes)),
        marked=[0] if star and boxes else [],
        side=300,
    )
    assert drawn.shape == (120, 300, 3)


def test_first_object_lies_on_top_in_the_colour_of_its_class():
    colours = class_colours(3)
    box = [100, 100, 300, 300]
    drawn = draw_objects(grey(640, 640), [box, box], [2, 0], names=["a", "b", "c"], scores=[0.9, 0.2])
    assert (drawn[200, 100] == colours[2]).all()


def test_novel_objects_are_the_marked_ones():
    boxes = [[50, 50, 150, 150], [300, 300, 400, 400]]
    drawn = draw_objects(grey(640, 640), boxes, [0, 1], names=["", ""], novel={1})
    assert (drawn[100, 48:50] == 100).all()  # base: no rim
    assert (drawn[350, 298:300] == 255).all()


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_canvas_shows_the_tiles_of_the_mapper(order):
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    image[0 if order == "RGB" else 2] = 200  # red
    tiles = Tiles(
        boxes=torch.tensor([[0.0, 0, 50, 50], [50, 0, 100, 40]]),
        canvas=torch.zeros(2, dtype=torch.int64),
        image_ids=torch.tensor([1, 2]),
        captions=[["a cat"], ["a dog"]],
        drawn=["a cat", "a dog that is far too long to fit into its tile, whatever the font"],
        tags=[[], []],
    )
    drawn = draw_canvas({"image": image, "tiles": tiles}, image_format=order, side=500)
    assert drawn.shape == (500, 500, 3)
    assert (drawn[450, 250] == (200, 0, 0)).all()
    first, second = class_colours(2)
    assert (drawn[200, 0] == first).all() and (drawn[150, 250] == second).all()
    label = (drawn[:, 251:499] == second).all(axis=2).any(axis=0)
    assert not (drawn[:, :250] == second).all(axis=2).any()  # a label stays in its own tile
    assert label.any()


def test_panels_share_the_height_of_the_first():
    sheet = side_by_side([grey(100, 80), grey(200, 100)], ["one", "two"], gap=10)
    assert sheet.shape[1] == 80 + 50 + 3 * 10
    columns = (sheet[-15] == 100).all(axis=1)
    assert columns[10:90].all() and columns[100:150].all() and columns.sum() == 130
