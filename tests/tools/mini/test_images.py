"""Mini images: tight boxes, objects apart, a base object in every scene for training."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini import images as mini
from mini.concepts import CONCEPTS
from mini.images import draw, draw_pair, draw_scene, place


@pytest.mark.parametrize("concept", range(0, 65, 4))
def test_boxes_are_tight_around_the_alpha(concept):
    on_black, on_white = (
        draw(np.full((256, 256, 3), shade, np.uint8), [concept], np.random.default_rng(concept), sides=(28, 112))
        for shade in (0, 255)
    )
    # The background shines through by 255 · (1 - alpha).
    alpha = 255 - (on_white.image.astype(int) - on_black.image.astype(int)).max(axis=2)
    (x, y, width, height) = on_black.boxes()[0]
    edges = []
    for share in (40, 200):
        rows, columns = np.nonzero(alpha >= share)
        edges.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    np.testing.assert_allclose([x, y, x + width, y + height], edges[0], atol=1)
    inner = edges[1]
    assert x <= inner[0] and y <= inner[1] and inner[2] <= x + width and inner[3] <= y + height
    assert max(width, height) <= 112


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_boxes_lie_inside_and_touch_what_is_visible_on_all_sides(seed):
    for image in (draw_scene(np.random.default_rng(seed), photos=mini.PHOTOS), draw_pair(np.random.default_rng(seed))):
        assert image.image.shape == (256, 256, 3) and image.image.dtype == np.uint8
        boxes = image.boxes()
        assert len(boxes) == len(image.concepts) >= 1
        assert (boxes[:, 2:] > 0).all() and (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 256).all()
        for i, (x, y, w, h) in enumerate(boxes):
            inside = image.mask[y : y + h, x : x + w] == i
            assert inside.sum() == (image.mask == i).sum()
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 256), st.integers(1, 256)), max_size=6), seed=st.integers(0, 2**32))
def test_place_keeps_boxes_inside_and_apart(sizes, seed):
    corners = place(sizes, np.random.default_rng(seed))
    assert len(corners) <= len(sizes) and (len(corners) > 0) == (len(sizes) > 0)
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sizes, strict=False)]
    for i, a in enumerate(boxes):
        assert min(a) >= 0 and max(a) <= 256
        for b in boxes[:i]:
            width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            smaller = min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
            assert max(width, 0) * max(height, 0) < mini.MAX_COVERED * smaller


def test_scenes_for_training_hold_a_base_object_always():
    rng = np.random.default_rng(0)
    for _ in range(20):
        concepts = draw_scene(rng, photos=mini.PHOTOS, novel_share=1.0).concepts
        assert [CONCEPTS[c].novel for c in concepts].count(False) == 1
