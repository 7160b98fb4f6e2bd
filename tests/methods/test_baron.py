"""BARON: bags against loops, then selection → reading → loss → queues against a slow reading of every bag."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from clim.errors import UserError
from clim.losses import matched_contrast
from clim.methods import Texts, build_method
from clim.methods.baron import BagRules, Baron, draw_bags, draw_orders, encode_positions, filter_proposals
from clim.text import build_text_tower

RULES = BagRules(min_iof=0.3, topk=128, ratio=[0.25, 4.0], min_area=0.01, min_objectness=0.85, nms=0.2, proposals=10)
SURE = 5.0  # logit of an objectness of .993
TILE = [10.0, 20.0, 110.0, 120.0]
ROW = [[20.0 * i, 0, 20.0 * i + 15, 15] for i in range(10)]  # boxes side by side


def kept(boxes, logits=None, rules=RULES):
    logits = [SURE - 0.001 * i for i in range(len(boxes))] if logits is None else logits
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return filter_proposals(boxes, torch.tensor(logits), torch.tensor(TILE), rules).tolist()


# ---- filter_proposals


def area(box):
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def slow_kept(boxes, logits, rules):
    passed, chosen = [], []
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        large = area(boxes[i]) / area(TILE) > rules.min_area
        sure = 1 / (1 + math.exp(-logits[i])) > rules.min_objectness
        if rules.ratio[0] < (x1 - x0) / (y1 - y0) < rules.ratio[1] and large and sure:
            passed.append(i)
    for i in passed or [0]:
        shared = [area([*map(max, boxes[i][:2], boxes[j][:2]), *map(min, boxes[i][2:], boxes[j][2:])]) for j in chosen]
        areas = [area(boxes[i]) + area(boxes[j]) for j in chosen]
        if all(s / (a - s) <= rules.nms for s, a in zip(shared, areas, strict=True)):
            chosen.append(i)
    return chosen


@st.composite
def boxes_inside(draw):
    """Corners 7 px apart: shares are ratios of small numbers, and no threshold of the test is one."""
    x0, y0 = draw(st.integers(0, 12)), draw(st.integers(0, 12))
    w, h = draw(st.integers(1, 13 - x0)), draw(st.integers(1, 13 - y0))
    return [10.0 + 7 * x0, 20.0 + 7 * y0, 10.0 + 7 * (x0 + w), 20.0 + 7 * (y0 + h)]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(boxes_inside(), min_size=1, max_size=9),
    st.lists(st.floats(-1, 6), min_size=9, max_size=9, unique=True),
    st.sampled_from([0.2137, 0.5521]),
)
def test_the_rules_against_a_loop(boxes, logits, overlap):
    logits = sorted(torch.tensor(logits[: len(boxes)]).tolist(), reverse=True)
    rules = replace(RULES, nms=overlap, min_area=0.0101)
    assert kept(boxes, logits, rules) == slow_kept(boxes, logits, rules)


def test_bounds_of_shape_and_size_are_exclusive():
    """1 : 4, 4 : 1 and a hundredth of the tile are out; a little less extreme they are in."""
    best = [[60, 70, 100, 110]]
    for x0, y0, x1, y1 in ([20, 30, 30, 70], [20, 30, 60, 40], [20, 30, 30, 40]):
        assert kept([*best, [x0, y0, x1, y1]]) == [0]
        assert kept([*best, [x0, y0, x1 + 1, y1 + 1]]) == [0, 1]


# ---- draw_bags


def test_each_tile_has_its_own_proposals_clipped_to_it(tiles_of, proposals_of):
    proposals = proposals_of([[10, 10, 30, 30], [40, 10, 80, 40], [60, 5, 75, 20], [20, 30, 60, 50]])
    proposals[0].proposal_boxes.tensor.requires_grad_()
    bags = draw_bags(tiles_of([[0, 0, 50, 50], [50, 0, 100, 50]]), proposals, replace(RULES, nms=0.9))
    assert not bags.boxes.requires_grad
    by_tile = [sorted(bags.boxes[bags.members[:, t]].tolist()) for t in range(2)]
    assert by_tile == [[[10, 10, 30, 30], [20, 30, 50, 50]], [[50, 10, 80, 40], [60, 5, 75, 20]]]
    assert (bags.members.sum(1) == 1).all() and bags.canvas.tolist() == [0] * 4

    tiles = tiles_of([[0, 0, 90, 90], [0, 0, 90, 90], [90, 0, 180, 90], [0, 0, 90, 90]], canvas=[2, 0, 0, 1])
    bags = draw_bags(tiles, proposals_of([[100, 10, 140, 50]], [], [[5, 5, 50, 50]]), RULES)  # canvases do not mix
    assert bags.boxes.tolist() == [[100, 10, 140, 50], [5, 5, 50, 50]]
    assert bags.members.tolist() == [[False, False, True, False], [True, False, False, False]]
    assert bags.canvas.tolist() == [0, 2]
    bags = draw_bags(tiles, proposals_of([], [], []), RULES)
    assert bags.boxes.shape == (0, 4) and bags.canvas.shape == (0,) and bags.members.shape == (0, 4)


def test_only_the_best_by_score_are_looked_at_and_at_most_as_many_as_allowed_are_drawn(tiles_of, proposals_of):
    tiles, proposals = tiles_of([[0, 0, 200, 100]]), proposals_of(ROW)
    assert sorted(draw_bags(tiles, proposals, RULES).boxes.tolist()) == ROW  # one image: one tile with all proposals
    assert sorted(draw_bags(tiles, proposals, replace(RULES, topk=4)).boxes.tolist()) == ROW[:4]
    torch.manual_seed(0)
    counts = Counter()
    draws = [draw_bags(tiles, proposals, replace(RULES, proposals=3)).boxes[:, 0].tolist() for _ in range(600)]
    for drawn in draws:
        assert len(set(drawn)) == 3
        counts.update(drawn)
    torch.manual_seed(0)
    assert draw_bags(tiles, proposals, replace(RULES, proposals=3)).boxes[:, 0].tolist() == draws[0]
    # 180 of each expected; 4 standard deviations of a binomial(600, .3) are 45
    assert len(counts) == 10 and all(135 < n < 225 for n in counts.values())


# ---- draw_orders


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=6, unique=True), st.integers(1, 8), st.integers(0, 99))
def test_orders_are_different_permutations(members, count, seed):
    torch.manual_seed(seed)
    orders = [tuple(order.tolist()) for order in draw_orders(members, count=count)]
    assert len(orders) == len(set(orders)) == min(count, math.factorial(len(members)))
    assert all(sorted(order) == sorted(members) for order in orders)


def test_every_order_is_as_likely():
    torch.manual_seed(0)
    counts = Counter(tuple(o.tolist()) for _ in range(1500) for o in draw_orders([4, 7, 9], count=2))
    assert set(counts) == set(itertools.permutations([4, 7, 9]))
    assert all(abs(n - 500) < 4 * (1500 * 2 / 9) ** 0.5 for n in counts.values())


# ---- encode_positions


def slow_positions(box, frame, count, base):
    width, height = frame[2] - frame[0], frame[3] - frame[1]
    centre = ((box[0] + box[2]) / 2 - frame[0]) / width, ((box[1] + box[3]) / 2 - frame[1]) / height
    found = []
    for x in (*centre, (box[2] - box[0]) / width, (box[3] - box[1]) / height):
        for i in range(count):
            angle = 2 * math.pi * x * base ** (i // 2 - count / 4)
            found.append(math.sin(angle) if i % 2 == 0 else math.cos(angle))
    return found


@pytest.mark.parametrize("count, base", [(8, 1.2), (128, 1.2), (4, 2.0)])
def test_positions_against_a_loop(count, base):
    boxes = torch.tensor([[12.0, 30.0, 60.0, 44.0], [10.0, 20.0, 110.0, 70.0], [10.0, 20.0, 10.0, 20.0]])
    frames = torch.tensor([TILE, [10.0, 20.0, 110.0, 70.0], TILE])
    expected = [slow_positions(b, f, count, base) for b, f in zip(boxes.tolist(), frames.tolist(), strict=True)]
    # angles reach 2π · 1.2³¹ ≈ 1,800, of which float32 keeps four decimals
    found = encode_positions(boxes, frames, count=count, base=base)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=2e-3)
    assert encode_positions(boxes[:0], frames[:0], count=count, base=base).shape == (0, 4 * count)


# ---- the whole method

WORDS, WORD_DIM, DIM, ALL_ORDERS = 2, 16, 12, 24
GRID = [[0.0, 0, 50, 50], [50.0, 0, 100, 50], [0.0, 50, 50, 100], [50.0, 50, 100, 100]]
# Two proposals in the first tile, one in the second, three in the third, none in the last.
INSIDE = [[5, 5, 25, 25], [60, 10, 90, 40], [10, 55, 25, 70], [30, 55, 45, 70], [30, 30, 45, 45], [10, 80, 30, 95]]


@pytest.fixture(scope="module")
def tower(tiny_json):
    return build_text_tower(name=tiny_json("vit", text={"layers": 2}))


@pytest.fixture(scope="module")
def mosaic_and_singles(tiles_of):
    found = []
    for boxes, canvas, ids in ((GRID, [0] * 4, [3, 1, 4, 5]), ([[0, 0, 90, 60], [0, 0, 64, 64]], [0, 1], [7, 8])):
        captions = [[f"caption {j} of {i}" for j in range(1 + i % 3)] for i in ids]
        found.append(tiles_of(boxes, canvas=canvas, ids=ids, captions=captions))
    return found


@pytest.fixture
def run(tower, proposals_of):
    """``run(baron, tiles, boxes of canvas 0, …)`` → regions, embeddings, texts, the result of ``read``, the loss."""

    def make(baron, tiles, *boxes):
        regions = baron.select(tiles, proposals_of(*boxes))
        generator = torch.Generator().manual_seed(0)
        embeddings = {r: torch.randn(len(boxes), WORDS * WORD_DIM, generator=generator) for r, boxes in regions.items()}
        texts = Texts(tiles, encoder=tower, class_embeddings=torch.zeros(3, WORD_DIM))
        [rows.requires_grad_() for rows in embeddings.values()]
        read = baron.read(embeddings, regions, texts)
        return regions, embeddings, texts, read, baron.losses(read, regions, texts)["loss_bag"]

    return make


def method(**changes):
    torch.manual_seed(1)
    arguments = {
        "dim": DIM, "word_dim": WORD_DIM, "words": WORDS, "rules": replace(RULES, proposals=3), "orders": ALL_ORDERS,
        "word_dropout": 0.0, "frequencies": 8, "frequency_base": 1.2, "temperature": 30.0, "queue_length": 64,
        "weight": 10.0,
    }  # fmt: skip
    return Baron(**(arguments | changes))


def slow_bags(baron, tower, embeddings, regions, tiles):
    """(unit embedding, image id) of each tile's regions in all their orders, one sequence at a time."""
    bags = []
    for t, image_id in enumerate(tiles.image_ids.tolist()):
        frame, words = regions["tile"].boxes[t], []
        for role in ("proposal", "tile"):
            for row in regions[role].members[:, t].nonzero().squeeze(1).tolist():
                position = encode_positions(regions[role].boxes[row][None], frame[None], count=8, base=1.2)
                placed = embeddings[role][row] + baron.positional_embed(position)[0]
                words.append(placed.view(WORDS, WORD_DIM))
        for order in itertools.permutations(words):
            sequence = torch.cat(order)[None]
            embedding = tower.encode_words(sequence, torch.tensor([sequence.shape[1]])).embedding
            bags.append((normalize(embedding[0], dim=0), image_id))
    return bags


