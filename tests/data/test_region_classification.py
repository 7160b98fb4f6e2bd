"""Regions to classify: scaling, filters, masks and crops against PIL, torchvision and pixels counted by hand."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from detectron2.config import get_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.transforms import InterpolationMode

from clim.config import add_clim_config
from clim.data import region_classification as rc
from clim.data.images import letterbox, read_image
from clim.data.loader import NO_REGION, Skipped
from clim.data.region_classification import RegionTestMapper, build_region_loader, crop_letterboxed, letterbox_masks
from clim.errors import UserError

HEIGHT, WIDTH = 40, 60


def region(bbox, *, category=3, crowd=0, **fields):
    return {"bbox": bbox, "category_id": category, "iscrowd": crowd} | fields


@pytest.fixture
def photo(make_photos):
    """``photo(annotation, …)``: a record of one image of 40 x 60 pixels."""
    (record,) = make_photos([(HEIGHT, WIDTH)])
    kept = {key: record[key] for key in ("file_name", "height", "width", "image_id")}
    return lambda *annotations, **fields: kept | {"annotations": list(annotations)} | fields


def pixels(array):
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


@pytest.mark.parametrize("fmt", ["RGB", "BGR"])
def test_image_and_boxes_are_scaled_alike(photo, fmt):
    record = photo(region([6, 8, 12, 10], category=7), region([-1, 0, 61, 40.5], category=0))
    sample = RegionTestMapper(size=96, image_format=fmt)(record)
    square, _ = letterbox(read_image(record["file_name"], fmt=fmt).image, 96)
    assert torch.equal(sample["image"], pixels(square)) and sample["image"].dtype == torch.uint8
    assert sample["image"].shape == (3, 96, 96) and sample["image"][:, 64:].max() == 0
    expected = torch.tensor([[6, 8, 18, 18], [-1, 0, 60, 40.5]]) * 1.6
    torch.testing.assert_close(sample["boxes"].tensor, expected)
    assert sample["gt_classes"].tolist() == [7, 0] and sample["gt_classes"].dtype == torch.int64
    assert (sample["height"], sample["width"], sample["image_id"]) == (HEIGHT, WIDTH, record["image_id"])
    assert "masks" not in sample and "crops" not in sample


def test_boxes_are_filtered_by_number_crowd_and_area_in_the_original_image(photo):
    def kept(*annotations, **options):
        sample = RegionTestMapper(size=32, **options)(photo(*annotations))
        return sample["gt_classes"].tolist() if isinstance(sample, dict) else sample.reason

    sizes = [(8, 8), (7.99, 8), (2, 32), (1, 63), (30, 20), (20, 30.1)]
    sized = [region([0, 0, w, h], category=i, area=1) for i, (w, h) in enumerate(sizes)]
    assert kept(*sized, max_area=600) == [0, 2, 4] and kept(*sized) == [0, 2, 4, 5]
    assert kept(region([0, 0, 3, 3])) == NO_REGION
    assert kept(*sized, max_boxes=4) == [0, 2]  # the first count, whatever their size
    crowds = [region([0, 0, 20, 20], category=i, crowd=i % 2) for i in range(4)]
    assert kept(*crowds) == [0, 1, 2, 3]
    assert kept(*crowds, crowds=False, max_boxes=2) == [0, 2]
    assert kept(crowds[1], crowds=False) == NO_REGION


@pytest.fixture
def panoptic(photo, tmp_path):
    """A thing with a box, stuff of 30 x 11 px in an L of 300 px."""
    ids = np.zeros((HEIGHT, WIDTH), np.int64)
    ids[20:40, 0:15] = 70_000
    ids[5:15, 30:50], ids[15, 30] = 258, 258
    ids[5, 50:60] = 258
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "segments.png")
    return photo(
        region([1.5, 19, 12, 20.5], category=0, segment_id=70_000),
        {"category_id": 90, "iscrowd": 0, "segment_id": 258},
        pan_seg_file_name=str(tmp_path / "segments.png"),
    ), torch.from_numpy(ids)  # fmt: skip


def test_stuff_gets_the_extent_of_its_pixels(panoptic):
    record, ids = panoptic
    sample = RegionTestMapper(variants=("boxes", "masks", "crops"), size=60, mask_stride=4, crop_size=20)(record)
    assert sample["boxes"].tensor.tolist() == [[1.5, 19, 13.5, 39.5], [30, 5, 59, 15]]
    assert sample["gt_classes"].tolist() == [0, 90]
    masks = torch.stack([ids == 70_000, ids == 258])
    squares = letterbox_masks(masks, 15)
    assert torch.equal(sample["masks"], squares.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2))
    image = read_image(record["file_name"], fmt="RGB").image
    thing = crop_letterboxed(image, np.array([1.5, 19, 13.5, 39.5]), 20, enlarged=1.5)
    stuff = crop_letterboxed(image, np.array([30, 5, 59, 15.0]), 20)
    assert torch.equal(sample["crops"], torch.stack([pixels(thing), pixels(stuff)]))


def test_masks_of_instances_are_their_polygons(photo):
    sample = RegionTestMapper(variants=("masks",), size=60, mask_stride=1)(
        photo(region([10, 5, 20, 20], segmentation=[[10, 5, 30, 5, 30, 25, 10, 25]]))
    )
    expected = torch.zeros(1, 60, 60, dtype=torch.bool)
    expected[:, 5:25, 10:30] = True
    assert torch.equal(sample["masks"], expected)


def test_images_that_cannot_be_used_are_named(photo, panoptic, tmp_path):
    one = region([0, 0, 20, 20])
    mapper = RegionTestMapper(size=32)
    assert mapper(photo(one, file_name="nowhere.jpg")) == Skipped("nowhere.jpg", "missing")
    (tmp_path / "text.jpg").write_text("no image")
    assert mapper(photo(one, file_name=str(tmp_path / "text.jpg"))).reason == "not an image"
    assert mapper(photo(one, height=60, width=40)).reason == "60x40 px, but annotated as 40x60"
    assert mapper(photo()) == Skipped(photo()["file_name"], NO_REGION)
    record, _ = panoptic
    assert mapper(record | {"pan_seg_file_name": "9.png"}) == Skipped("9.png", "missing")
    absent = {"category_id": 91, "iscrowd": 0, "segment_id": 9}
    shown = mapper(record | {"annotations": [*record["annotations"], absent]})
    assert shown == Skipped(record["pan_seg_file_name"], "it does not show segment 9 of its image")


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_clim_config(cfg)
    cfg.merge_from_list(["INPUT.REGIONS.SIZE", 48, "DATALOADER.NUM_WORKERS", 0])
    return cfg


def test_the_loader_leaves_out_what_is_skipped(cfg, photo, registered):
    box = region([0, 0, 20, 20])
    name = registered(photo(box, image_id=1), photo(box, file_name="a.jpg"), photo(image_id=3), photo(box, image_id=4))
    for workers in (0, 1):
        cfg.DATALOADER.NUM_WORKERS, skipped = workers, []
        loader = build_region_loader(cfg, name, on_skip=skipped.append)
        batches = list(loader)
        assert [[sample["image_id"] for sample in batch] for batch in batches] == [[1], [4]]
        assert len(loader) == 4 and batches[0][0]["image"].shape == (3, 48, 48)
        assert skipped == [("a.jpg", "missing"), (photo()["file_name"], NO_REGION)]


def test_the_config_reaches_the_mapper_and_a_set_without_masks_or_images_is_refused(cfg, photo, registered):
    numbers = {
        "size": 48,
        "mask_stride": 5,
        "crop_size": 6,
        "min_area": 7,
        "max_area": 80,
        "max_boxes": 9,
        "crowds": False,
    }
    for key, value in numbers.items():
        cfg.INPUT.REGIONS[key.upper()] = value
    cfg.merge_from_list(["TEST.REGIONS", ["masks", "crops"], "INPUT.FORMAT", "RGB"])
    expected = {"variants": ("masks", "crops"), "image_format": "RGB"} | numbers
    assert vars(RegionTestMapper.from_cfg(cfg)) == expected
    with pytest.raises(UserError, match="TEST.REGIONS asks for masks, but regions of .* have none"):
        build_region_loader(cfg, registered(photo(region([0, 0, 20, 20]))), on_skip=print)
    with pytest.raises(UserError, match="holds no image"):
        build_region_loader(cfg, registered(), on_skip=print)


# ---- shapes ----


def rectangle(height, width, y, x):
    """bool (height, width), True in the slices y, x."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y, x] = True
    return mask


