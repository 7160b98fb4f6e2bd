"""Properties of the geometry: cells, packing, pasting, crops."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.data.mosaic import compose, fit_cell, fit_size, grid_cells, inward_anchors, place, resized_crop, shortest_crop

GRIDS = st.integers(1, 6)
SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.integers(1, 900)


# ---- sizes


@settings(deadline=None, max_examples=200)
@given(SIDES, SIDES)
def test_fit_size_agrees_with_detectron2(height, width):
    ours = fit_size(height, width, short=400, long=667)
    scale = min(Fraction(400, min(height, width)), Fraction(667, max(height, width)))
    exact = [side * scale for side in (height, width)]
    assert all(abs(a - b) <= Fraction(1, 2) + Fraction(1, 10**6) or a == 1 for a, b in zip(ours, exact, strict=True))
    # Floats may round a side of exactly k + 1/2 either way, and Detectron2's side may become 0.
    if all(side % 1 != Fraction(1, 2) and side > 1 for side in exact):
        assert ours == tuple(ResizeShortestEdge.get_output_shape(height, width, 400, 667))


@settings(deadline=None, max_examples=200)
@given(SIDES, SIDES, st.integers(1, 300), st.integers(1, 300))
def test_fit_cell_is_the_largest_size_of_that_ratio_inside(height, width, cell_h, cell_w):
    h, w = fit_cell(height, width, cell=(cell_h, cell_w))
    assert 1 <= h <= cell_h and 1 <= w <= cell_w
    assert h == cell_h or w == cell_w
    scale = min(cell_h / height, cell_w / width)
    assert abs(h - height * scale) <= 0.5 + 1e-9 or h == 1
    assert abs(w - width * scale) <= 0.5 + 1e-9 or w == 1


# ---- cells


@settings(deadline=None, max_examples=100)
@given(GRIDS, st.integers(6, 200), st.integers(6, 200))
def test_cells_cover_the_canvas_once(n, height, width):
    cells = grid_cells(n, size=(height, width))
    covered = np.zeros((height, width), dtype=int)
    for x0, y0, x1, y1 in cells:
        assert x0 < x1 and y0 < y1
        covered[y0:y1, x0:x1] += 1
    assert (covered == 1).all()
    sizes = cells[:, 2:] - cells[:, :2]
    assert (np.abs(sizes - np.array([width, height]) / n) <= 1).all()


def test_cells_go_row_by_row():
    assert grid_cells(2, size=(80, 100)).tolist() == [
        [0, 0, 50, 40], [50, 0, 100, 40],
        [0, 40, 50, 80], [50, 40, 100, 80],
    ]  # fmt: skip
    assert grid_cells(3, size=(800, 800))[:3].tolist() == [[0, 0, 267, 267], [267, 0, 533, 267], [533, 0, 800, 267]]


# ---- packing: (x, y), 1 is right- or bottom-aligned


def anchors_of(n, draws=300):
    """x and y (draws, n, n)."""
    drawn = np.stack([inward_anchors(n, np.random.default_rng(seed)).reshape(n, n, 2) for seed in range(draws)])
    return drawn[..., 0], drawn[..., 1]


def test_2x2_packs_towards_the_centre_and_3x3_leaves_the_middle_free():
    x, y = anchors_of(2, draws=1)
    assert x[0].tolist() == [[1, 0], [1, 0]] and y[0].tolist() == [[1, 1], [0, 0]]
    x, y = anchors_of(3)
    assert (x[:, :, 0] == 1).all() and (x[:, :, 2] == 0).all()
    assert (y[:, 0, :] == 1).all() and (y[:, 2, :] == 0).all()
    for free in (x[:, :, 1], y[:, 1, :]):  # each tile for itself, anywhere
        assert free.min() >= 0 and free.max() <= 1
        assert np.histogram(free, bins=4, range=(0, 1))[0].min() > 0.2 * free.size
        assert abs(np.corrcoef(free[:, 0], free[:, 1])[0, 1]) < 0.2


def test_from_4x4_on_columns_alternate_and_rows_are_pushed_up_or_down_together():
    x, y = anchors_of(4)
    assert (x == np.array([1, 0, 1, 0])).all()
    assert (y == y[:, :, :1]).all()  # one draw a row
    assert set(np.unique(y)) == {0, 1}
    assert (np.abs(y[:, :, 0].mean(axis=0) - 0.5) < 0.12).all()
    assert len({tuple(row) for row in y[:, :, 0].tolist()}) == 16  # rows are independent
    x, _ = anchors_of(5, draws=20)
    assert (x[..., [0, 1, 3, 4]] == np.array([1, 0, 1, 0])).all() and len(np.unique(x[..., 2])) == 20 * 5
    assert (anchors_of(6, draws=20)[0] == np.array([1, 0, 1, 0, 1, 0])).all()


@settings(deadline=None, max_examples=150)
@given(GRIDS, SEEDS, st.data())
def test_images_lie_inside_their_cells(n, seed, data):
    canvas = data.draw(st.integers(12, 300)), data.draw(st.integers(12, 300))
    cells = grid_cells(n, size=canvas)
    photos = [(data.draw(SIDES), data.draw(SIDES)) for _ in cells]
    sizes = np.array([fit_cell(h, w, cell=(c[3] - c[1], c[2] - c[0])) for (h, w), c in zip(photos, cells, strict=True)])
    anchors = inward_anchors(n, np.random.default_rng(seed))
    boxes = place(sizes, cells, anchors)
    assert boxes.dtype.kind == "i"
    assert (boxes[:, :2] >= cells[:, :2]).all() and (boxes[:, 2:] <= cells[:, 2:]).all()
    assert (boxes[:, 2:] - boxes[:, :2] == sizes[:, ::-1]).all()
    low, high = anchors == 0, anchors == 1  # the image keeps the border that the anchor names
    assert (boxes[:, :2] == cells[:, :2])[low].all() and (boxes[:, 2:] == cells[:, 2:])[high].all()
    with pytest.raises(AssertionError, match="larger than its cell by 1 px"):
        place(np.array([[41, 40]]), np.array([[0, 0, 40, 40]]), np.array([[0.0, 0.0]]))


# ---- compose


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), SEEDS)
def test_pasted_pixels_are_the_images_and_the_rest_is_padding(n, seed):
    rng = np.random.default_rng(seed)
    size = tuple(int(s) for s in rng.integers(4 * n, 60, 2))
    cells = grid_cells(n, size=size)
    sizes = np.array([[rng.integers(1, c[3] - c[1] + 1), rng.integers(1, c[2] - c[0] + 1)] for c in cells])
    images = [rng.integers(0, 256, (3, h, w), dtype=np.uint8) for h, w in sizes]
    boxes = place(sizes, cells, inward_anchors(n, rng))
    canvas = compose(images, boxes, size=size, pad_value=114)
    assert canvas.shape == (3, *size) and canvas.dtype == np.uint8
    expected = np.full((3, *size), 114)
    for image, (x0, y0, _, _) in zip(images, boxes, strict=True):
        for y, x in product(range(image.shape[1]), range(image.shape[2])):
            expected[:, y0 + y, x0 + x] = image[:, y, x]
    assert (canvas == expected).all()

    tensors = compose([torch.from_numpy(p) for p in images], boxes, size=size, pad_value=114)
    assert isinstance(tensors, torch.Tensor) and tensors.dtype == torch.uint8
    assert (tensors.numpy() == canvas).all()
    from_tensor_boxes = compose(images, torch.from_numpy(boxes), size=size, pad_value=114)
    assert (from_tensor_boxes == canvas).all()


def test_compose_keeps_float_tensors_and_their_gradient():
    images = [torch.rand(3, 4, 4, requires_grad=True) for _ in range(4)]
    canvas = compose(images, grid_cells(2, size=(8, 8)), size=(9, 9), pad_value=0.5)
    assert canvas.dtype == torch.float32
    canvas.sum().backward()
    assert all((p.grad == 1).all() for p in images)


# ---- random crops

RATIO = (3 / 4, 4 / 3)


@settings(max_examples=200, deadline=None)
@given(height=st.integers(10, 600), width=st.integers(10, 600), low=st.floats(0.05, 1.0), seed=SEEDS)
def test_a_crop_has_the_asked_area_and_shape_or_is_the_largest_central_one(height, width, low, seed):
    limits = {"scale": (low, 1.0), "ratio": RATIO}
    x0, y0, x1, y1 = resized_crop(height, width, **limits, rng=np.random.default_rng(seed))
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    w, h = x1 - x0, y1 - y0
    # half a pixel of rounding on either side
    assert (w + 0.5) / (h - 0.5) >= 3 / 4 and (w - 0.5) / (h + 0.5) <= 4 / 3
    central = abs(2 * x0 + w - width) <= 1 and abs(2 * y0 + h - height) <= 1
    assert (w + 0.5) * (h + 0.5) >= low * height * width or (central and (w == width or h == height))
    assert min(w, h) >= shortest_crop(**limits) * min(height, width) - 1  # sides are whole pixels


def test_crops_of_a_wide_image_and_of_a_square_and_at_every_border():
    rng = np.random.default_rng(0)
    assert resized_crop(40, 400, scale=(0.9, 1.0), ratio=RATIO, rng=rng) == (173, 0, 226, 40)  # the central part
    assert resized_crop(64, 64, scale=(1.0, 1.0), ratio=(1.0, 1.0), rng=rng) == (0, 0, 64, 64)
    crops = np.array([resized_crop(20, 30, scale=(0.5, 0.66), ratio=(1.0, 1.0), rng=rng) for _ in range(300)])
    assert crops.min(axis=0)[:2].tolist() == [0, 0] and crops.max(axis=0)[2:].tolist() == [30, 20]
