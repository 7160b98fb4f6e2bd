"""Records → network inputs: crops, regions and detections; unreadable images. Canvases: test_canvas_mapper.py."""

import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode
from PIL import Image
from pycocotools import mask as run_lengths

from clim.data.images import letterbox, read_image
from clim.data.jittering import training_augmentations
from clim.data.mappers import CropMapper, DetectionMapper, RecordMapper, RegionMapper
from clim.data.mosaic import resized_crop
from clim.data.tiles import Tiles
from clim.errors import UserError
from clim.methods import Regions

CROPS = {"scale": (0.9, 1.0), "ratio": (3 / 4, 4 / 3)}
DRAWN = {"seed": 1, "stream": 2}


def crops(records, **kwargs):
    return CropMapper(records, **{"size": 32, **CROPS} | DRAWN | kwargs)


def regions(records, **kwargs):
    return RegionMapper(records, **{"size": 32} | DRAWN | kwargs)


def detections(records, augmentations=(), **kwargs):
    return DetectionMapper(records, augmentations=augmentations, **DRAWN | kwargs)


@pytest.fixture
def make(request, canvases):
    """A function from records to a mapper of this kind."""
    kinds = {"canvases": canvases, "singles": partial(canvases, grids=[1])}
    return (kinds | {"crops": crops, "regions": regions, "detections": detections})[request.param]


# ---- all mappers