def test_every_form_of_a_segmentation_is_the_same_mask():
    mask = rectangle(20, 30, slice(2, 12), slice(5, 9))
    packed = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    column = mask.numpy().flatten(order="F")
    counts = np.diff([0, *(np.flatnonzero(np.diff(column)) + 1), len(column)]).tolist()
    polygons = [[5, 2, 9, 2, 9, 7, 5, 7], [5, 7, 9, 7, 9, 12, 5, 12]]
    for segmentation in (polygons, packed, {"size": [20, 30], "counts": counts}):
        assert torch.equal(rc.bitmask(segmentation, 20, 30), mask)


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_extent_is_that_of_the_release(mask):
    mask[0, -1] = True
    ys, xs = np.where(mask)
    found = rc.extent(torch.from_numpy(mask))
    assert found.tolist() == [xs.min(), ys.min(), xs.max(), ys.max()] and found.dtype == torch.float64


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


def test_a_region_that_falls_between_the_samples_keeps_one():
    lost = rectangle(160, 160, slice(40, 43), slice(120, 122))  # squares of 20 px are read at 28…31, 48…51, …
    masks = [rectangle(160, 160, slice(0, 160), slice(0, 80)), lost, torch.zeros_like(lost)]
    half, kept, empty = letterbox_masks(torch.stack(masks), 8)
    assert torch.equal(half, rectangle(8, 8, slice(0, 8), slice(0, 4)))
    assert kept.nonzero().tolist() == [[2, 6]] and not empty.any()


