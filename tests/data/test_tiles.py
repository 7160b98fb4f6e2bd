"""Batches of tiles: what is joined, and whose texts move."""

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


def test_cat_joins_in_order_and_numbers_the_canvases():
    batch = Tiles.cat(CANVASES)
    assert len(batch) == 7
    assert batch.image_ids.tolist() == [10, 11, 12, 13, 20, 30, 31]
    assert batch.canvas.tolist() == [0, 0, 0, 0, 1, 2, 2]
    assert batch.canvas.dtype == torch.int64
    assert batch.boxes.tolist() == [row for c in CANVASES for row in c.boxes.tolist()]
    assert batch.captions == [row for c in CANVASES for row in c.captions]
    assert batch.drawn == ["10a", "11a", "12a", "13a", "20a", "30a", "31a"]
    assert batch.tags == [[10], [11], [12], [13], [20], [30], [31]]


def test_cat_leaves_its_parts_alone():
    Tiles.cat(CANVASES)
    assert CANVASES[2].canvas.tolist() == [0, 0] and CANVASES[0].captions[0] == ["10a", "10b"]
    assert len(CANVASES[0]) == 4


def test_to_moves_every_tensor():
    moved = CANVASES[0].to("meta")
    assert {t.device.type for t in (moved.boxes, moved.canvas, moved.image_ids)} == {"meta"}
    assert (moved.captions, moved.drawn, moved.tags) == (CANVASES[0].captions, CANVASES[0].drawn, CANVASES[0].tags)


def test_a_plain_image_is_alone_on_its_canvas():
    assert Tiles.cat(CANVASES).alone.tolist() == [False] * 4 + [True] + [False] * 2


def test_rolled_texts_move_together_and_boxes_stay():
    given = CANVASES[0]
    moved = given.with_rolled_texts(1)
    assert moved.image_ids.tolist() == [13, 10, 11, 12]
    assert moved.captions == [[f"{i}a", f"{i}b"] for i in (13, 10, 11, 12)]
    assert moved.drawn == ["13a", "10a", "11a", "12a"] and moved.tags == [[13], [10], [11], [12]]
    assert torch.equal(moved.boxes, given.boxes) and torch.equal(moved.canvas, given.canvas)
    assert given.drawn == ["10a", "11a", "12a", "13a"]
