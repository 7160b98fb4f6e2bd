"""What all mappers share: the random stream of a sample, and what happens to pictures that cannot be read."""

from pathlib import Path

import numpy as np
import pytest

from clim.data.record_mapper import RecordMapper
from clim.errors import UserError


class Plain(RecordMapper):
    """A mapper that draws a number before it reads its picture."""

    def __init__(self, records, *, seed=1, stream=2):
        super().__init__(records, seed=seed, stream=stream, image_format="BGR")

    def map(self, index, rng, skipped):
        drawn = rng.random()
        record, decoded = self.read(index, rng, skipped, self.any_record(rng))
        return {"drawn": drawn, "image_id": record["image_id"], "image": decoded.image}


class Annotated(Plain):
    annotated = True


@pytest.fixture(scope="module")
def photos(make_photos):
    return make_photos([(60, 90), (90, 60), (64, 64)] * 8)


def broken(photos, *indices):
    """Copies of the records in which some pictures do not exist."""
    return [r | ({"file_name": r["file_name"] + ".gone"} if i in indices else {}) for i, r in enumerate(photos)]


def test_a_sample_is_a_function_of_seed_stream_epoch_and_index(photos):
    records = broken(photos, *range(0, 24, 2))

    def sample(index, epoch, **kwargs):
        sample = Plain(records, **kwargs)(index=index, epoch=epoch)
        return sample["drawn"], sample["image_id"], sample["skipped"]

    first = sample(4, 1)
    np.random.seed(5)
    assert sample(4, 1) == first
    others = [sample(4, 2), sample(5, 1), sample(4, 1, seed=2), sample(4, 1, stream=1)]
    assert len({drawn for drawn, *_ in (first, *others)}) == 5


def test_a_missing_picture_is_replaced_and_told(photos):
    records = broken(photos, *range(1, 24))
    sample = Plain(records)(index=7, epoch=0)
    assert sample["image_id"] == photos[0]["image_id"] and sample["image"].shape == (60, 90, 3)
    assert sample["skipped"][0] == (records[7]["file_name"], "missing")
    assert set(sample["skipped"]) <= {(r["file_name"], "missing") for r in records[1:]}
    assert Plain(records)(index=0, epoch=0)["skipped"] == []


def test_a_truncated_picture_is_replaced(photos, tmp_path):
    data = Path(photos[0]["file_name"]).read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    records = [photos[0] | {"file_name": str(tmp_path / "half.png")}, photos[1]]
    (skipped,) = set(Plain(records)(index=0, epoch=0)["skipped"])
    assert skipped == (str(tmp_path / "half.png"), "truncated")


def test_fifty_unreadable_pictures_in_a_row_are_the_users_mistake(photos):
    with pytest.raises(UserError, match="50 pictures in a row could not be read, the last one .*gone.*missing"):
        Plain(broken(photos, *range(24)))(index=0, epoch=0)


def test_forty_nine_unreadable_pictures_in_a_row_are_survived(photos):
    mapper, draws = Plain(broken(photos, 0)), iter([0] * 48 + [1])
    skipped = []
    record, _ = mapper.read(0, np.random.default_rng(0), skipped, lambda: next(draws))
    assert record["image_id"] == photos[1]["image_id"] and len(skipped) == 49


def test_a_picture_of_another_size_than_its_boxes_were_drawn_on_is_replaced(photos):
    records = [photos[0] | {"height": 600, "width": 900}, photos[1]]
    sample = Annotated(records)(index=0, epoch=0)
    assert sample["image_id"] == records[1]["image_id"]
    assert set(sample["skipped"]) == {(records[0]["file_name"], "90x60 px, but annotated as 900x600")}
    assert Plain(records)(index=0, epoch=0)["skipped"] == []  # without boxes any size is right
