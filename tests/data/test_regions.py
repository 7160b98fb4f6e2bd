"""RegionTestMapper and its loader: scaling, filters, masks and crops, pictures that give nothing."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from PIL import Image

from clim.config import add_clim_config
from clim.data.images import read_image
from clim.data.letterbox import letterbox
from clim.data.region_shapes import crop_letterboxed, letterbox_masks
from clim.data.regions import NO_REGION, RegionTestMapper, build_region_test_loader
from clim.data.skipping_loader import Skipped
from clim.errors import UserError

HEIGHT, WIDTH = 40, 60


def region(bbox, *, category=3, crowd=0, **fields):
    return {"bbox": bbox, "category_id": category, "iscrowd": crowd} | fields


@pytest.fixture
def photo(make_photos):
    """``photo(annotation, …)``: a record of one picture of 40 x 60 pixels."""
    (record,) = make_photos([(HEIGHT, WIDTH)])
    kept = {key: record[key] for key in ("file_name", "height", "width", "image_id")}
    return lambda *annotations, **fields: kept | {"annotations": list(annotations)} | fields


def pixels(array):
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


@pytest.mark.parametrize("fmt", ["RGB", "BGR"])
def test_picture_and_boxes_are_scaled_alike(photo, fmt):
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


def kept(photo, *annotations, **options):
    sample = RegionTestMapper(size=32, **options)(photo(*annotations))
    return sample["gt_classes"].tolist() if isinstance(sample, dict) else sample.reason


def test_areas_are_those_of_boxes_in_the_original_picture(photo):
    sizes = [(8, 8), (7.99, 8), (2, 32), (1, 63), (30, 20), (20, 30.1)]
    annotations = [region([0, 0, w, h], category=i, area=1) for i, (w, h) in enumerate(sizes)]
    assert kept(photo, *annotations, max_area=600) == [0, 2, 4]
    assert kept(photo, *annotations) == [0, 2, 4, 5]
    assert kept(photo, region([0, 0, 3, 3])) == NO_REGION


def test_the_first_annotations_count_whatever_their_size(photo):
    annotations = [region([0, 0, 1 if i == 1 else 20, 20], category=i) for i in range(4)]
    assert kept(photo, *annotations, max_boxes=3, max_area=500) == [0, 2]


def test_crowds_are_regions_unless_they_are_left_out(photo):
    annotations = [region([0, 0, 20, 20], category=i, crowd=i % 2) for i in range(4)]
    assert kept(photo, *annotations) == [0, 1, 2, 3]
    assert kept(photo, *annotations, crowds=False, max_boxes=2) == [0, 2]
    assert kept(photo, annotations[1], crowds=False) == NO_REGION


@pytest.fixture
def panoptic(photo, tmp_path):
    """A thing with a box, stuff of 30 x 11 px in an L of 300 px, and stuff that no pixel shows."""
    ids = np.zeros((HEIGHT, WIDTH), np.int64)
    ids[20:40, 0:15] = 70_000
    ids[5:15, 30:50], ids[15, 30] = 258, 258
    ids[5, 50:60] = 258
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "segments.png")
    return photo(
        region([1.5, 19, 12, 20.5], category=0, segment_id=70_000),
        {"category_id": 90, "iscrowd": 0, "segment_id": 258},
        {"category_id": 91, "iscrowd": 0, "segment_id": 9},
        pan_seg_file_name=str(tmp_path / "segments.png"),
    ), torch.from_numpy(ids)  # fmt: skip


def test_stuff_gets_the_extent_of_its_pixels(panoptic):
    record, ids = panoptic
    sample = RegionTestMapper(variants=("boxes", "masks", "crops"), size=60, mask_stride=4, crop_size=20)(
        record
    )
    assert sample["boxes"].tensor.tolist() == [[1.5, 19, 13.5, 39.5], [30, 5, 59, 15]]
    assert sample["gt_classes"].tolist() == [0, 90]
    masks = torch.stack([ids == 70_000, ids == 258])
    cells = letterbox_masks(masks, 15)
    assert torch.equal(sample["masks"], cells.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2))
    picture = read_image(record["file_name"], fmt="RGB").image
    thing = crop_letterboxed(picture, np.array([1.5, 19, 13.5, 39.5]), 20, enlarged=1.5)
    stuff = crop_letterboxed(picture, np.array([30, 5, 59, 15.0]), 20)
    assert torch.equal(sample["crops"], torch.stack([pixels(thing), pixels(stuff)]))


def test_masks_of_instances_are_their_polygons(photo):
    sample = RegionTestMapper(variants=("masks",), size=60, mask_stride=1)(
        photo(region([10, 5, 20, 20], segmentation=[[10, 5, 30, 5, 30, 25, 10, 25]]))
    )
    expected = torch.zeros(1, 60, 60, dtype=torch.bool)
    expected[:, 5:25, 10:30] = True
    assert torch.equal(sample["masks"], expected)


def test_pictures_that_cannot_be_used_are_named(photo, panoptic, tmp_path):
    one = region([0, 0, 20, 20])
    mapper = RegionTestMapper(size=32)
    assert mapper(photo(one, file_name="nowhere.jpg")) == Skipped("nowhere.jpg", "missing")
    (tmp_path / "text.jpg").write_text("no picture")
    assert mapper(photo(one, file_name=str(tmp_path / "text.jpg"))).reason == "not a picture"
    assert mapper(photo(one, height=60, width=40)).reason == "60x40, but 40x60 in the json"
    assert mapper(photo()) == Skipped(photo()["file_name"], NO_REGION)
    record, _ = panoptic
    assert mapper(record | {"pan_seg_file_name": "9.png"}) == Skipped("9.png", "missing")


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_clim_config(cfg)
    cfg.merge_from_list(["INPUT.REGIONS.SIZE", 48, "DATALOADER.NUM_WORKERS", 0])
    return cfg


@pytest.fixture
def registered(photo):
    """``registered(record, …)``: the name of a data set of these records."""
    name = "regions_of_a_test"
    yield lambda *records: DatasetCatalog.register(name, lambda: list(records)) or name
    DatasetCatalog.remove(name)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_leaves_out_what_is_skipped_and_tells(cfg, photo, registered, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    box = region([0, 0, 20, 20])
    name = registered(
        photo(box, image_id=1), photo(box, file_name="a.jpg"), photo(image_id=3), photo(box, image_id=4)
    )
    skipped = []
    loader = build_region_test_loader(cfg, name, on_skip=skipped.append)
    batches = list(loader)
    assert [[sample["image_id"] for sample in batch] for batch in batches] == [[1], [4]]
    assert len(loader) == 4 and batches[0][0]["image"].shape == (3, 48, 48)
    assert skipped == [("a.jpg", "missing"), (photo()["file_name"], NO_REGION)]


def test_the_config_reaches_the_mapper(cfg):
    cfg.merge_from_list([
        "TEST.REGIONS", ["masks", "crops"], "INPUT.REGIONS.MASK_STRIDE", 5, "INPUT.REGIONS.CROP_SIZE", 6,
        "INPUT.FORMAT", "RGB", "INPUT.REGIONS.MIN_AREA", 7, "INPUT.REGIONS.MAX_AREA", 80, "INPUT.REGIONS.MAX_BOXES", 9,
        "INPUT.REGIONS.CROWDS", False,
    ])  # fmt: skip
    assert vars(RegionTestMapper.from_cfg(cfg)) == {
        "variants": ("masks", "crops"), "size": 48, "mask_stride": 5, "crop_size": 6, "image_format": "RGB",
        "min_area": 7, "max_area": 80, "max_boxes": 9, "crowds": False,
    }  # fmt: skip


def test_a_set_without_masks_or_pictures_is_told(cfg, photo, registered):
    name = registered(photo(region([0, 0, 20, 20])))
    cfg.TEST.REGIONS = ["boxes", "masks"]
    with pytest.raises(UserError, match="TEST.REGIONS asks for masks, but regions of .* have none"):
        build_region_test_loader(cfg, name, on_skip=print)
    DatasetCatalog.remove(name)
    with pytest.raises(UserError, match="holds no picture"):
        build_region_test_loader(cfg, registered(), on_skip=print)


REAL = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "coco"


@pytest.mark.skipif(not (REAL / "annotations/instances_val2017.json").is_file(), reason="no COCO here")
def test_photos_of_coco(cfg):
    """Regions counted and scaled one by one from the json itself."""
    content = json.loads((REAL / "annotations/instances_val2017.json").read_text())
    images = sorted(content["images"], key=lambda image: image["id"])[:12]
    cfg.TEST.REGIONS = ["boxes", "masks", "crops"]
    mapper = RegionTestMapper.from_cfg(cfg)
    for record, image in zip(DatasetCatalog.get("coco_val_regions"), images, strict=False):
        annotations = [a for a in content["annotations"] if a["image_id"] == image["id"]][:100]
        expected = []
        for a in annotations:
            x, y, w, h = a["bbox"]
            if 64 <= w * h <= 1024 * 1024:
                expected.append([48 / max(image["height"], image["width"]) * v for v in (x, y, x + w, y + h)])
        sample = mapper(record)
        if not expected:
            assert sample == Skipped(record["file_name"], NO_REGION)
            continue
        torch.testing.assert_close(sample["boxes"].tensor, torch.tensor(expected))
        assert sample["masks"].flatten(1).any(dim=1).all()
        assert sample["crops"].shape == (len(expected), 3, 224, 224)
