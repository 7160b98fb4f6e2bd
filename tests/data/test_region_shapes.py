"""Boxes, masks and crops of regions, against PIL, torchvision and pixels counted by hand."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.transforms import InterpolationMode

from clim.data.region_shapes import bitmask, crop_letterboxed, extent, letterbox_masks, segment_ids


def rectangle(height, width, y, x):
    """bool (height, width), True in the slices y, x."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y, x] = True
    return mask


def test_segment_ids_are_red_first():
    image = np.array([[[7, 0, 0], [0, 7, 0]], [[0, 0, 7], [1, 2, 3]]], np.uint8)
    assert segment_ids(image).tolist() == [[7, 7 * 256], [7 * 65536, 1 + 2 * 256 + 3 * 65536]]


def test_every_form_of_a_segmentation_is_the_same_mask():
    mask = rectangle(20, 30, slice(2, 12), slice(5, 9))
    packed = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    column = mask.numpy().flatten(order="F")
    edges = np.flatnonzero(np.diff(column)) + 1
    counts = np.diff([0, *edges, len(column)]).tolist()
    polygons = [[5, 2, 9, 2, 9, 7, 5, 7], [5, 7, 9, 7, 9, 12, 5, 12]]
    for segmentation in (polygons, packed, {"size": [20, 30], "counts": counts}):
        assert torch.equal(bitmask(segmentation, 20, 30), mask)


@given(st.data())
def test_extent_is_that_of_the_release(data):
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = torch.tensor(bits).view(height, width)
    ys, xs = np.where(mask.numpy())
    if not len(ys):
        assert extent(mask) is None
    else:
        assert extent(mask).tolist() == [xs.min(), ys.min(), xs.max(), ys.max()]


@pytest.mark.parametrize(("height", "width", "size"), [(48, 64, 16), (64, 48, 16), (50, 31, 7), (9, 12, 24)])
def test_masks_are_torchvisions_bicubic(height, width, size):
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((6, 1, 4, 4)))
    masks = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[:, 0] > 0.5
    scale = size / max(height, width)
    inside = [round(height * scale), round(width * scale)]
    expected = TF.resize(masks.float(), inside, InterpolationMode.BICUBIC, antialias=False) > 0
    expected = TF.pad(expected, [0, 0, size - inside[1], size - inside[0]])
    assert expected.flatten(1).any(dim=1).all()
    assert torch.equal(letterbox_masks(masks, size), expected)
    assert torch.equal(letterbox_masks(masks[:1], size), expected[:1])


def test_a_region_that_falls_between_the_cells_keeps_one():
    masks = torch.stack([
        rectangle(160, 160, slice(0, 160), slice(0, 80)),
        rectangle(160, 160, slice(40, 43), slice(120, 122)),  # cells of 20 px are read at 28…31, 48…51, …
        rectangle(160, 160, slice(0, 0), slice(0, 0)),
    ])  # fmt: skip
    half, lost, empty = letterbox_masks(masks, 8)
    assert torch.equal(half, rectangle(8, 8, slice(0, 8), slice(0, 4)))
    assert lost.nonzero().tolist() == [[2, 6]]
    assert not empty.any()


def released_crop(image, x0, y0, x1, y1, *, size, enlarged):
    """The release's steps on a PIL picture."""
    cx, cy, half_w, half_h = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2 * enlarged, (y1 - y0) / 2 * enlarged
    picture = Image.fromarray(image)
    box = (
        max(cx - half_w, 0),
        max(cy - half_h, 0),
        min(cx + half_w, picture.width),
        min(cy + half_h, picture.height),
    )
    crop = picture.crop(box)
    scale = size / max(crop.size)
    inside = [round(crop.height * scale), round(crop.width * scale)]
    crop = TF.resize(crop, inside, InterpolationMode.BICUBIC)
    down, right = size - inside[0], size - inside[1]
    return np.asarray(TF.pad(crop, [right // 2, down // 2, right - right // 2, down - down // 2]))


PICTURE = np.random.default_rng(1).integers(0, 256, (37, 52, 3), dtype=np.uint8)


@settings(max_examples=60)
@given(
    x=st.floats(0, 40), y=st.floats(0, 26), width=st.floats(3, 12), height=st.floats(3, 11),
    size=st.integers(9, 40), enlarged=st.sampled_from([1.0, 1.5]),
)  # fmt: skip
def test_crops_are_the_releases(x, y, width, height, size, enlarged):
    box = np.array([x, y, x + width, y + height])
    expected = released_crop(PICTURE, *box, size=size, enlarged=enlarged)
    assert np.array_equal(crop_letterboxed(PICTURE, box, size, enlarged=enlarged), expected)


def test_crops_of_almost_nothing_show_a_pixel():
    thin = crop_letterboxed(PICTURE, np.array([51.9, 4.0, 52.0, 9.0]), 10)
    assert thin[:, :4].max() == 0 and thin[:, 6:].max() == 0
    assert thin[:, 4:6].any()
    dot = crop_letterboxed(PICTURE, np.array([3.1, 5.2, 3.1, 5.2]), 4)
    assert np.array_equal(dot, np.broadcast_to(PICTURE[5, 3], (4, 4, 3)))
