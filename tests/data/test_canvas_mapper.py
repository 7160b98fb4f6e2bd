"""Records → canvases and single tiles: what is drawn, decoded, pasted and cropped."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clim.data import images, mappers
from clim.data.images import read_image, resize
from clim.data.jittering import STYLES, Jittering
from clim.data.loader import build_mappers
from clim.data.mappers import CanvasMapper, CropMapper
from clim.data.mosaic import fit_cell, fit_size, grid_cells
from clim.errors import UserError
from clim_commands.shrink import make_copy


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


def test_a_sample_is_a_function_of_seed_stream_epoch_and_index(photos, canvases, broken):
    records = broken(photos, *range(0, 24, 4))

    def mapper(**kwargs):
        return canvases(records, grids=[2, 3], permute_texts=True, **kwargs)

    first, other = mapper()(index=3, epoch=1), mapper()
    other(index=9, epoch=0)
    sent = pickle.loads(pickle.dumps(mapper(), protocol=5))  # to a worker that is no fork; its arrays cannot be resized
    assert same(first, sent(index=3, epoch=1))
    np.random.seed(5)
    torch.manual_seed(5)
    assert same(first, other(index=3, epoch=1))
    assert not same(first, other(index=3, epoch=2)) and not same(first, other(index=4, epoch=1))
    assert not any(same(first, mapper(**change)(index=3, epoch=1)) for change in ({"seed": 2}, {"stream": 1}))


@pytest.mark.parametrize("fmt", ["BGR", "RGB"])
def test_1x1_is_the_resized_image_and_fit_pastes_into_cells_and_pads(photos, fmt, canvases):
    for index, record in enumerate(photos[:6]):
        sample = canvases(photos, grids=[1], short=40, long=70, flip=0.0, image_format=fmt)(index=index, epoch=0)
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


def test_single_images_take_each_scale_equally_often_and_one_scale_draws_nothing(photos, canvases):
    def singles(**scales):
        return [canvases(photos, grids=[1], short=64, **scales)(index=i, epoch=0) for i in range(60)]

    by_default, one = singles(), singles(scales=[1.0])
    assert all(same(a, b) for a, b in zip(by_default, one, strict=True))
    for scale in (1.0, 0.5):
        for i, (sample, record) in enumerate(zip(singles(scales=[scale]), photos * 3, strict=False)):
            size = fit_size(record["height"], record["width"], short=64 * scale, long=96 * scale)
            assert sample["image"].shape[1:] == size and sample["tiles"].boxes.tolist() == [[0, 0, *size[::-1]]], i
    small = sum(max(sample["image"].shape) <= 48 for sample in singles(scales=[1.0, 0.5, 0.5, 0.5]))
    assert 36 <= small <= 54  # of 60; the mean is 45


def test_flips_mirror_each_image_for_itself(photos, canvases):
    seen = []
    for index in range(8):
        for record, _, shown in parts(canvases(photos)(index=index, epoch=0), photos):
            upright, flipped = (torch.equal(shown, pixels(record, shown.shape[1:], flipped=f)) for f in (False, True))
            assert upright or flipped
            seen.append(upright)
    assert 8 <= sum(seen) <= 24  # of 32 with probability 1/2
    assert any(0 < sum(seen[i : i + 4]) < 4 for i in range(0, 32, 4))  # not whole canvases


def test_a_crop_fills_its_cell_with_a_part_of_the_images_area(tmp_path, canvases):
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


def test_grids_are_drawn_uniformly(photos, monkeypatch, canvases):
    monkeypatch.setattr(CanvasMapper, "read_tile", lambda self, *_: (photos[0], np.zeros((4, 4, 3), np.uint8), (4, 4)))
    mapper = canvases(photos, grids=[2, 3, 4])
    counts = [len(mapper(index=i % 24, epoch=i // 24)["tiles"]) for i in range(600)]
    assert {c: abs(counts.count(c) / 600 - 1 / 3) < 0.07 for c in set(counts)} == {4: True, 9: True, 16: True}


def test_texts_belong_to_their_tiles_unless_they_are_permuted(photos, canvases):
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
    assert same(*(canvases(photos, grids=[1], permute_texts=p)(index=3, epoch=0) for p in (False, True)))


def test_partners_are_others_and_distinct_where_there_are_enough(photos, canvases):
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
def test_photos_are_decoded_no_larger_than_needed(make_photos, decodes, kwargs, expected, canvases):
    records = make_photos([(480, 640)], ext="jpg")
    image = canvases(records, **kwargs, flip=0.0)(index=0, epoch=0)["image"]
    assert set(decodes) == {expected}
    if kwargs["grids"] == [1]:  # a reduced decode shows the same image
        assert (image.float() - pixels(records[0], image.shape[1:]).float()).abs().max() < 12


@pytest.mark.parametrize("filling", ["fit", "crop"])
def test_no_tile_is_enlarged_from_a_reduced_decode(make_photos, decodes, filling, monkeypatch, canvases):
    shown = []

    def keep(im, size, **into):
        return shown.append((im.shape[:2], size)) or resize(im, size, **into)

    monkeypatch.setattr(images, "resize", keep)
    records = make_photos([(300, 500), (501, 299), (640, 480)], ext="jpg")
    mapper = canvases(records, grids=[2, 3, 4], filling=filling, crop_scale=(0.5, 1.0), long=200)
    for epoch in range(6):
        mapper(index=epoch % 3, epoch=epoch)
    assert any(size[0] < 200 for size in decodes)  # reduced decodes did happen
    for source, target in shown:
        assert source[0] >= target[0] - 1 and source[1] >= target[1] - 1  # crops are whole pixels


# ---- jittered pairs


@pytest.mark.parametrize("style", STYLES)
def test_jittered_singles_are_cuts_and_tiles_fit_such_cuts_into_their_cells(photos, canvases, style):
    jitter = Jittering(style, side=40, scale=(0.5, 1.5))
    sizes = set()
    for index, record in enumerate(photos[:12]):
        single = canvases(photos, grids=[1], flip=0.0, jitter=jitter)(index=index, epoch=0)
        rng = np.random.default_rng([1, 2, 0, index])
        rng.choice([1])  # the grid
        transform = jitter.transform(record["height"], record["width"], jitter.draw(rng))
        expected = transform.apply_image(read_image(record["file_name"]).image)
        assert torch.equal(single["image"], torch.from_numpy(expected.transpose(2, 0, 1).copy()))
        assert single["tiles"].boxes.tolist() == [[0, 0, *expected.shape[1::-1]]]
        sizes.add(expected.shape[:2])
        canvas = canvases(photos, grids=[3], flip=0.0, filling="jitter", jitter=jitter)(index=index, epoch=0)
        cells = grid_cells(3, size=(96, 96)).tolist()
        for cell, (x0, y0, x1, y1) in zip(cells, canvas["tiles"].boxes.int().tolist(), strict=True):
            assert cell[0] <= x0 and cell[1] <= y0 and x1 <= cell[2] and y1 <= cell[3]
            assert x1 - x0 == 32 or y1 - y0 == 32  # fitted, whatever its scale
    assert len(sizes) > 8 and all(max(size) <= 40 for size in sizes)


def test_the_config_jitters_singles_and_mosaics_apart(photos, load_cfg, registered):
    overrides = [
        "DATASETS.CAPTIONS",
        (registered(*photos),),
        "INPUT.LSJ.STYLE",
        "mmdet",
        "INPUT.CAPTION.JITTER_SIZE",
        48,
    ]

    def jitters(*more):
        found = build_mappers(load_cfg("mini/detic_clim.yaml", *overrides, *more), ["captions", "mosaics"], seed=1)
        return [mapper.jitter and (mapper.jitter.style, mapper.jitter.side) for mapper in found.values()]

    assert jitters() == [("mmdet", 48), None]
    assert jitters("INPUT.MOSAIC.FILLING", "jitter") == [("mmdet", 48)] * 2
    with pytest.raises(UserError, match="INPUT.CAPTION.JITTER_SIZE above 0"):
        jitters("INPUT.MOSAIC.FILLING", "jitter", "INPUT.CAPTION.JITTER_SIZE", 0)


# ---- small copies


@pytest.fixture
def large(make_photos, tmp_path, monkeypatch):
    """(records of photos, the entry of ``copies``, names of the files that are read from now on)."""
    records, read = make_photos([(480, 640), (640, 427), (427, 640), (1501, 999), (300, 380)], ext="jpg"), []
    folder = Path(records[0]["file_name"]).parent
    for record in records:
        make_copy(os.path.basename(record["file_name"]), images=folder, copies=tmp_path / "copies")
    assert sorted(path.name for path in (tmp_path / "copies").iterdir()) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    spy = lambda name, **options: (read.append(os.fspath(name)), read_image(name, **options))[1]  # noqa: E731
    monkeypatch.setattr(mappers, "read_image", spy)
    return records, (folder, tmp_path / "copies"), read


@pytest.mark.parametrize(
    "options, copied",
    [
        ({"grids": [2], "long": 800}, {0, 1, 2, 3}),  # tiles of 400 px
        ({"grids": [2], "long": 804}, set()),  # 402 px
        ({"grids": [3], "long": 800}, {0, 1, 2, 3}),
        ({"grids": [1], "short": 300, "long": 400}, {0, 1, 2, 3}),
        ({"grids": [1], "short": 400, "long": 667}, set()),
        ({"grids": [4], "long": 800, "filling": "crop"}, {0, 1, 2, 3}),
        ({"grids": [3], "long": 800, "filling": "crop"}, set()),  # crops of 267 px come from 433 px and more
        ({"grids": [3], "long": 800, "filling": "jitter", "jitter": Jittering("mmdet", side=300, scale=(0.5, 1))},
         {0, 1, 2, 3}),
        ({"size": 120, "scale": (0.5, 1.0), "ratio": (3 / 4, 4 / 3)}, {0, 1, 2, 3}),
    ],
)  # fmt: skip
def test_tiles_from_copies_have_the_same_boxes_texts_and_nearly_the_same_pixels(large, canvases, options, copied):
    """Crops are drawn in decoded pixels, so their windows, and what is drawn after them, may differ a little."""
    records, folders, read = large
    make, crops = canvases, "size" in options or options.get("filling") == "crop"
    if "size" in options:
        make = lambda records, **more: CropMapper(records, seed=1, stream=2, **more)  # noqa: E731
    for index in range(5):
        whole = make(records, **options)(index=index, epoch=0)
        read.clear()
        small = make(records, copies=[folders], **options)(index=index, epoch=0)
        asked = {int(Path(name).stem) for name in read if Path(name).parent == folders[1]}
        shown = set(small["tiles"].image_ids.tolist())
        assert asked == {number for number in copied if number + 100 in shown}
        assert torch.equal(whole["tiles"].boxes, small["tiles"].boxes)
        assert torch.equal(whole["tiles"].image_ids, small["tiles"].image_ids)
        if not (asked and crops):
            assert same(whole, small | {"image": whole["image"]})
            difference = (whole["image"].float() - small["image"].float()).abs()
            assert difference.mean() < 1.5 if asked else torch.equal(whole["image"], small["image"])
        assert len(read) == len(small["tiles"])  # a copy is read in place of its image


def test_images_are_read_where_a_copy_is_missing_damaged_or_of_another_image(large, canvases):
    records, (folder, copies), _ = large
    (copies / "0.jpg").unlink()
    (copies / "1.jpg").write_bytes((copies / "1.jpg").read_bytes()[:2000])
    os.replace(copies / "3.jpg", copies / "2.jpg")
    options = {"grids": [2], "long": 400}
    whole, small = canvases(records, **options), canvases(records, copies=[(folder, copies)], **options)
    assert all(same(whole(index=i, epoch=0), small(index=i, epoch=0)) for i in range(5))
    # Neither do copies belong to another folder whose name begins in the same way.
    other = canvases(records, copies=[(str(folder)[:-1], copies)], **options)
    assert all(same(whole(index=i, epoch=0), other(index=i, epoch=0)) for i in range(5))


def test_the_config_names_folders_of_copies_and_refuses_those_without(large, load_cfg, registered, tmp_path):
    records, folders, _ = large
    keys = ["DATASETS.CAPTIONS", (registered(*records),), "INPUT.COPIES"]

    def found(*pairs):
        return build_mappers(load_cfg("mini/detic_clim.yaml", *keys, [*pairs]), ["captions", "mosaics"], seed=1)

    pair = [str(folder) for folder in folders]
    assert all(mapper.read_copy(records[0], at_least=(9, 9)) for mapper in found(pair).values())
    with pytest.raises(UserError, match="INPUT.COPIES has no copy of .*0.jpg, nor of other images: correct its paths"):
        found([pair[0], str(tmp_path / "gone")])
    assert not found()["mosaics"].copies
