"""A letterboxed picture: its size, its padding, its pixels as torchvision makes them, and the scale of boxes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from clim.data.letterbox import letterbox


def picture(height, width, seed=0):
    return np.random.default_rng([seed, height, width]).integers(1, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("height, width", [(30, 47), (47, 30), (90, 61), (200, 33), (32, 32)])
def test_pixels_are_torchvisions_resize_and_black_padding(height, width):
    image = picture(height, width)
    square, scale = letterbox(image, 32)
    inside = [round(height * 32 / max(height, width)), round(width * 32 / max(height, width))]
    expected = F.resize(Image.fromarray(image), inside, InterpolationMode.BICUBIC, antialias=True)
    assert scale == 32 / max(height, width)
    np.testing.assert_array_equal(square[: inside[0], : inside[1]], np.asarray(expected))
    assert not square[inside[0] :].any() and not square[:, inside[1] :].any()


def test_a_picture_of_the_right_size_is_untouched():
    image = picture(20, 16)
    square, scale = letterbox(image, 20)
    assert scale == 1
    np.testing.assert_array_equal(square[:, :16], image)


def test_bgr_is_rgb_turned_round():
    image = picture(37, 55)
    np.testing.assert_array_equal(
        letterbox(image[:, :, ::-1].copy(), 24)[0], letterbox(image, 24)[0][:, :, ::-1]
    )


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), size=st.integers(1, 64))
def test_shape_and_scale(height, width, size):
    """The picture touches two opposite sides, and its far corner lies where the scale says, to half a pixel."""
    square, scale = letterbox(np.full((height, width, 3), 255, dtype=np.uint8), size)
    assert square.shape == (size, size, 3) and square.dtype == np.uint8
    rows, cols = square[:, 0, 0].astype(bool), square[0, :, 0].astype(bool)
    assert max(rows.sum(), cols.sum()) == size
    for lit, side in ((rows, height), (cols, width)):
        assert lit[: lit.sum()].all()
        assert abs(lit.sum() - side * scale) <= 0.5 or lit.sum() == 1