def released_crop(image, x0, y0, x1, y1, *, size, enlarged):
    """The release's steps on a PIL image."""
    cx, cy, half_w, half_h = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2 * enlarged, (y1 - y0) / 2 * enlarged
    pil = Image.fromarray(image)
    box = (max(cx - half_w, 0), max(cy - half_h, 0), min(cx + half_w, pil.width), min(cy + half_h, pil.height))
    crop = pil.crop(box)
    scale = size / max(crop.size)
    inside = [round(crop.height * scale), round(crop.width * scale)]
    crop = TF.resize(crop, inside, InterpolationMode.BICUBIC)
    down, right = size - inside[0], size - inside[1]
    return np.asarray(TF.pad(crop, [right // 2, down // 2, right - right // 2, down - down // 2]))


IMAGE = np.random.default_rng(1).integers(0, 256, (37, 52, 3), dtype=np.uint8)


@settings(max_examples=60)
@given(
    x=st.floats(0, 40), y=st.floats(0, 26), width=st.floats(3, 12), height=st.floats(3, 11),
    size=st.integers(9, 40), enlarged=st.sampled_from([1.0, 1.5]),
)  # fmt: skip
def test_crops_are_the_releases(x, y, width, height, size, enlarged):
    box = np.array([x, y, x + width, y + height])
    expected = released_crop(IMAGE, *box, size=size, enlarged=enlarged)
    assert np.array_equal(crop_letterboxed(IMAGE, box, size, enlarged=enlarged), expected)


def test_crops_of_almost_nothing_show_a_pixel():
    thin = crop_letterboxed(IMAGE, np.array([51.9, 4.0, 52.0, 9.0]), 10)
    assert thin[:, :4].max() == 0 and thin[:, 6:].max() == 0
    assert thin[:, 4:6].any()
    dot = crop_letterboxed(IMAGE, np.array([3.1, 5.2, 3.1, 5.2]), 4)
    assert np.array_equal(dot, np.broadcast_to(IMAGE[5, 3], (4, 4, 3)))
