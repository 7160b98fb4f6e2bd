"""Records → network inputs: what is drawn, decoded, pasted and cropped, and what happens to unreadable images."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from clim.data import mappers
from clim.data.images import letterbox, read_image, resize
from clim.data.mappers import CanvasMapper, CropMapper, DetectionMapper, RecordMapper, RegionMapper
from clim.data.mosaic import fit_cell, fit_size, grid_cells, resized_crop
from clim.data.tiles import Tiles
from clim.errors import UserError
from clim.methods import Regions

SIZES = [(60, 90), (90, 60), (64, 64), (40, 120), (50, 70), (80, 30)] * 4
CROPS = {"scale": (0.9, 1.0), "ratio": (3 / 4, 4 / 3)}
DRAWN = {"seed": 1, "stream": 2}


@pytest.fixture(scope="module")
def photos(make_photos):
    """24 records with captions, boxes (one reaches outside, one is empty, one is a crowd) and pseudo-labels."""
    records = make_photos(SIZES)
    for i, record in enumerate(records):
        h, w = record["height"], record["width"]
        boxes = [[1, 2, w / 2, h / 3], [w / 4, h / 4, w, h], [5, 5, 0, 4], [0, 0, w / 3, h / 2]]
        record["annotations"] = [
            {"bbox": b, "bbox_mode": BoxMode.XYWH_ABS, "category_id": c, "iscrowd": int(c == 3)}
            for c, b in enumerate(boxes)
        ]
        corners = np.arange(1 + i % 3)[:, None] * [2, 3] + [1, 4]
        record["boxes"] = np.hstack([corners, corners + [7.5, 12 + i]]).astype(np.float32)
        record["nouns"] = np.arange(1 + i % 3) * 10 + i
    return records


def broken(records, *indices):
    """Copies of the records in which some images do not exist."""
    return [r | ({"file_name": r["file_name"] + ".gone"} if i in indices else {}) for i, r in enumerate(records)]


def canvases(records, **kwargs):
    return CanvasMapper(records, **{"grids": [2], "short": 96, "long": 96, "flip": 0.5} | DRAWN | kwargs)


def singles(records, **kwargs):
    return canvases(records, grids=[1], **kwargs)


def crops(records, **kwargs):
    return CropMapper(records, **{"size": 32, **CROPS} | DRAWN | kwargs)


def regions(records, **kwargs):
    return RegionMapper(records, **{"size": 32} | DRAWN | kwargs)


def detections(records, augmentations=(), **kwargs):
    return DetectionMapper(records, augmentations=augmentations, **DRAWN | kwargs)


def same(a, b):
    """Equality of two canvases, all fields."""
    return (
        torch.equal(a["image"], b["image"])
        and (a["height"], a["width"], a["skipped"]) == (b["height"], b["width"], b["skipped"])
        and all(torch.equal(getattr(a["tiles"], n), getattr(b["tiles"], n)) for n in ("boxes", "image_ids"))
        and all(getattr(a["tiles"], n) == getattr(b["tiles"], n) for n in ("captions", "drawn", "tags"))
    )


def pixels(record, size, *, flipped=False, fmt="BGR"):
    image = resize(read_image(record["file_name"], fmt=fmt).image, size)
    return torch.from_numpy((image[:, ::-1] if flipped else image).transpose(2, 0, 1).copy())


def parts(sample, records):
    """(record, box, pixels) of every tile of a canvas."""
    by_id, tiles = {r["image_id"]: r for r in records}, sample["tiles"]
    for (x0, y0, x1, y1), image_id in zip(tiles.boxes.int().tolist(), tiles.image_ids.tolist(), strict=True):
        yield by_id[image_id], (x0, y0, x1, y1), sample["image"][:, y0:y1, x0:x1]


# ---- all mappers


def test_a_sample_is_a_function_of_seed_stream_epoch_and_index(photos):
    records = broken(photos, *range(0, 24, 4))

    def mapper(**kwargs):
        return canvases(records, grids=[2, 3], permute_texts=True, **kwargs)

    first, other = mapper()(index=3, epoch=1), mapper()
    other(index=9, epoch=0)
    np.random.seed(5)
    torch.manual_seed(5)
    assert same(first, other(index=3, epoch=1))
    assert not same(first, other(index=3, epoch=2)) and not same(first, other(index=4, epoch=1))
    assert not any(same(first, mapper(**change)(index=3, epoch=1)) for change in ({"seed": 2}, {"stream": 1}))


@pytest.mark.parametrize("make", [canvases, singles, crops, regions, detections])
def test_an_unreadable_image_is_replaced_with_all_that_belongs_to_it(photos, tmp_path, make):
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
            assert (sample["image_id"], sample["image"].shape[1:]) == (103, SIZES[3])
    assert make(records)(index=3, epoch=0)["skipped"] == [] or make(records).square


@pytest.mark.parametrize(("make", "refused"), [(singles, False), (regions, True), (detections, True)])
def test_boxes_need_an_image_of_their_size(photos, make, refused):
    records = [photos[0] | {"height": 600, "width": 900}, photos[1]]
    reason = (records[0]["file_name"], "90x60 px, but annotated as 900x600")
    assert set(make(records)(index=0, epoch=0)["skipped"]) == ({reason} if refused else set())


def test_forty_nine_unreadable_images_in_a_row_are_survived_and_fifty_are_not(photos):
    mapper, skipped = RecordMapper(broken(photos[:2], 0), seed=1, stream=2), []
    draws = iter([0] * 48 + [1])
    record, _ = mapper.read(0, SimpleNamespace(integers=lambda _: next(draws)), skipped)
    assert record["image_id"] == photos[1]["image_id"] and len(skipped) == 49
    with pytest.raises(UserError, match="50 images in a row could not be read, the last one .*gone.*missing"):
        detections(broken(photos, *range(24)))(index=0, epoch=0)


# ---- canvases


@pytest.mark.parametrize("fmt", ["BGR", "RGB"])
def test_1x1_is_the_resized_image_and_fit_pastes_into_cells_and_pads(photos, fmt):
    for index, record in enumerate(photos[:6]):
        sample = singles(photos, short=40, long=70, flip=0.0, image_format=fmt)(index=index, epoch=0)
        size = fit_size(record["height"], record["width"], short=40, long=70)
        assert (sample["height"], sample["width"]) == size and sample["skipped"] == []
        assert sample["image"].dtype == torch.uint8 and torch.equal(sample["image"], pixels(record, size, fmt=fmt))
        assert sample["tiles"].boxes.tolist() == [[0, 0, size[1], size[0]]]
        assert sample["tiles"].image_ids.tolist() == [record["image_id"]]
    for n, index in ((2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1)):
        sample = canvases(photos, grids=[n], flip=0.0, pad_value=114, image_format=fmt)(index=index, epoch=0)
        assert sample["image"].shape == (3, 96, 96) and len(sample["tiles"]) == n * n
        assert sample["tiles"].image_ids[0] == photos[index]["image_id"]
        padding, cells = torch.ones(96, 96, dtype=torch.bool), grid_cells(n, size=(96, 96)).tolist()
        for cell, (record, (x0, y0, x1, y1), shown) in zip(cells, parts(sample, photos), strict=True):
            assert cell[0] <= x0 and cell[1] <= y0 and x1 <= cell[2] and y1 <= cell[3]
            size = fit_cell(record["height"], record["width"], cell=(cell[3] - cell[1], cell[2] - cell[0]))
            assert torch.equal(shown, pixels(record, size, fmt=fmt))
            padding[y0:y1, x0:x1] = False
        assert padding.any() and (sample["image"][:, padding] == 114).all()


def test_flips_mirror_each_image_for_itself(photos):
    seen = []
    for index in range(8):
        for record, _, shown in parts(canvases(photos)(index=index, epoch=0), photos):
            upright, flipped = (torch.equal(shown, pixels(record, shown.shape[1:], flipped=f)) for f in (False, True))
            assert upright or flipped
            seen.append(upright)
    assert 8 <= sum(seen) <= 24  # of 32 with probability 1/2
    assert any(0 < sum(seen[i : i + 4]) < 4 for i in range(0, 32, 4))  # not whole canvases


def test_a_crop_fills_its_cell_with_a_part_of_the_images_area(tmp_path):
    """The pixels of a ramp hold their y and x: the crop's slopes show its scale on both axes."""
    height, width = 120, 200
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(height)[:, None], np.arange(width)[None, :]
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    record = {"file_name": str(tmp_path / "ramp.png"), "height": height, "width": width, "image_id": 1}
    record |= {"captions": ["x"], "tags": []}
    mapper = canvases([record], filling="crop", crop_scale=(0.6, 0.9), flip=0.0, image_format="RGB", long=80)
    for epoch in range(5):
        sample = mapper(index=0, epoch=epoch)
        assert sample["tiles"].boxes.int().tolist() == grid_cells(2, size=(80, 80)).tolist()  # no padding
        for _, _, shown in parts(sample, [record]):
            tile = shown.float()
            rows, columns = tile[0, -1, 0] - tile[0, 0, 0], tile[1, 0, -1] - tile[1, 0, 0]
            area = (rows / 39 * 40) * (columns / 39 * 40) / (height * width)
            assert 0.6 - 0.05 <= area <= 0.9 + 0.05 and 3 / 4 - 0.05 <= columns / rows <= 4 / 3 + 0.05
    with pytest.raises(UserError, match="FILLING"):
        canvases([record], filling="stretch")


