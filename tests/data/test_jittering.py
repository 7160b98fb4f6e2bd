"""Large-scale jittering against the formulas of detic §3.1, §3.2, and boxes and masks that follow the pixels."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.data.jittering import STYLES, Jittering, efficientdet, mmdet
from clim.errors import UserError

SIDES, PARTS = st.integers(1, 900), st.floats(0, 1, exclude_max=True)
DRAWS = st.tuples(st.floats(0.1, 2), PARTS, PARTS)


@pytest.mark.parametrize(
    "plan, image, side, draws, size, crop",
    [
        # s = min(1.5 * 640 / 480, 1.5 * 640 / 640) = 1.5; free height int(720) - 640 = 80, width 320.
        (efficientdet, (480, 640), 640, (1.5, 0.5, 0.25), (720, 960), (80, 40, 720, 680)),
        (efficientdet, (480, 640), 640, (1.5, 0.999, 0.999), (720, 960), (319, 79, 959, 719)),
        (efficientdet, (427, 640), 640, (0.37, 0.9, 0.9), (157, 236), (0, 0, 236, 157)),  # 157.99, 236.8 px
        (efficientdet, (3, 900), 320, (0.5, 0, 0), (1, 160), (0, 0, 160, 1)),  # .53 px
        # int(.37 * 640) = 236 px; 427 * 236 / 640 = 157.46
        (mmdet, (427, 640), 640, (0.37, 0.9, 0.9), (157, 236), (0, 0, 236, 157)),
        (mmdet, (480, 640), 640, (1.5, 0.5, 0.25), (720, 960), (80, 40, 720, 680)),
        (mmdet, (480, 640), 640, (1.5, 0.999, 0.999), (720, 960), (320, 80, 960, 720)),  # the last offset is drawn too
        (mmdet, (1, 900), 320, (0.5, 0, 0), (1, 160), (0, 0, 160, 1)),
    ],
)
def test_sizes_and_offsets(plan, image, side, draws, size, crop):
    found = plan(*image, side=side, draws=draws)
    assert (found.size, found.crop) == (size, crop) and found.vanished == (min(image) < 5)


@given(style=st.sampled_from(sorted(STYLES)), height=SIDES, width=SIDES, side=st.integers(16, 640), draws=DRAWS)
@settings(max_examples=300, deadline=None)
def test_a_crop_lies_in_the_resized_image_and_coordinates_follow(style, height, width, side, draws):
    found = STYLES[style](height, width, side=side, draws=draws)
    x0, y0, x1, y1 = found.crop
    assert 0 <= x0 < x1 <= found.size[1] and 0 <= y0 < y1 <= found.size[0]
    assert (x1 - x0, y1 - y0) == (min(side, found.size[1]), min(side, found.size[0]))  # never padded
    scale = {"efficientdet": draws[0] * side, "mmdet": int(draws[0] * side)}[style] / max(height, width)
    for length, resized in zip((height, width), found.size, strict=True):
        assert (
            resized == max(1, int(length * scale + (0.5 if style == "mmdet" else 0)))
            or abs(length * scale - round(length * scale)) < 1e-9
        )  # scale is the quotient of other floats there
    corner = Jittering(style, side=side, scale=(1, 1)).transform(height, width, draws).apply_coords(
        np.array([[width, height], [0, 0]], float)
    )  # fmt: skip
    assert corner[1].tolist() == [-x0, -y0]
    error = 1 if style == "efficientdet" else 1e-6  # the size is rounded down, the scale is not
    if not found.vanished:
        assert np.all(np.abs(corner[0] + [x0, y0] - found.size[::-1]) < error)


@pytest.mark.parametrize("style", STYLES)
def test_boxes_and_masks_stay_on_their_pixels(style):
    image = np.zeros((120, 160, 3), np.uint8)
    image[30:90, 40:120] = 255
    np.random.seed(0)
    seen = 0
    for _ in range(30):
        given_input = T.AugInput(image)
        transform = Jittering(style, side=100, scale=(0.4, 2))(given_input)
        shown = given_input.image
        mask = transform.apply_segmentation((image[..., 0] > 0).astype(np.uint8))
        assert mask.shape == shown.shape[:2] and max(mask.shape) <= 100
        assert np.abs(mask - shown[..., 0] / 255).mean() < 0.05
        box = transform.apply_box(np.array([[40, 30, 120, 90]]))[0].clip(0)
        box = np.minimum(box, [*mask.shape[::-1]] * 2)
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        if len(rows):
            seen += 1
            assert np.allclose(box, [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], atol=1.6)  # rounding, twice
    assert seen > 20


def test_draws_come_in_the_order_of_the_release_and_pixels_from_its_library():
    """Factor, height, width, always three numbers; PIL averages when it shrinks, cv2 does not."""
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    for style in STYLES:
        jittering = Jittering(style, side=64, scale=(0.1, 2))
        np.random.seed(3)
        found = jittering.get_transform(image)
        np.random.seed(3)
        draws = np.random.uniform(0.1, 2), np.random.uniform(), np.random.uniform()
        assert found.jitter == STYLES[style](200, 300, side=64, draws=draws)
    small = {s: Jittering(s, side=30, scale=(1, 1)).get_transform(image).apply_image(image) for s in STYLES}
    assert small["efficientdet"].std() < small["mmdet"].std() / 2
    assert np.array_equal(small["efficientdet"], T.ResizeTransform(200, 300, 20, 30).apply_image(image))


def test_another_style_is_refused():
    for style, side in (("detectron2", 320), ("mmdet", 0)):
        with pytest.raises(UserError, match="INPUT.LSJ.STYLE .* efficientdet, mmdet, .*INPUT.CAPTION.JITTER_SIZE"):
            Jittering(style, side=side, scale=(1, 1))
