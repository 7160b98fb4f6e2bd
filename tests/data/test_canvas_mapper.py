"""Image-caption records → canvases: what is drawn, decoded, pasted and told."""

import numpy as np
import pytest
import torch
from PIL import Image

from clim.data import canvas_mapper, record_mapper
from clim.data.canvas_mapper import CanvasMapper
from clim.data.images import read_image, resize
from clim.data.mosaic import fit_cell, fit_size, grid_cells
from clim.errors import UserError

SIZES = [(60, 90), (90, 60), (64, 64), (40, 120), (50, 70), (80, 30)] * 4


@pytest.fixture(scope="module")
def photos(make_photos):
    return make_photos(SIZES)


def canvases(records, **kwargs):
    arguments = {"grids": [2], "short": 96, "long": 96, "flip": 0.5, "seed": 1, "stream": 2} | kwargs
    return CanvasMapper(records, **arguments)


def same(a, b):
    """Equality of two canvases, all fields."""
    return (
        torch.equal(a["image"], b["image"])
        and (a["height"], a["width"], a["skipped"]) == (b["height"], b["width"], b["skipped"])
        and all(torch.equal(getattr(a["tiles"], n), getattr(b["tiles"], n)) for n in ("boxes", "image_ids"))
        and (a["tiles"].captions, a["tiles"].drawn, a["tiles"].tags)
        == (b["tiles"].captions, b["tiles"].drawn, b["tiles"].tags)
    )


def pixels(record, size, *, flipped=False, fmt="BGR"):
    picture = resize(read_image(record["file_name"], fmt=fmt).image, size)
    return torch.from_numpy((picture[:, ::-1] if flipped else picture).transpose(2, 0, 1).copy())


# ---- canvases


def test_1x1_is_the_resized_picture_unpadded(photos):
    mapper = canvases(photos, grids=[1], short=40, long=70, flip=0.0)
    for index, record in enumerate(photos[:6]):
        sample = mapper(index=index, epoch=0)
        size = fit_size(record["height"], record["width"], short=40, long=70)
        assert (sample["height"], sample["width"]) == size
        assert sample["image"].dtype == torch.uint8
        assert torch.equal(sample["image"], pixels(record, size))
        assert sample["tiles"].boxes.tolist() == [[0, 0, size[1], size[0]]]
        assert sample["tiles"].image_ids.tolist() == [record["image_id"]]
        assert sample["skipped"] == []


@pytest.mark.parametrize("fmt", ["BGR", "RGB"])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_fit_pastes_resized_pictures_into_their_cells_and_pads_the_rest(photos, n, fmt):
    by_id = {r["image_id"]: r for r in photos}
    mapper = canvases(photos, grids=[n], flip=0.0, pad_value=114, image_format=fmt)
    for index in range(3):
        sample = mapper(index=index, epoch=0)
        tiles, image = sample["tiles"], sample["image"]
        assert image.shape == (3, 96, 96) and len(tiles) == n * n
        assert tiles.image_ids[0] == photos[index]["image_id"]
        padding = torch.ones(96, 96, dtype=torch.bool)
        cells = grid_cells(n, size=(96, 96))
        for box, cell, image_id in zip(
            tiles.boxes.int().tolist(), cells.tolist(), tiles.image_ids.tolist(), strict=True
        ):
            x0, y0, x1, y1 = box
            assert cell[0] <= x0 and cell[1] <= y0 and x1 <= cell[2] and y1 <= cell[3]
            record = by_id[image_id]
            size = fit_cell(record["height"], record["width"], cell=(cell[3] - cell[1], cell[2] - cell[0]))
            assert torch.equal(image[:, y0:y1, x0:x1], pixels(record, size, fmt=fmt))
            padding[y0:y1, x0:x1] = False
        assert padding.any() and (image[:, padding] == 114).all()


def test_flips_mirror_each_picture_for_itself(photos):
    by_id = {r["image_id"]: r for r in photos}
    seen = []
    for index in range(8):
        sample = canvases(photos)(index=index, epoch=0)
        for box, image_id in zip(sample["tiles"].boxes.int().tolist(), sample["tiles"].image_ids.tolist(), strict=True):
            x0, y0, x1, y1 = box
            tile = sample["image"][:, y0:y1, x0:x1]
            upright = torch.equal(tile, pixels(by_id[image_id], (y1 - y0, x1 - x0)))
            assert upright or torch.equal(tile, pixels(by_id[image_id], (y1 - y0, x1 - x0), flipped=True))
            seen.append(upright)
    assert 8 <= sum(seen) <= 24  # of 32 with probability 1/2
    assert any(0 < sum(seen[i : i + 4]) < 4 for i in range(0, 32, 4))  # not whole canvases