def test_grids_are_drawn_uniformly(photos, monkeypatch):
    monkeypatch.setattr(CanvasMapper, "read_tile", lambda self, *_: (photos[0], np.zeros((4, 4, 3), np.uint8)))
    mapper = canvases(photos, grids=[2, 3, 4])
    counts = [len(mapper(index=i % 24, epoch=i // 24)["tiles"]) for i in range(600)]
    assert {c: abs(counts.count(c) / 600 - 1 / 3) < 0.07 for c in set(counts)} == {4: True, 9: True, 16: True}


def test_texts_belong_to_their_tiles_unless_they_are_permuted(photos):
    by_id, drawn, by = {r["image_id"]: r for r in photos}, set(), set()
    for epoch in range(12):
        true, permuted = (canvases(photos, grids=[3], permute_texts=p)(index=5, epoch=epoch) for p in (False, True))
        tiles = true["tiles"]
        for i, image_id in enumerate(tiles.image_ids.tolist()):
            assert (tiles.captions[i], tiles.tags[i]) == (by_id[image_id]["captions"], by_id[image_id]["tags"])
            assert tiles.drawn[i] in tiles.captions[i]
        drawn.add(tiles.drawn[0])
        # All texts leave their tile, and nothing else changes.
        by |= {k for k in range(1, 9) if same(permuted, true | {"tiles": tiles.with_rolled_texts(k)})}
        assert not same(permuted, true)
    assert drawn == set(photos[5]["captions"])  # every caption comes up
    assert len(by) > 3  # drawn for every canvas
    assert same(*(singles(photos, permute_texts=p)(index=3, epoch=0) for p in (False, True)))


def test_partners_are_others_and_distinct_where_there_are_enough(photos):
    mapper, seen = canvases(photos, grids=[4]), set()
    for epoch in range(40):
        ids = mapper.draw_partners(7, 16, np.random.default_rng(epoch))
        assert ids[0] == 7 and len(set(ids)) == 16
        seen |= set(ids)
    assert seen == set(range(len(photos)))
    for seed in range(5):
        first, *others = canvases(photos[:3]).draw_partners(1, 16, np.random.default_rng(seed))
        assert first == 1 and len(others) == 15 and set(others) == {0, 2}
    assert canvases(photos[:1]).draw_partners(0, 4, np.random.default_rng(0)) == [0, 0, 0, 0]
    # From an index: all three neighbours, each once; two neighbours repeat.
    index = np.array([[(i + 1) % 24, (i + 2) % 24, (i + 3) % 24] for i in range(24)], dtype=np.int32)
    for i in (0, 5, 23):
        ids = (canvases(photos, partners=index)(index=i, epoch=0)["tiles"].image_ids - 100).tolist()
        assert ids[0] == i and sorted(ids[1:]) == sorted(index[i])
    short = canvases(photos, partners=np.array([[4, 9]] * 24, dtype=np.int32), grids=[3])
    ids = (short(index=2, epoch=0)["tiles"].image_ids - 100).tolist()
    assert ids[0] == 2 and set(ids[1:]) == {4, 9}


# ---- reduced decoding


@pytest.fixture
def decodes(monkeypatch):
    """(height, width) of every decoded image from now on."""
    sizes = []

    def reading(file_name, **kwargs):
        decoded = read_image(file_name, **kwargs)
        sizes.append(decoded.image.shape[:2])
        return decoded

    monkeypatch.setattr(mappers, "read_image", reading)
    return sizes


@pytest.mark.parametrize(
    "kwargs, expected",
    [
        ({"grids": [2], "long": 200}, (120, 160)),  # tiles 75 x 100 of a 480 x 640 photo: a quarter
        ({"grids": [4], "long": 128}, (60, 80)),  # 24 x 32: an eighth
        ({"grids": [1], "short": 60, "long": 80}, (60, 80)),  # an eighth
        ({"grids": [1], "short": 200, "long": 400}, (240, 320)),  # 200 x 267: a half
        ({"grids": [1], "short": 300, "long": 600}, (480, 640)),  # larger than a half
        ({"grids": [2], "long": 2000}, (480, 640)),  # larger than the photo
        # The crop's short side is .78 of the photo's or more, for 64 px: 82 rows are needed, 120 are decoded.
        ({"grids": [2], "long": 128, "filling": "crop", "crop_scale": (0.81, 1.0)}, (120, 160)),
        # At a quarter of the area the crop needs 148 rows: an eighth or quarter would be enlarged.
        ({"grids": [2], "long": 128, "filling": "crop", "crop_scale": (0.25, 1.0)}, (240, 320)),
    ],
)
def test_photos_are_decoded_no_larger_than_needed(make_photos, decodes, kwargs, expected):
    records = make_photos([(480, 640)], ext="jpg")
    image = canvases(records, **kwargs, flip=0.0)(index=0, epoch=0)["image"]
    assert set(decodes) == {expected}
    if kwargs["grids"] == [1]:  # a reduced decode shows the same image
        assert (image.float() - pixels(records[0], image.shape[1:]).float()).abs().max() < 12


@pytest.mark.parametrize("filling", ["fit", "crop"])
def test_no_tile_is_enlarged_from_a_reduced_decode(make_photos, decodes, filling, monkeypatch):
    shown = []
    monkeypatch.setattr(mappers, "resize", lambda im, size: shown.append((im.shape[:2], size)) or resize(im, size))
    records = make_photos([(300, 500), (501, 299), (640, 480)], ext="jpg")
    mapper = canvases(records, grids=[2, 3, 4], filling=filling, crop_scale=(0.5, 1.0), long=200)
    for epoch in range(6):
        mapper(index=epoch % 3, epoch=epoch)
    assert any(size[0] < 200 for size in decodes)  # reduced decodes did happen
    for source, target in shown:
        assert source[0] >= target[0] - 1 and source[1] >= target[1] - 1  # crops are whole pixels


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
        scaled = torch.tensor(record["boxes"] * (32 / max(SIZES[index])))
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
        return mappers.training_augmentations(cfg)

    return augmentations


def test_jittering_is_off_by_default_and_cuts_larger_scales_to_the_square_without_padding_smaller_ones(lsj, load_cfg):
    names = [[type(a).__name__ for a in lsj(*flip)] for flip in ((), ("INPUT.RANDOM_FLIP", "none"))]
    assert names == [["ResizeScale", "FixedSizeCrop", "RandomFlip"], ["ResizeScale", "FixedSizeCrop"]]
    assert isinstance(mappers.training_augmentations(load_cfg("Detic_C4.yaml"))[0], T.ResizeShortestEdge)

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
