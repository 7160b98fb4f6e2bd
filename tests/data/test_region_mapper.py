"""Pictures with pseudo-labelled boxes: canvases, boxes and tags exactly, alone and in a joint batch."""

from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog

from clim.data.images import letterbox, read_image
from clim.data.loader import build_train_loader
from clim.data.region_mapper import RegionMapper
from clim.data.tiles import Tiles
from clim.errors import UserError
from clim.methods import Regions

SIZES = [(40, 60), (60, 40), (48, 48), (30, 64), (64, 36), (50, 50)]


@pytest.fixture(scope="module")
def records(make_photos):
    made = make_photos(SIZES, first_id=500)
    for i, record in enumerate(made):
        count = 1 + i % 3
        corners = np.arange(count)[:, None] * [2, 3] + [1, 4]
        record["boxes"] = np.hstack([corners, corners + [7.5, 12 + i]]).astype(np.float32)
        record["nouns"] = np.arange(count) * 10 + i
    DatasetCatalog.register("test_region_mapper", lambda: made)
    yield made
    DatasetCatalog.remove("test_region_mapper")


@pytest.mark.parametrize("index", range(len(SIZES)))
def test_canvas_and_tiles(records, index):
    record = records[index]
    mapper = RegionMapper(records, size=32, seed=0, stream=3, image_format="RGB")
    sample = mapper(index=index, epoch=0)
    expected, _ = letterbox(read_image(record["file_name"], fmt="RGB").image, 32)
    assert torch.equal(sample["image"], torch.from_numpy(expected).permute(2, 0, 1))
    assert (sample["height"], sample["width"], sample["skipped"]) == (32, 32, [])

    tiles, count = sample["tiles"], len(record["boxes"])
    scale = 32 / max(SIZES[index])
    assert tiles.boxes.dtype == torch.float32
    torch.testing.assert_close(tiles.boxes, torch.tensor(record["boxes"] * scale), rtol=1e-6, atol=0)
    assert tiles.canvas.tolist() == [0] * count and tiles.image_ids.tolist() == [500 + index] * count
    assert tiles.tags == [[int(noun)] for noun in record["nouns"]]
    assert len(tiles) == count and tiles.captions == [[]] * count


def test_nothing_is_random(records):
    def image(**key):
        return RegionMapper(records, size=24, seed=key.pop("seed"), stream=3)(index=1, **key)["image"]

    assert torch.equal(image(seed=0, epoch=0), image(seed=9, epoch=7))


def test_an_unreadable_picture_is_replaced(records):
    broken = [dict(records[0], file_name=records[0]["file_name"] + ".gone"), records[1]]
    for epoch in range(5):
        sample = RegionMapper(broken, size=24, seed=0, stream=3)(index=0, epoch=epoch)
        assert sample["tiles"].image_ids.unique().tolist() == [501]
        assert sample["tiles"].tags == [[int(noun)] for noun in records[1]["nouns"]]
        assert set(sample["skipped"]) == {(broken[0]["file_name"], "missing")}


def test_canvases_go_through_the_methods_contract(records):
    mapper = RegionMapper(records, size=32, seed=0, stream=3)
    tiles = Tiles.cat([mapper(index=i, epoch=0)["tiles"] for i in (2, 0)])
    regions = Regions.of_tiles(tiles.boxes, tiles)
    assert len(regions) == 4 and regions.canvas.tolist() == [0, 0, 0, 1]
    assert torch.equal(regions.members, torch.eye(4, dtype=torch.bool))
    assert tiles.tags == [[2], [12], [22], [0]]


SMALL = [
    "DATASETS.REGIONS", ("test_region_mapper",), "DATALOADER.REGIONS_PER_GPU", 2, "INPUT.REGIONS.SIZE", 32,
    "DATALOADER.DETECTION_PER_GPU", 0, "INPUT.CAPTION.SHORT_SIDE", 24, "INPUT.CAPTION.LONG_SIDE", 40,
    "INPUT.MOSAIC.SIZE", 48,
]  # fmt: skip


@pytest.fixture
def take(load_cfg, records):
    def taken(count, *overrides, start=0):
        cfg = load_cfg("mini/detic_clim.yaml", *SMALL, *overrides)
        return list(islice(build_train_loader(cfg, seed=3, start_iter=start), count))

    return taken


def test_regions_beside_pairs(take):
    """A joint batch holds all three; a row of pictures of different shapes needs no aspect groups."""
    for batch in take(3, "DATASETS.CAPTIONS", ("test_region_mapper",)):
        assert {k: len(v) for k, v in batch.items()} == {
            "detection": 0, "captions": 2, "mosaics": 2, "regions": 2, "skipped": 0,
        }  # fmt: skip
        assert all(sample["image"].shape == (3, 32, 32) for sample in batch["regions"])


ALONE = ["DATALOADER.CAPTIONS_PER_GPU", 0, "DATALOADER.MOSAICS_PER_GPU", 0]


def test_an_epoch_holds_every_picture_once_and_resumes(take):
    def ids(batches):
        return [int(s["tiles"].image_ids[0]) for b in batches for s in b["regions"]]

    whole = ids(take(6, *ALONE))
    assert sorted(whole[:6]) == sorted(whole[6:]) == list(range(500, 506)) and whole[:6] != whole[6:]
    assert ids(take(2, *ALONE, start=4)) == whole[8:]
    assert ids(take(6, *ALONE, "DATALOADER.NUM_WORKERS", 1)) == whole


def test_no_set_is_told(take):
    with pytest.raises(UserError, match="DATASETS.REGIONS = \\(\\) holds no image with a box"):
        take(1, *ALONE, "DATASETS.REGIONS", ())
