"""What every method is given: regions of tiles, and the texts of a batch."""

import pytest
import torch

from clim.data.tiles import Tiles
from clim.errors import UserError
from clim.methods import Method, Regions, Texts

DIM, CLASSES = 6, 5


def tiles_of(boxes, *, canvas=None, tags=None, captions=None):
    count = len(boxes)
    captions = captions or [[f"caption of {i}"] for i in range(count)]
    return Tiles(
        boxes=torch.tensor(boxes, dtype=torch.float32), canvas=torch.tensor(canvas or [0] * count),
        image_ids=torch.arange(10, 10 + count), captions=captions, drawn=[c[-1] for c in captions],
        tags=tags or [[] for _ in range(count)],
    )  # fmt: skip


QUARTERS = [[0, 0, 50, 50], [50, 0, 100, 50], [0, 50, 50, 100], [50, 50, 100, 100]]


@pytest.fixture
def texts(hash_tower):
    """``texts(tiles)``; ``texts.tower`` remembers what it was asked."""

    def make(tiles):
        return Texts(tiles, encoder=make.tower, class_embeddings=torch.zeros(CLASSES + 1, DIM))

    make.tower = hash_tower(DIM)
    return make


# ---- regions


def test_every_tile_is_a_region():
    tiles = tiles_of([[0, 0, 100, 100]] * 2, canvas=[0, 1])
    regions = Regions.of_tiles(tiles.boxes, tiles)
    assert len(regions) == 2 and regions.members.tolist() == [[True, False], [False, True]]
    assert regions.boxes.tolist() == tiles.boxes.tolist()


# ---- texts


def test_captions_are_encoded_once_and_in_the_order_of_tiles(texts, hash_tower):
    captions = [["a dog", "two dogs"], ["a cat"], ["a cow", "cows", "a dog"]]
    made = texts(tiles_of(QUARTERS[:3], captions=captions))
    for _ in range(2):
        assert torch.equal(made.drawn, hash_tower(DIM).encode(["two dogs", "a cat", "a dog"]))
        assert torch.equal(made.all_captions, hash_tower(DIM).encode(sum(captions, [])))
    assert texts.tower.asked == [["two dogs", "a cat", "a dog"], sum(captions, [])]
    assert made.all_caption_ids.tolist() == [10, 10, 11, 12, 12, 12]


def test_tag_targets_join_the_tags_of_members(texts):
    tiles = tiles_of(QUARTERS, tags=[[0], [], [4, 0], [2]])
    members = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    assert texts(tiles).tag_targets(members).tolist() == [
        [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0],
    ]  # fmt: skip


def test_tags_of_other_classes_are_told(texts):
    tiles = tiles_of(QUARTERS[:1], tags=[[4, 5]])
    with pytest.raises(UserError, match="has tag 5, but the detector 5 classes: DATASETS.CAPTIONS and MODEL"):
        texts(tiles).tag_targets(torch.ones(1, 1, dtype=torch.bool))


# ---- methods


def test_a_method_that_says_nothing_else_needs_proposals_and_keeps_nothing():
    method = Method()
    assert method.needs_proposals and method.pools == "boxes" and method.joint
    embeddings = {"tile": torch.zeros(1, 2)}
    assert method.read(embeddings, {}, None) is embeddings
    method.update_queues(embeddings, None)
    method.after_update()
    assert method.state_dict() == {}
    with pytest.raises(NotImplementedError):
        method.select(None, None)
    with pytest.raises(NotImplementedError):
        method.losses({}, {}, None)
