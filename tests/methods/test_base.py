"""What every method is given: regions of tiles, and the texts of a batch."""

import pytest
import torch

from clim.errors import UserError
from clim.methods import Method, Regions, Texts

DIM, CLASSES = 6, 5
QUARTERS = [[0, 0, 50, 50], [50, 0, 100, 50], [0, 50, 50, 100], [50, 50, 100, 100]]


def texts(tiles, tower=None):
    return Texts(tiles, encoder=tower, class_embeddings=torch.zeros(CLASSES + 1, DIM))


def test_captions_are_encoded_once_and_in_the_order_of_tiles(tiles_of, hash_tower):
    captions, tower = [["a dog", "two dogs"], ["a cat"], ["a cow", "cows", "a dog"]], hash_tower(DIM)
    made = texts(tiles_of(QUARTERS[:3], captions=captions, ids=[10, 11, 12]), tower)
    for _ in range(2):
        assert torch.equal(made.drawn, hash_tower(DIM).encode(["two dogs", "a cat", "a dog"]))
        assert torch.equal(made.all_captions, hash_tower(DIM).encode(sum(captions, [])))
    assert tower.asked == [["two dogs", "a cat", "a dog"], sum(captions, [])]
    assert made.all_caption_ids.tolist() == [10, 10, 11, 12, 12, 12]


def test_redrawn_texts_are_encoded_anew_unless_there_is_no_choice(tiles_of, hash_tower):
    given = texts(tiles_of(QUARTERS, captions=[[f"{i}, {j}" for j in range(30)] for i in range(4)]), hash_tower(DIM))
    redrawn, single = given.redrawn(), texts(tiles_of(QUARTERS))
    assert redrawn.tiles.drawn != given.tiles.drawn and redrawn.class_embeddings is given.class_embeddings
    assert torch.equal(redrawn.drawn, hash_tower(DIM).encode(redrawn.tiles.drawn))
    assert single.redrawn() is single


def test_tag_targets_join_the_tags_of_members(tiles_of):
    tiles = tiles_of(QUARTERS, tags=[[0], [], [4, 0], [2]])
    members = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    assert texts(tiles).tag_targets(members).tolist() == [
        [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0],
    ]  # fmt: skip
    with pytest.raises(UserError, match="DATASETS.CAPTIONS and MODEL.VOCABULARY"):
        texts(tiles_of(QUARTERS[:1], tags=[[4, 5]])).tag_targets(torch.ones(1, 1, dtype=torch.bool))


def test_the_defaults_of_a_method_and_its_regions(tiles_of):
    method, embeddings = Method(), {"tile": torch.zeros(1, 2)}
    tiles = tiles_of([[0, 0, 100, 100]] * 2, canvas=[0, 1])
    regions = Regions.of_tiles(tiles.boxes, tiles)
    assert len(regions) == 2 and regions.members.tolist() == [[True, False], [False, True]]
    assert torch.equal(regions.boxes, tiles.boxes) and torch.equal(regions.canvas, tiles.canvas)
    for rows in (torch.tensor([1]), torch.tensor([False, True])):
        assert regions[rows].canvas.tolist() == [1] and regions[rows].members.tolist() == [[False, True]]
    assert method.needs_proposals and method.pools == "boxes" and method.joint
    assert method.read(embeddings, {}, None) is embeddings
    assert method.refine(tiles, {"tile": regions}, {"tile": tiles.boxes + 1})["tile"] is regions
    assert not method.redraws_captions
    method.update_queues(embeddings, None)
    method.after_update()
    assert method.state_dict() == {}
