"""Drawings: where ink falls, that inputs stay untouched, and sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clim_commands.drawing import class_colours, draw_boxes, draw_objects, enlarge, tint

RED, BLUE = (255, 0, 0), (0, 0, 255)


def grey(height, width):
    return np.full((height, width, 3), 100, np.uint8)


def area(drawn, colour=RED):
    return (drawn == colour).all(axis=2).sum()


def test_class_colours_are_distinct_and_readable():
    colours = class_colours(80)
    assert colours.shape == (80, 3) and colours.dtype == np.uint8
    assert len({tuple(colour) for colour in colours}) == 80
    assert class_colours(0).shape == (0, 3)
    assert (colours[:65] == class_colours(65)).all()  # a class keeps its colour when the vocabulary grows
    assert np.abs(colours[1:].astype(int) - colours[:-1]).sum(axis=1).min() > 100  # neighbours


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
    assert (draw_boxes(drawn, np.zeros((0, 4)), [], colours=[]) == drawn).all()


def test_labels_of_neighbours_do_not_cover_each_other():
    """In a large image, the lines of the other box cover little of a label."""
    boxes = [[300, 300, 600, 600], [320, 320, 620, 620]]
    both = draw_boxes(grey(1920, 1920), boxes, ["umbrella", "umbrella"], colours=[RED, BLUE])
    for box, colour in zip(boxes, (RED, BLUE), strict=True):
        alone = draw_boxes(grey(1920, 1920), [box], ["umbrella"], colours=[colour])
        assert area(both, colour) > 0.9 * area(alone, colour)


def test_labels_stay_whole_inside_the_image():
    def label_area(box):
        with_label, alone = (draw_boxes(grey(640, 640), [box], [text], colours=[RED]) for text in ("a long label", ""))
        return area(with_label) - area(alone)

    in_the_middle = label_area([300, 300, 500, 500])
    assert in_the_middle > 500
    for box in ([0, 0, 20, 20], [630, 0, 640, 10], [0, 630, 10, 640], [600, 600, 640, 640]):
        assert label_area(box) > 0.85 * in_the_middle  # it may lie on some of the box's own lines


@pytest.mark.parametrize("side", [256, 1000])
def test_letters_are_readable(side):
    drawn = draw_boxes(grey(side, side), [[10, 100, 200, 200]], ["a long label"], colours=[RED])
    rows = ((drawn == RED).all(axis=2)[:, 40:120].sum(axis=1) > 20).sum()
    assert rows >= 14 and 0.02 < rows / drawn.shape[0] < 0.06


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-50, 400)] * 4), max_size=4), st.booleans())
def test_any_boxes_can_be_drawn(boxes, star):
    colours, marked = class_colours(len(boxes)), [0] if star and boxes else []
    drawn = draw_boxes(grey(120, 300), boxes, ["x"] * len(boxes), colours=colours, marked=marked, side=300)
    assert drawn.shape == (120, 300, 3)
    large, scale = enlarge(drawn, side=300)
    assert large is drawn and scale == 1.0


def test_objects_have_the_colour_of_their_class_the_first_on_top_and_novel_ones_a_white_rim():
    box, colours = [100, 100, 300, 300], class_colours(3)
    drawn = draw_objects(grey(640, 640), [box, box], [2, 0], names=["a", "b", "c"], scores=[0.9, 0.2])
    assert (drawn[200, 100] == colours[2]).all()
    boxes = [[50, 50, 150, 150], [300, 300, 400, 400]]
    drawn = draw_objects(grey(640, 640), boxes, [0, 1], names=["", ""], novel={1})
    assert (drawn[100, 48:50] == 100).all()  # base: no rim
    assert (drawn[350, 298:300] == 255).all() and (drawn[350, 300] == colours[1]).all()


def test_masks_are_half_of_their_colour_the_first_object_on_top():
    image, masks, colours = grey(640, 640), np.zeros((2, 640, 640), bool), class_colours(2).astype(float)
    masks[0, 100:200, 100:300] = masks[1, 100:200, 200:400] = True
    boxes = [[100, 100, 300, 200], [200, 100, 400, 200]]
    drawn = draw_objects(image, boxes, [0, 1], names=["", ""], masks=masks)
    for x, colour in ((150, colours[0]), (250, colours[0]), (350, colours[1])):
        assert drawn[150, x].tolist() == ((100 + colour) // 2).tolist()
    assert (drawn[300:, :] == 100).all() and (image == 100).all()
    assert (tint(image, masks[:0], []) == image).all()
