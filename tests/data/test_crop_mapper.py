"""Random resized crops: inside the picture, of the asked area and shape, resized as CLIP's preprocessing does."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clim.data.crop_mapper import CropMapper
from clim.data.mosaic import resized_crop


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crops")
    rng = np.random.default_rng(0)
    records = []
    for i, (height, width) in enumerate([(90, 120), (300, 200), (40, 400)]):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        records.append(
            {"file_name": str(path), "height": height, "width": width, "image_id": 10 + i, "captions": ["a", "b"]}
        )
    return records


def mapper(records, **changes):
    options = {"size": 32, "scale": (0.9, 1.0), "ratio": (3 / 4, 4 / 3), "seed": 0, "stream": 1}
    return CropMapper(records, **(options | changes))


@settings(max_examples=200, deadline=None)
@given(height=st.integers(10, 600), width=st.integers(10, 600), low=st.floats(0.05, 1.0), seed=st.integers(0, 2**32))
def test_a_crop_has_the_asked_area_and_shape_or_is_the_largest_central_one(height, width, low, seed):
    x0, y0, x1, y1 = resized_crop(
        height, width, scale=(low, 1.0), ratio=(3 / 4, 4 / 3), rng=np.random.default_rng(seed)
    )
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    w, h = x1 - x0, y1 - y0
    # half a pixel of rounding on either side
    assert (w + 0.5) / (h - 0.5) >= 3 / 4 and (w - 0.5) / (h + 0.5) <= 4 / 3
    central = abs(2 * x0 + w - width) <= 1 and abs(2 * y0 + h - height) <= 1
    largest = w == width or h == height
    assert (w + 0.5) * (h + 0.5) >= low * height * width or (central and largest)


def test_a_wide_picture_gives_its_central_part(records):
    assert resized_crop(40, 400, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3), rng=np.random.default_rng(0)) == (
        173, 0, 226, 40
    )  # fmt: skip


def test_the_sample_is_one_tile_of_the_resized_crop(records):
    make = mapper(records, image_format="RGB")
    for index, record in enumerate(records):
        sample = make(index=index, epoch=3)
        rng = np.random.default_rng([0, 1, 3, index])
        box = resized_crop(record["height"], record["width"], scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3), rng=rng)
        picture = Image.open(record["file_name"]).crop(box).resize((32, 32), Image.Resampling.BICUBIC)
        expected = torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())
        assert torch.equal(sample["image"], expected) and sample["image"].dtype == torch.uint8
        tiles = sample["tiles"]
        assert tiles.boxes.tolist() == [[0, 0, 32, 32]] and tiles.image_ids.tolist() == [record["image_id"]]
        assert tiles.drawn[0] in record["captions"] and tiles.tags == [[]]
        assert torch.equal(make(index=index, epoch=3)["image"], sample["image"])
        if index == 0:  # the others are too long for any choice
            assert not torch.equal(make(index=index, epoch=4)["image"], sample["image"])


def test_a_missing_picture_is_replaced_and_told(records):
    broken = [{**records[0], "file_name": "nowhere.png"}, *records[1:]]
    sample = mapper(broken)(index=0, epoch=0)
    assert sample["skipped"] == [("nowhere.png", "missing")]
    assert sample["tiles"].image_ids[0] in (11, 12)


@pytest.mark.parametrize("size, long_side", [(32, 90), (64, 200), (224, 640)])
def test_reduced_decoding_leaves_every_crop_the_pixels_it_needs(records, size, long_side, monkeypatch):
    asked = {}

    def read_image(file_name, *, fmt, at_least):
        asked["at_least"] = at_least
        raise StopIteration

    monkeypatch.setattr("clim.data.record_mapper.read_image", read_image)
    record = {**records[0], "height": 4 * long_side // 5, "width": long_side}
    with pytest.raises(StopIteration):
        mapper([record], size=size, scale=(0.5, 1.0)).map(0, np.random.default_rng(0), [])
    height, width = asked["at_least"]
    if (height, width) != (record["height"], record["width"]):
        for seed in range(50):
            x0, y0, x1, y1 = resized_crop(
                height, width, scale=(0.5, 1.0), ratio=(3 / 4, 4 / 3), rng=np.random.default_rng(seed)
            )
            assert min(x1 - x0, y1 - y0) >= size - 1