def test_the_loss_of_two_sources_one_after_the_other(run, tower, mosaic_and_singles):
    """All orders of small bags, without dropout: nothing is random. All captions of a tile count. Losses change no
    queue; ``update_queues`` stores the singles' bags and captions."""
    baron, queued, (mosaic, singles) = method(), ([], []), mosaic_and_singles
    for tiles, boxes in ((singles, [INSIDE[:1], []]), (mosaic, [INSIDE])):
        before = {name: b.clone() for name, b in baron.named_buffers()}
        regions, embeddings, texts, read, loss = run(baron, tiles, *boxes)
        assert all(torch.equal(b, before[name]) for name, b in baron.named_buffers())
        bags = slow_bags(baron, tower, embeddings, regions, tiles) + queued[0]
        pairs = zip(tiles.captions, tiles.image_ids.tolist(), strict=True)
        texts_of_tiles = [(tower.encode([text])[0], i) for of_tile, i in pairs for text in of_tile] + queued[1]
        rows = [(torch.stack([x for x, _ in p]), torch.tensor([i for _, i in p])) for p in (bags, texts_of_tiles)]
        torch.testing.assert_close(loss, 10 * matched_contrast(*rows[0], *rows[1], scale=30.0), rtol=1e-4, atol=1e-4)
        baron.update_queues(read, texts)
        queued = (bags, texts_of_tiles)
        stored, ids = baron.bag_queue.read()
        assert torch.equal(stored[: len(read["bag"])], read["bag"]) and not stored.requires_grad
        assert ids.tolist() == [i for _, i in bags]
        stored, ids = baron.caption_queue.read()
        assert torch.equal(stored[: len(texts.all_captions)], texts.all_captions)
        assert ids.tolist() == [i for _, i in texts_of_tiles]
    assert len(bags) == 6 + 2 + 24 + 1 + 2 + 1  # orders of 3, 2, 4 and 1 regions, then of the singles' 2 and 1
    assert {role: len(r) for role, r in regions.items()} == {"proposal": 6, "tile": 4}
    assert regions["proposal"].members.sum(0).tolist() == [2, 1, 3, 0]
    assert torch.equal(regions["tile"].boxes, mosaic.boxes)


