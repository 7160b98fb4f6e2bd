"""Colours of classes."""

import numpy as np

from clim_commands.drawing import class_colours


def test_class_colours_are_distinct_and_readable():
    colours = class_colours(80)
    assert colours.shape == (80, 3) and colours.dtype == np.uint8
    assert len({tuple(colour) for colour in colours}) == 80
    assert class_colours(0).shape == (0, 3)
    assert (colours[:65] == class_colours(65)).all()  # a class keeps its colour when the vocabulary grows
    assert np.abs(colours[1:].astype(int) - colours[:-1]).sum(axis=1).min() > 100  # neighbours
