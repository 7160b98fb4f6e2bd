"""Batches of tiles: how canvases are joined, and whose texts move."""

import torch

from clim.data.tiles import Tiles


def tiles(*ids):
    """Tiles of one canvas."""
    count = len(ids)
    return Tiles(
        boxes=torch.arange(4.0 * count).reshape(count, 4) + ids[0],
        canvas=torch.zeros(count, dtype=torch.int64),
        image_ids=torch.tensor(ids),
        captions=[[f"{i}a", f"{i}b"] for i in ids],
        drawn=[f"{i}a" for i in ids],
        tags=[[i] for i in ids],
    )


CANVASES = [tiles(10, 11, 12, 13), tiles(20), tiles(30, 31)]


def test_cat_joins_in_order_numbers_the_canvases_and_leaves_its_parts_alone():
    batch, ids = Tiles.cat(CANVASES), [10, 11, 12, 13, 20, 30, 31]
    assert len(batch) == 7 and batch.image_ids.tolist() == ids
    assert batch.canvas.tolist() == [0, 0, 0, 0, 1, 2, 2] and batch.canvas.dtype == torch.int64
    assert batch.alone.tolist() == [False] * 4 + [True] + [False] * 2
    assert batch.counts == [4, 1, 2] and CANVASES[2].counts == [2] and batch.to("cpu").counts == [4, 1, 2]
    assert batch.boxes.tolist() == [row for c in CANVASES for row in c.boxes.tolist()]
    assert batch.captions == [[f"{i}a", f"{i}b"] for i in ids]
    assert batch.drawn == [f"{i}a" for i in ids] and batch.tags == [[i] for i in ids]
    assert CANVASES[2].canvas.tolist() == [0, 0] and CANVASES[0].captions[0] == ["10a", "10b"]


def test_tiles_on_a_device_know_their_counts_without_asking_it():
    """Values of "meta" cannot be read at all."""
    moved = Tiles.cat(CANVASES).to("meta")
    assert moved.counts == [4, 1, 2] and moved.alone.device.type == "meta"


def test_a_caption_is_redrawn_uniformly_from_torchs_random_state():
    batch, draws = Tiles.cat(CANVASES), []
    for seed in [*range(200), 0]:
        torch.manual_seed(seed)
        draws.append(batch.redrawn().drawn)
    assert draws[0] == draws[-1]
    for captions, of_tile in zip(batch.captions, zip(*draws, strict=True), strict=True):
        assert set(of_tile) == set(captions) and 70 < of_tile.count(captions[0]) < 130


def test_to_moves_every_tensor():
    moved = CANVASES[0].to("meta")
    assert {t.device.type for t in (moved.boxes, moved.canvas, moved.image_ids)} == {"meta"}
    assert (moved.captions, moved.drawn, moved.tags) == (CANVASES[0].captions, CANVASES[0].drawn, CANVASES[0].tags)


def test_rolled_texts_move_together_and_boxes_stay():
    given, expected = CANVASES[0], tiles(13, 10, 11, 12)
    moved = given.with_rolled_texts(1)
    assert torch.equal(moved.image_ids, expected.image_ids)
    assert (moved.captions, moved.drawn, moved.tags) == (expected.captions, expected.drawn, expected.tags)
    assert torch.equal(moved.boxes, given.boxes) and torch.equal(moved.canvas, given.canvas)
    assert given.drawn == ["10a", "11a", "12a", "13a"]