def test_a_dropped_word_is_not_read(run, tower, mosaic_and_singles):
    """All words are dropped except one of each region: a bag is the first words of its regions, in some order."""
    baron = method(word_dropout=1.0)
    regions, embeddings, texts, *_ = run(baron, mosaic_and_singles[0], INSIDE)
    words, owner = baron.add_positions(embeddings, regions)
    bags, tile = baron.encode_bags(words, owner, texts)
    for t in range(4):
        mine, firsts = bags[tile == t], words[owner == t][:, 0]
        orders = torch.stack([torch.stack(order) for order in itertools.permutations(firsts)])
        read = tower.encode_words(orders, torch.full((len(orders),), len(firsts)))
        nearest = (mine @ normalize(read.embedding, dim=1).T).max(1)
        torch.testing.assert_close(nearest.values, torch.ones(len(mine)))
        assert len(nearest.indices.unique()) == len(orders)  # all of them are read


def test_bags_without_proposals_and_too_long_bags(run, mosaic_and_singles):
    """A bag that the rules allow is too long even if dropout makes it shorter: the error must not depend on chance."""
    _, singles = mosaic_and_singles
    regions, _, _, read, loss = run(method(), singles, [], [])
    assert len(regions["proposal"]) == 0 and loss.isfinite() and read["image_id"].tolist() == [7, 8]
    baron = method(word_dropout=1.0, rules=replace(RULES, proposals=7))  # 8 regions of 2 words; the tower reads 14
    with pytest.raises(UserError, match="16 pseudo words is longer than the 14"):
        run(baron, singles, [], [])