def test_crop_fills_each_cell(photos):
    mapper = canvases(photos, grids=[3], filling="crop", crop_scale=(0.5, 1.0), long=100)
    sample = mapper(index=0, epoch=0)
    assert sample["tiles"].boxes.int().tolist() == grid_cells(3, size=(100, 100)).tolist()
    assert not (sample["image"] == 114).all(dim=0).any()


def test_a_crop_shows_a_part_of_the_pictures_area(tmp_path):
    """The pixels of a ramp hold their y and x: the crop's slopes tell its scale on both axes."""
    height, width = 120, 200
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(height)[:, None], np.arange(width)[None, :]
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    record = {"file_name": str(tmp_path / "ramp.png"), "height": height, "width": width, "image_id": 1}
    record |= {"captions": ["x"], "tags": []}
    mapper = canvases([record], filling="crop", crop_scale=(0.6, 0.9), flip=0.0, image_format="RGB", long=80)
    for epoch in range(5):
        image = mapper(index=0, epoch=epoch)["image"].float()
        for y0, x0 in ((0, 0), (0, 40), (40, 0), (40, 40)):
            tile = image[:, y0 : y0 + 40, x0 : x0 + 40]
            rows, columns = tile[0, -1, 0] - tile[0, 0, 0], tile[1, 0, -1] - tile[1, 0, 0]
            area = (rows / 39 * 40) * (columns / 39 * 40) / (height * width)
            assert 0.6 - 0.05 <= area <= 0.9 + 0.05 and 3 / 4 - 0.05 <= columns / rows <= 4 / 3 + 0.05


