"""BARON whole: selection → reading → loss → queues, against a slow reading of every bag in every order."""

import itertools
from dataclasses import replace

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch.nn.functional import normalize

from clim.data.tiles import Tiles
from clim.errors import UserError
from clim.losses import matched_contrast
from clim.methods import Texts, build_method
from clim.methods.bags import BagRules, box_waves
from clim.methods.baron import Baron
from clim.text import build_text_tower

WORDS, WORD_DIM, DIM, ALL_ORDERS = 2, 16, 12, 24
RULES = BagRules(min_iof=0.3, topk=128, ratio=(0.25, 4.0), min_area=0.01, min_objectness=0.85, max_overlap=0.2, size=3)


@pytest.fixture(scope="module")
def tower(tiny_json):
    return build_text_tower(name=tiny_json("vit", text={"layers": 2}))


def method(**changes):
    torch.manual_seed(1)
    arguments = {
        "dim": DIM, "word_dim": WORD_DIM, "words": WORDS, "rules": RULES, "orders": ALL_ORDERS, "word_dropout": 0.0,
        "frequencies": 8, "frequency_base": 1.2, "temperature": 30.0, "queue_length": 64, "weight": 10.0,
    }  # fmt: skip
    return Baron(**(arguments | changes))


def tiles_of(boxes, ids, canvas=None):
    count = len(ids)
    return Tiles(
        boxes=torch.tensor(boxes), canvas=torch.tensor(canvas or [0] * count), image_ids=torch.tensor(ids),
        captions=[[f"caption {j} of {i}" for j in range(1 + i % 3)] for i in ids],
        drawn=[f"caption 0 of {i}" for i in ids], tags=[[]] * count,
    )  # fmt: skip


def proposals_of(*canvases):
    return [
        Instances(
            (100, 100),
            proposal_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
            objectness_logits=torch.arange(len(boxes), 0, -1.0) + 5,
        )
        for boxes in canvases
    ]


GRID = [[0.0, 0, 50, 50], [50.0, 0, 100, 50], [0.0, 50, 50, 100], [50.0, 50, 100, 100]]
# Two proposals in the first tile, one in the second, three in the third, none in the last.
INSIDE = [[5, 5, 25, 25], [60, 10, 90, 40], [10, 55, 25, 70], [30, 55, 45, 70], [30, 30, 45, 45], [10, 80, 30, 95]]
MOSAIC = tiles_of(GRID, [3, 1, 4, 5])
SINGLES = tiles_of([[0.0, 0, 90, 60], [0.0, 0, 64, 64]], [7, 8], [0, 1])


def texts_of(tiles, tower):
    return Texts(tiles, encoder=tower, class_embeddings=torch.zeros(3, WORD_DIM))


def embed(regions, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        role: torch.randn(len(r), WORDS * WORD_DIM, generator=generator).requires_grad_() for role, r in regions.items()
    }


def loss_of(baron, embeddings, regions, texts):
    return baron.losses(baron.read(embeddings, regions, texts), regions, texts)["loss_bag"]


def slow_bags(baron, tower, embeddings, regions, tiles):
    """(unit embedding, image id) of each tile's regions in all their orders, one sequence at a time."""
    bags = []
    for t, image_id in enumerate(tiles.image_ids.tolist()):
        frame = regions["tile"].boxes[t]
        words = []
        for role in ("proposal", "tile"):
            for row in regions[role].members[:, t].nonzero().squeeze(1).tolist():
                waves = box_waves(regions[role].boxes[row][None], frame[None], count=8, base=1.2)
                placed = embeddings[role][row] + baron.positional_embed(waves)[0]
                words.append(placed.view(WORDS, WORD_DIM))
        for order in itertools.permutations(words):
            sequence = torch.cat(order)[None]
            embedding = tower.encode_words(sequence, torch.tensor([sequence.shape[1]])).embedding
            bags.append((normalize(embedding[0], dim=0), image_id))
    return bags


def slow_captions(tower, tiles):
    return [
        (tower.encode([caption])[0], i)
        for captions, i in zip(tiles.captions, tiles.image_ids.tolist(), strict=True)
        for caption in captions
    ]