@pytest.mark.parametrize("make", ["canvases", "singles", "crops", "regions", "detections"], indirect=True)
def test_an_unreadable_image_is_replaced_with_all_that_belongs_to_it(photos, tmp_path, make, broken):
    data, half = Path(photos[0]["file_name"]).read_bytes(), str(tmp_path / "half.png")
    Path(half).write_bytes(data[: len(data) // 2])
    records = [photos[0] | {"file_name": half}, *broken(photos[1:3], 0, 1), photos[3]]
    reasons = {(half, "truncated"), *((r["file_name"], "missing") for r in records[1:3])}
    for epoch in range(3):
        sample, again = (make(records)(index=0, epoch=epoch) for _ in range(2))
        assert torch.equal(sample["image"], again["image"]) and sample["skipped"] == again["skipped"]
        assert sample["skipped"][0] == (half, "truncated") and set(sample["skipped"]) <= reasons
        if "tiles" in sample:
            assert set(sample["tiles"].image_ids.tolist()) == {103}
            assert {tuple(c) for c in sample["tiles"].captions} <= {tuple(photos[3]["captions"]), ()}
        else:
            assert (sample["image_id"], sample["image"].shape[1:]) == (103, (photos[3]["height"], photos[3]["width"]))
    assert make(records)(index=3, epoch=0)["skipped"] == [] or make(records).square


@pytest.mark.parametrize(
    "make, refused", [("singles", False), ("regions", True), ("detections", True)], indirect=["make"]
)
def test_boxes_need_an_image_of_their_size(photos, make, refused):
    records = [photos[0] | {"height": 600, "width": 900}, photos[1]]
    reason = (records[0]["file_name"], "90x60 px, but annotated as 900x600")
    assert set(make(records)(index=0, epoch=0)["skipped"]) == ({reason} if refused else set())


def test_forty_nine_unreadable_images_in_a_row_are_survived_and_fifty_are_not(photos, broken):
    mapper, skipped = RecordMapper(broken(photos[:2], 0), seed=1, stream=2), []
    draws = iter([0] * 48 + [1])
    record, _ = mapper.read(0, SimpleNamespace(integers=lambda _: next(draws)), skipped)
    assert record["image_id"] == photos[1]["image_id"] and len(skipped) == 49
    with pytest.raises(UserError, match="50 images in a row could not be read, last .*gone.*missing"):
        detections(broken(photos, *range(24)))(index=0, epoch=0)


# ---- crops and regions


def test_a_crop_is_one_tile_resized_as_pil_does(make_photos):
    records = make_photos([(90, 120), (300, 200), (40, 400)])
    mapper = crops(records, image_format="RGB")
    for index, record in enumerate(records):
        sample = mapper(index=index, epoch=3)
        box = resized_crop(record["height"], record["width"], **CROPS, rng=np.random.default_rng([1, 2, 3, index]))
        image = Image.open(record["file_name"]).crop(box).resize((32, 32), Image.Resampling.BICUBIC)
        expected = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
        assert torch.equal(sample["image"], expected) and sample["image"].dtype == torch.uint8
        tiles = sample["tiles"]
        assert tiles.boxes.tolist() == [[0, 0, 32, 32]] and tiles.image_ids.tolist() == [record["image_id"]]
        assert tiles.drawn[0] in record["captions"] and tiles.tags == [record["tags"]]
    # Other epochs draw another crop, unless the image is too long for any choice.
    assert not torch.equal(mapper(index=0, epoch=4)["image"], mapper(index=0, epoch=3)["image"])


@pytest.mark.parametrize("size, long_side", [(32, 90), (64, 200), (224, 640)])
def test_reduced_decoding_leaves_every_crop_the_pixels_it_needs(make_photos, decodes, size, long_side):
    (record,), limits = make_photos([(4 * long_side // 5, long_side)], ext="jpg"), CROPS | {"scale": (0.5, 1.0)}
    crops([record], size=size, **limits)(index=0, epoch=0)
    if decodes[0] != (record["height"], record["width"]):
        for seed in range(50):
            x0, y0, x1, y1 = resized_crop(*decodes[0], **limits, rng=np.random.default_rng(seed))
            assert min(x1 - x0, y1 - y0) >= size - 1


def test_region_canvases_are_letterboxed_with_a_tile_a_box(photos):
    for index, record in enumerate(photos[:6]):
        sample = regions(photos, image_format="RGB")(index=index, epoch=0)
        expected, _ = letterbox(read_image(record["file_name"], fmt="RGB").image, 32)
        assert torch.equal(sample["image"], torch.from_numpy(expected).permute(2, 0, 1))
        assert (sample["height"], sample["width"], sample["skipped"]) == (32, 32, [])
        tiles, count = sample["tiles"], len(record["boxes"])
        scaled = torch.tensor(record["boxes"] * (32 / max(record["height"], record["width"])))
        torch.testing.assert_close(tiles.boxes, scaled, rtol=1e-6, atol=0)
        assert tiles.canvas.tolist() == [0] * count and tiles.image_ids.tolist() == [100 + index] * count
        assert tiles.tags == [[int(noun)] for noun in record["nouns"]]
        assert len(tiles) == count and tiles.captions == [[]] * count
        assert torch.equal(regions(photos, image_format="RGB", seed=9)(index=index, epoch=7)["image"], sample["image"])
    tiles = Tiles.cat([regions(photos)(index=i, epoch=0)["tiles"] for i in (2, 0)])
    found = Regions.of_tiles(tiles.boxes, tiles)  # the contract of the methods
    assert found.canvas.tolist() == [0, 0, 0, 1] and torch.equal(found.members, torch.eye(4, dtype=torch.bool))


# ---- detections


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_detections_equal_detectron2s_mapper(photos, flip):
    augmentations = [T.ResizeShortestEdge(80, 130), T.RandomFlip(prob=flip)]
    theirs = DatasetMapper(True, augmentations=augmentations, image_format="BGR")
    for index, record in enumerate(photos[:4]):
        ours, expected = detections(photos, augmentations)(index=index, epoch=0), theirs(record)
        assert torch.equal(ours["image"], expected["image"])
        found, wanted = ours["instances"], expected["instances"]
        assert torch.equal(found.gt_boxes.tensor, wanted.gt_boxes.tensor) and found.image_size == wanted.image_size
        assert found.gt_classes.tolist() == wanted.gt_classes.tolist() == [0, 1]  # neither the crowd nor the empty box
        keys = ("height", "width", "image_id", "file_name")
        assert [ours[k] for k in keys] == [record[k] for k in keys] == [expected[k] for k in keys]
    bare = {k: v for k, v in photos[0].items() if k != "annotations"}
    for record in (bare, bare | {"annotations": []}):
        empty = detections([record], augmentations)(index=0, epoch=0)["instances"]
        assert len(empty) == 0 and empty.gt_boxes.tensor.shape == (0, 4) and empty.gt_classes.dtype == torch.int64


def test_random_flips_differ_by_sample_and_leave_records_and_random_states_alone(photos):
    boxes = [list(a["bbox"]) for a in photos[0]["annotations"]]
    mapper = detections(photos[:1] * 12, [T.ResizeShortestEdge([30, 40, 50], 130, "choice"), T.RandomFlip()])
    states = np.random.get_state()[1].tolist(), random.getstate()
    samples = [mapper(index=i, epoch=0) for i in range(12)]
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states
    assert [a["bbox"] for a in photos[0]["annotations"]] == boxes
    again = [mapper(index=i, epoch=0) for i in reversed(range(12))][::-1]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(samples, again, strict=True))
    assert {s["image"].shape[1] for s in samples} == {30, 40, 50}
    flipped = {bool(s["instances"].gt_boxes.tensor[0, 0] > s["image"].shape[2] / 4) for s in samples}
    assert flipped == {True, False}


# ---- large-scale jittering

SIDE = 64


@pytest.fixture
def lsj(load_cfg):
    """``lsj("KEY", value, …)``: the augmentations of the shipped config at 64 px."""

    def augmentations(*overrides):
        cfg = load_cfg("FVLM_ViTB16_CLIP_COCO.yaml", "INPUT.LSJ.SIZE", SIDE, *overrides)
        return training_augmentations(cfg)

    return augmentations


def test_jittering_is_off_by_default_and_cuts_larger_scales_to_the_square_without_padding_smaller_ones(lsj, load_cfg):
    names = [[type(a).__name__ for a in lsj(*flip)] for flip in ((), ("INPUT.RANDOM_FLIP", "none"))]
    assert names == [["ResizeScale", "FixedSizeCrop", "RandomFlip"], ["ResizeScale", "FixedSizeCrop"]]
    assert isinstance(training_augmentations(load_cfg("Detic_C4.yaml"))[0], T.ResizeShortestEdge)

    def augmented(image, scale, seed=0):
        np.random.seed(seed)
        given = T.AugInput(image)
        T.AugmentationList(lsj("INPUT.LSJ.SCALE", [scale, scale], "INPUT.RANDOM_FLIP", "none"))(given)
        return given.image

    for scale in (0.1, 0.5, 1.0):
        image = augmented(np.zeros((100, 200, 3), np.uint8), scale)
        assert image.shape[:2] == (round(SIDE * scale / 2), round(SIDE * scale))  # ratio kept
    ramp = np.tile(np.linspace(0, 255, 100, dtype=np.uint8)[:, None, None], (1, 100, 3))
    found = [augmented(ramp, 2.0, seed) for seed in range(5)]
    assert all(image.shape[:2] == (SIDE, SIDE) for image in found)
    assert len({round(float(image.mean())) for image in found}) > 1  # another part of the image each time


def test_boxes_follow_the_image(lsj, photos):
    """A bright rectangle stays under its box, whatever scale, cut and flip; what is cut off has no box."""
    image = np.zeros((80, 120, 3), np.uint8)
    image[20:60, 30:90] = 255
    box = {"bbox": [30, 20, 90, 60], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    mapper = detections([photos[0] | {"annotations": [box]}], lsj("INPUT.LSJ.SCALE", [0.5, 2.0]), seed=3, stream=0)
    mapper.read = lambda *_: (mapper.records[0], SimpleNamespace(image=image, height=80, width=120))
    kept = 0
    for epoch in range(12):
        sample = mapper(index=0, epoch=epoch)
        found, boxes = sample["image"], sample["instances"].gt_boxes.tensor
        assert max(found.shape[1:]) <= SIDE
        bright = (found[0] > 127).nonzero()
        if len(boxes):
            kept += 1
            (y0, x0), (y1, x1) = bright.amin(0).tolist(), (bright.amax(0) + 1).tolist()
            assert torch.allclose(boxes[0], torch.tensor([x0, y0, x1, y1]).float(), atol=1.01)
    assert kept >= 6


# ---- masks and the styles of jittering

POLYGON = np.float32([10, 10, 50, 10, 50, 30, 30, 30, 30, 50, 10, 50])  # an L of 40 px a side, 20 px wide


def masked(record, **fields):
    """``record`` with an L-shaped mask and a triangle."""
    entries = ([10, 10, 40, 40], [POLYGON]), ([2, 2, 6, 6], [np.float32([2, 2, 8, 2, 2, 8])])
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": c, "segmentation": mask}
        for c, (box, mask) in enumerate(entries)
    ]
    return record | {"annotations": annotations} | fields


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_masks_equal_detectron2s_mapper(photos, mask_format, flip):
    record, augmentations = masked(photos[2]), [T.ResizeShortestEdge(100, 130), T.RandomFlip(prob=flip)]
    theirs = DatasetMapper(
        True, augmentations=augmentations, image_format="BGR", use_instance_mask=True, instance_mask_format=mask_format
    )
    found = detections([record], augmentations, mask_format=mask_format)(index=0, epoch=0)["instances"]
    expected = theirs(record)["instances"]
    assert torch.equal(found.gt_boxes.tensor, expected.gt_boxes.tensor) and type(found.gt_masks) is type(
        expected.gt_masks
    )
    if mask_format == "bitmask":
        assert torch.equal(found.gt_masks.tensor, expected.gt_masks.tensor)
    else:
        for mine, yours in zip(found.gt_masks.polygons, expected.gt_masks.polygons, strict=True):
            assert np.allclose(mine[0], yours[0])
    assert not detections([record], augmentations)(index=0, epoch=0)["instances"].has("gt_masks")
    assert np.array_equal(record["annotations"][0]["segmentation"][0], POLYGON)  # the record stays as it is


@pytest.mark.parametrize("kind", ["polygon", "bitmask", "run lengths"])
@pytest.mark.parametrize("style", ["efficientdet", "mmdet"])
def test_jittered_masks_stay_on_the_pixels_and_mmdets_boxes_on_the_masks(photos, load_cfg, style, kind):
    image = np.zeros((64, 64, 3), np.uint8)
    image[10:30, 10:50] = image[30:50, 10:30] = 255
    overrides = ("INPUT.LSJ.STYLE", style, "INPUT.LSJ.SIZE", 60, "INPUT.LSJ.SCALE", [0.6, 4.0])
    augmentations = training_augmentations(load_cfg("Detic_C4.yaml", *overrides))
    mask_format = kind if kind == "polygon" else "bitmask"
    mapper = detections([masked(photos[2], height=64, width=64)], augmentations, mask_format=mask_format)
    mapper.records[0]["annotations"].pop()
    if kind == "run lengths":
        runs = run_lengths.encode(np.asfortranarray(image[..., 0] // 255))
        mapper.records[0]["annotations"][0]["segmentation"] = runs
    mapper.read = lambda *_: (mapper.records[0], SimpleNamespace(image=image, height=64, width=64))
    differ, gone = 0, 0
    for epoch in range(40):
        sample = mapper(index=0, epoch=epoch)
        shown, found = sample["image"][0] > 127, sample["instances"]
        if not len(found):
            gone += 1
            assert not shown.any()
            continue
        mask = found.gt_masks
        mask = BitMasks.from_polygon_masks(mask, *shown.shape) if mask_format == "polygon" else mask
        assert (mask.tensor[0] != shown).float().mean() < 0.08
        tight = mask.get_bounding_boxes().tensor
        if style == "mmdet":
            assert torch.equal(found.gt_boxes.tensor, tight)
        differ += not torch.allclose(found.gt_boxes.tensor, tight, atol=2)
    # A cut through the L may leave a smaller mask than box, or nothing.
    assert gone < 20 and bool(differ) == (style == "efficientdet")


def test_a_side_that_vanishes_is_1_px_and_is_reported(make_photos, load_cfg):
    (record,) = make_photos([(12, 900)])
    record |= {"annotations": [{"bbox": [0, 0, 900, 12], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}]}
    overrides = ("INPUT.LSJ.STYLE", "efficientdet", "INPUT.LSJ.SIZE", 40, "INPUT.LSJ.SCALE", [0.2, 0.2])
    sample = detections([record], training_augmentations(load_cfg("Detic_C4.yaml", *overrides)))(index=0, epoch=0)
    assert sample["image"].shape == (3, 1, 8) and sample["instances"].gt_boxes.tensor[0, 2] == 8
    assert sample["skipped"] == [(record["file_name"], "jittered to a side of 0 px")]