def test_orders_and_dropout_come_from_torchs_random_state_for_each_reading(run, mosaic_and_singles):
    baron = method(word_dropout=0.5, orders=2)
    regions, embeddings, texts, *_ = run(baron, mosaic_and_singles[0], INSIDE)
    read = []
    for seed in (5, 5, 6, None):
        if seed is not None:
            torch.manual_seed(seed)
        read.append(baron.read(embeddings, regions, texts)["bag"])
    assert torch.equal(read[0], read[1])
    assert not torch.allclose(read[1], read[2]) and not torch.allclose(read[2], read[3])


def test_gradients_reach_words_and_positions_but_not_the_tower_and_the_loss_is_float32(run, tower, mosaic_and_singles):
    baron = method(orders=2)
    regions, embeddings, texts, _, loss = run(baron, mosaic_and_singles[0], INSIDE)
    loss.backward()
    assert all(rows.grad.abs().sum(1).gt(0).all() for rows in embeddings.values())
    assert all(p.grad.abs().sum() > 0 for p in baron.parameters())
    assert all(p.grad is None for p in tower.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        read = baron.read({role: rows.bfloat16() for role, rows in embeddings.items()}, regions, texts)
        loss = baron.losses(read, regions, texts)["loss_bag"]
    assert loss.dtype == torch.float32 and read["bag"].dtype == torch.float32


def test_the_config_builds_it(load_cfg):
    baron = build_method(load_cfg("BARON_CLIM_C4.yaml"))
    assert baron.rules == RULES
    assert {name: tuple(p.shape) for name, p in baron.state_dict().items()} == {
        "positional_embed.0.weight": (512, 512), "positional_embed.0.bias": (512,),
        "positional_embed.1.weight": (512,), "positional_embed.1.bias": (512,),
        "positional_embed.2.weight": (2048, 512), "positional_embed.2.bias": (2048,),
    }  # fmt: skip
    assert (baron.words, baron.orders, baron.word_dropout, baron.temperature, baron.weight) == (4, 4, 0.5, 30, 10)
    assert len(baron.bag_queue.image_ids) == len(baron.caption_queue.image_ids) == 1024
    with pytest.raises(UserError, match="MODEL.OPEN_VOCAB.CLASSIFIER"):
        build_method(load_cfg("BARON_C4.yaml", "MODEL.OPEN_VOCAB.CLASSIFIER", "cosine"))