def contrast(bags, captions):
    rows = [(torch.stack([x for x, _ in part]), torch.tensor([i for _, i in part])) for part in (bags, captions)]
    return 10 * matched_contrast(*rows[0], *rows[1], scale=30.0)


# ---- the loss


def test_the_loss_of_two_sources_one_after_the_other(tower):
    """All orders of small bags, without dropout: nothing is left to chance. The queue holds the singles' bags."""
    baron = method()
    queued = ([], [])
    for tiles, proposals in ((SINGLES, proposals_of(INSIDE[:1], [])), (MOSAIC, proposals_of(INSIDE))):
        regions, texts = baron.select(tiles, proposals), texts_of(tiles, tower)
        embeddings = embed(regions)
        read = baron.read(embeddings, regions, texts)
        loss = baron.losses(read, regions, texts)["loss_bag"]
        bags = slow_bags(baron, tower, embeddings, regions, tiles)
        captions = slow_captions(tower, tiles)
        torch.testing.assert_close(loss, contrast(bags + queued[0], captions + queued[1]), rtol=1e-4, atol=1e-4)
        baron.update_queues(read, texts)
        queued = (bags + queued[0], captions + queued[1])
    assert len(bags) == 6 + 2 + 24 + 1  # orders of 3, 2, 4 and 1 regions


def test_captions_are_all_of_a_tile_not_the_drawn_one(tower):
    texts = texts_of(MOSAIC, tower)
    assert texts.all_caption_ids.tolist() == [3, 1, 1, 4, 4, 5, 5, 5]
    torch.testing.assert_close(texts.all_captions[4], tower.encode(["caption 1 of 4"])[0])


def test_a_dropped_word_is_not_read(tower):
    """All words are dropped but one of each region: a bag is what its regions begin with, in some order."""
    baron = method(word_dropout=1.0)
    regions = baron.select(MOSAIC, proposals_of(INSIDE))
    embeddings = embed(regions)
    words, owner = baron.placed_words(embeddings, regions)
    bags, tile = baron.read_bags(words, owner, texts_of(MOSAIC, tower))
    for t in range(4):
        mine, firsts = bags[tile == t], words[owner == t][:, 0]
        orders = torch.stack([torch.stack(order) for order in itertools.permutations(firsts)])
        read = tower.encode_words(orders, torch.full((len(orders),), len(firsts)))
        nearest = (mine @ normalize(read.embedding, dim=1).T).max(1)
        torch.testing.assert_close(nearest.values, torch.ones(len(mine)))
        assert len(nearest.indices.unique()) == len(orders)  # all of them are read


def test_a_bag_too_long_for_the_tower_is_told_at_once(tower):
    """Also where dropout would have made it short enough: it must not strike by chance."""
    baron = method(word_dropout=1.0, rules=replace(RULES, size=7))  # 8 regions of 2 words, and the tower reads 14
    regions = baron.select(SINGLES, proposals_of([], []))
    with pytest.raises(UserError, match="A sequence of 16 pseudo words is longer than the 14"):
        baron.read(embed(regions), regions, texts_of(SINGLES, tower))


def test_words_are_dropped_for_each_order_apart(tower):
    baron = method(word_dropout=0.5, orders=1)
    regions = baron.select(SINGLES, proposals_of(INSIDE[:3], []))
    words, owner = baron.placed_words(embed(regions), regions)
    torch.manual_seed(0)
    read = [baron.read_bags(words, owner, texts_of(SINGLES, tower))[0] for _ in range(3)]
    assert not torch.allclose(read[0], read[1]) and not torch.allclose(read[1], read[2])


def test_orders_and_dropout_come_from_torchs_random_state(tower):
    baron = method(word_dropout=0.5, orders=2)
    regions = baron.select(MOSAIC, proposals_of(INSIDE))
    embeddings = embed(regions)
    losses = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        losses.append(loss_of(baron, embeddings, regions, texts_of(MOSAIC, tower)).item())
    assert losses[0] == losses[1] != losses[2]


def test_gradients_reach_words_and_places_but_not_the_tower(tower):
    baron = method(orders=2)
    regions = baron.select(MOSAIC, proposals_of(INSIDE))
    embeddings = embed(regions)
    loss_of(baron, embeddings, regions, texts_of(MOSAIC, tower)).backward()
    assert all(rows.grad.abs().sum(1).gt(0).all() for rows in embeddings.values())
    assert all(p.grad.abs().sum() > 0 for p in baron.parameters())
    assert all(p.grad is None for p in tower.parameters())