def test_grids_are_drawn_uniformly(photos, monkeypatch):
    monkeypatch.setattr(CanvasMapper, "read_tile", lambda self, *_: (photos[0], np.zeros((4, 4, 3), np.uint8)))
    mapper = canvases(photos, grids=[2, 3, 4])
    counts = [len(mapper(index=i % 24, epoch=i // 24)["tiles"]) for i in range(600)]
    assert {c: abs(counts.count(c) / 600 - 1 / 3) < 0.07 for c in set(counts)} == {4: True, 9: True, 16: True}


def test_texts_belong_to_their_tiles(photos):
    by_id = {r["image_id"]: r for r in photos}
    drawn = set()
    for epoch in range(12):
        tiles = canvases(photos, grids=[3])(index=5, epoch=epoch)["tiles"]
        for i, image_id in enumerate(tiles.image_ids.tolist()):
            assert tiles.captions[i] == by_id[image_id]["captions"]
            assert tiles.tags[i] == by_id[image_id]["tags"]
            assert tiles.drawn[i] in tiles.captions[i]
        drawn.add(tiles.drawn[0])
    assert drawn == set(photos[5]["captions"])  # every caption comes up


def test_permuted_texts_all_leave_their_tile_and_nothing_else_changes(photos):
    by = set()
    for index in range(12):
        true = canvases(photos, grids=[3])(index=index, epoch=0)
        found = canvases(photos, grids=[3], permute_texts=True)(index=index, epoch=0)
        assert torch.equal(found["image"], true["image"])
        assert torch.equal(found["tiles"].boxes, true["tiles"].boxes)
        (k,) = (k for k in range(1, 9) if same(found, true | {"tiles": true["tiles"].with_rolled_texts(k)}))
        by.add(k)
    assert len(by) > 3  # drawn for every canvas


def test_a_single_image_keeps_its_texts(photos):
    true, found = (canvases(photos, grids=[1], permute_texts=p)(index=3, epoch=0) for p in (False, True))
    assert same(true, found)


def test_a_sample_is_a_function_of_seed_stream_epoch_and_index(photos):
    kwargs = {"grids": [2, 3], "permute_texts": True}
    first = canvases(photos, **kwargs)(index=3, epoch=1)
    other = canvases(photos, **kwargs)
    other(index=9, epoch=0)
    np.random.seed(5)
    torch.manual_seed(5)
    assert same(first, other(index=3, epoch=1))
    assert not same(first, other(index=3, epoch=2))
    assert not same(first, other(index=4, epoch=1))
    assert not same(first, canvases(photos, seed=2, **kwargs)(index=3, epoch=1))
    assert not same(first, canvases(photos, stream=1, **kwargs)(index=3, epoch=1))


# ---- partners


def test_partners_are_others_and_distinct_where_there_are_enough(photos):
    mapper = canvases(photos, grids=[4])
    seen = set()
    for epoch in range(40):
        ids = mapper.draw_partners(7, 16, np.random.default_rng(epoch))
        assert ids[0] == 7 and len(set(ids)) == 16
        seen |= set(ids)
    assert seen == set(range(len(photos)))


def test_partners_repeat_where_there_are_too_few(photos):
    mapper = canvases(photos[:3])
    drawn = [mapper.draw_partners(1, 16, np.random.default_rng(s)) for s in range(5)]
    assert all(d[0] == 1 and len(d) == 16 and set(d[1:]) == {0, 2} for d in drawn)


def test_a_single_record_is_its_own_partner(photos):
    assert canvases(photos[:1]).draw_partners(0, 4, np.random.default_rng(0)) == [0, 0, 0, 0]


def test_partners_come_from_the_index(photos):
    index = np.array([[(i + 1) % 24, (i + 2) % 24, (i + 3) % 24] for i in range(24)], dtype=np.int32)
    mapper = canvases(photos, partners=index)
    for i in (0, 5, 23):
        ids = mapper(index=i, epoch=0)["tiles"].image_ids.tolist()
        assert ids[0] == photos[i]["image_id"]
        assert sorted(ids[1:]) == sorted(photos[j]["image_id"] for j in index[i])  # all three, each once


def test_a_short_index_repeats_its_neighbours(photos):
    mapper = canvases(photos, partners=np.array([[4, 9]] * 24, dtype=np.int32), grids=[3])
    ids = mapper(index=2, epoch=0)["tiles"].image_ids.tolist()
    assert ids[0] == photos[2]["image_id"] and set(ids[1:]) == {photos[4]["image_id"], photos[9]["image_id"]}


# ---- damaged pictures


@pytest.mark.parametrize("grids", [[1], [3]])
def test_unreadable_pictures_are_replaced_deterministically_and_reported(photos, grids):
    records = [r | {"file_name": r["file_name"] + ".gone"} if i % 2 == 0 else r for i, r in enumerate(photos)]
    for index in (0, 6):
        sample, again = (canvases(records, grids=grids)(index=index, epoch=4) for _ in range(2))
        assert same(sample, again)
        assert (records[index]["file_name"], "missing") in sample["skipped"]
        readable = {r["image_id"] for r in records[1::2]}
        assert set(sample["tiles"].image_ids.tolist()) <= readable
        # The replacement brings its own texts.
        by_id = {r["image_id"]: r for r in records}
        for i, image_id in enumerate(sample["tiles"].image_ids.tolist()):
            assert sample["tiles"].captions[i] == by_id[image_id]["captions"]


def test_texts_hold_whatever_the_size_of_the_picture(photos):
    records = [photos[0] | {"height": 400, "width": 600}]
    assert canvases(records, grids=[1])(index=0, epoch=0)["skipped"] == []


@pytest.mark.parametrize(
    "bad, message", [({"filling": "stretch"}, "FILLING"), ({"grids": []}, "GRIDS"), ({"grids": [0, 2]}, "GRIDS")]
)
def test_wrong_settings_are_told(photos, bad, message):
    with pytest.raises(UserError, match=message):
        canvases(photos, **bad)


# ---- reduced decoding


@pytest.fixture
def decodes(monkeypatch):
    """(asked at least, decoded size) of every picture read from now on."""
    calls = []

    def reading(file_name, *, fmt, at_least=None):
        decoded = read_image(file_name, fmt=fmt, at_least=at_least)
        calls.append((at_least, decoded.image.shape[:2]))
        return decoded

    monkeypatch.setattr(record_mapper, "read_image", reading)
    return calls


@pytest.mark.parametrize(
    "kwargs, expected",
    [
        ({"grids": [2], "long": 200}, (120, 160)),  # tiles 75 x 100 of a 480 x 640 photo: a quarter
        ({"grids": [4], "long": 128}, (60, 80)),  # 24 x 32: an eighth
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
    canvases(records, **kwargs)(index=0, epoch=0)
    assert {size for _, size in decodes} == {expected}


@pytest.mark.parametrize("filling", ["fit", "crop"])
def test_no_tile_is_enlarged_from_a_reduced_decode(make_photos, decodes, filling, monkeypatch):
    shown = []
    real = canvas_mapper.resize
    monkeypatch.setattr(canvas_mapper, "resize", lambda im, size: shown.append((im.shape[:2], size)) or real(im, size))
    records = make_photos([(300, 500), (501, 299), (640, 480)], ext="jpg")
    mapper = canvases(records, grids=[2, 3, 4], filling=filling, crop_scale=(0.5, 1.0), long=200)
    for epoch in range(6):
        mapper(index=epoch % 3, epoch=epoch)
    assert any(size[0] < 200 for _, size in decodes)  # reduced decodes did happen
    for source, target in shown:
        assert source[0] >= target[0] - 1 and source[1] >= target[1] - 1  # crops are whole pixels


def test_a_reduced_decode_shows_the_same_picture(make_photos):
    (record,) = make_photos([(480, 640)], ext="jpg")
    tile = canvases([record], grids=[1], short=60, long=80, flip=0.0)(index=0, epoch=0)["image"].float()
    assert (tile - pixels(record, (60, 80)).float()).abs().max() < 12