def test_embeddings_in_half_precision_give_a_float32_loss(tower):
    baron = method(orders=2)
    regions = baron.select(SINGLES, proposals_of(INSIDE[:1], []))
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = {role: rows.bfloat16() for role, rows in embed(regions).items()}
        texts = texts_of(SINGLES, tower)
        read = baron.read(embeddings, regions, texts)
        loss = baron.losses(read, regions, texts)["loss_bag"]
    assert loss.dtype == torch.float32 and read["bag"].dtype == torch.float32


# ---- selection and queues


def test_a_bag_is_the_proposals_of_a_tile_and_the_tile():
    regions = method().select(MOSAIC, proposals_of(INSIDE))
    assert {role: len(r) for role, r in regions.items()} == {"proposal": 6, "tile": 4}
    assert regions["proposal"].members.sum(0).tolist() == [2, 1, 3, 0]
    assert torch.equal(regions["tile"].boxes, MOSAIC.boxes)


def test_tiles_without_any_proposal_are_bags_of_one_region(tower):
    baron = method()
    regions, texts = baron.select(SINGLES, proposals_of([], [])), texts_of(SINGLES, tower)
    read = baron.read(embed(regions), regions, texts)
    loss = baron.losses(read, regions, texts)["loss_bag"]
    assert len(regions["proposal"]) == 0 and loss.isfinite()
    assert read["image_id"].tolist() == [7, 8]


def test_losses_change_nothing_and_update_queues_keeps_bags_and_captions(tower):
    baron = method(orders=2)
    regions, texts = baron.select(MOSAIC, proposals_of(INSIDE)), texts_of(MOSAIC, tower)
    before = {name: b.clone() for name, b in baron.named_buffers()}
    read = baron.read(embed(regions), regions, texts)
    baron.losses(read, regions, texts)
    assert all(torch.equal(b, before[name]) for name, b in baron.named_buffers())
    baron.update_queues(read, texts)
    bags, ids = baron.bag_queue.read()
    assert ids.tolist() == [3, 3, 1, 1, 4, 4, 5] and torch.equal(bags, read["bag"])
    assert not bags.requires_grad
    captions, ids = baron.caption_queue.read()
    assert ids.tolist() == [3, 1, 1, 4, 4, 5, 5, 5] and torch.equal(captions, texts.all_captions)


def test_queues_are_no_part_of_a_checkpoint():
    assert set(method().state_dict()) == {
        f"positional_embed.{layer}.{kind}" for layer in (0, 1, 2) for kind in ("weight", "bias")
    }


def test_proposals_of_a_bag_lie_in_its_tile():
    regions = method().select(MOSAIC, proposals_of(INSIDE))
    for row in range(len(regions["proposal"])):
        tile = regions["tile"].boxes[regions["proposal"].members[row].int().argmax()]
        x0, y0, x1, y1 = regions["proposal"].boxes[row]
        assert tile[0] <= x0 and tile[1] <= y0 and x1 <= tile[2] and y1 <= tile[3]


# ---- config


def test_the_config_builds_it(load_cfg):
    baron = build_method(load_cfg("BARON_CLIM_C4.yaml"))
    assert baron.rules == BagRules(0.3, 128, (0.25, 4.0), 0.01, 0.85, 0.2, 10)
    assert [tuple(p.shape) for p in baron.positional_embed.parameters()] == [
        (512, 512), (512,), (512,), (512,), (2048, 512), (2048,),
    ]  # fmt: skip
    assert (baron.words, baron.orders, baron.word_dropout, baron.temperature, baron.weight) == (4, 4, 0.5, 30, 10)
    assert len(baron.bag_queue.image_ids) == len(baron.caption_queue.image_ids) == 1024


def test_it_needs_pseudo_words(load_cfg):
    with pytest.raises(UserError, match='is "cosine": set it to "pseudo_words"'):
        build_method(load_cfg("BARON_C4.yaml", "MODEL.OPEN_VOCAB.CLASSIFIER", "cosine"))
