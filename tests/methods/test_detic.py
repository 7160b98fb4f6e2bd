"""Detic whole: selection → losses → queue, against loops in plain Python written from the formulas."""

import math
from collections import Counter
from itertools import product

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.data.tiles import Tiles
from clim.errors import UserError
from clim.methods import Regions, Texts, build_method
from clim.methods import detic as detic_module
from clim.methods.detic import Detic, composition_groups, draw_groups, join_groups

DIM, CLASSES = 6, 5

CLIM_PRESET = {
    "dim": DIM, "temperature": 25.0, "bias": -20.0, "caption_weight": 0.1, "caption_base_regions": 4,
    "caption_negatives": "queue", "negative_weight": 0.125, "queue_length": 8, "tag_weight": 0.1 / 3,
    "tag_target": "multi_hot", "tag_min_iof": 0.3, "tag_topk": 128, "num_groups": 2,
}  # fmt: skip
OFFICIAL_PRESET = CLIM_PRESET | {
    "temperature": 50.0, "bias": None, "caption_base_regions": 0, "caption_negatives": "gather",
    "negative_weight": 1.0, "tag_weight": 0.1, "tag_target": "per_tag", "tag_topk": 32,
}  # fmt: skip


def canvas(ids, *, tags=None):
    """Tiles of one 100 x 100 canvas."""
    count = len(ids)
    side = math.isqrt(count)
    cell = 100 / side
    boxes = [[c % side * cell, c // side * cell, (c % side + 1) * cell, (c // side + 1) * cell] for c in range(count)]
    return Tiles(
        boxes=torch.tensor(boxes),
        canvas=torch.zeros(count, dtype=torch.int64),
        image_ids=torch.tensor(ids),
        captions=[[f"caption of {i}", "another"] for i in ids],
        drawn=[f"caption of {i}" for i in ids],
        tags=tags or [[] for _ in ids],
    )


SINGLES = Tiles.cat([canvas([1], tags=[[0, 2]]), canvas([2], tags=[[]])])
MOSAICS = Tiles.cat(
    [canvas([3, 1, 4, 5], tags=[[0], [0, 2], [], [4]]), canvas([6, 6, 7, 8], tags=[[1], [1], [1, 3], [2]])]
)


def class_embeddings():
    rows = torch.nn.functional.normalize(torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(9)), dim=1)
    return torch.cat([rows, torch.zeros(1, DIM)])


@pytest.fixture
def texts(hash_tower):
    """``texts(tiles)``; ``texts.tower`` remembers what it was asked; ``texts.row(text)`` as plain floats."""

    def make(tiles):
        return Texts(tiles, encoder=make.tower, class_embeddings=class_embeddings())

    make.tower = hash_tower(DIM)
    make.row = lambda text: hash_tower(DIM).encode([text])[0].tolist()
    return make


def embed(regions, seed=0):
    """Un-normalised embeddings (R, D) with a gradient, for every role."""
    generator = torch.Generator().manual_seed(seed)
    return {role: (3 * torch.randn(len(r), DIM, generator=generator)).requires_grad_() for role, r in regions.items()}


def no_proposals(tiles):
    count = int(tiles.canvas.max()) + 1
    return [Instances((100, 100), proposal_boxes=Boxes(torch.zeros(0, 4))) for _ in range(count)]


def bce(logit, target):
    signed = -logit if target else logit
    return max(signed, 0.0) + math.log1p(math.exp(-abs(signed)))


def cosine(a, b):
    norms = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


def region_members(regions):
    """Tiles of every region."""
    return [[t for t, inside in enumerate(row) if inside] for row in regions.members.tolist()]


def masks(*groups, tiles=4):
    """Groups (G, T), of which the members are given."""
    return torch.tensor([[t in group for t in range(tiles)] for group in groups])


def slow_caption_loss(embeddings, regions, tiles, queue, encode, *, temperature=25.0, bias=-20.0):
    """0.025 Σ_r Σ_c w_rc · BCE(temperature · cos + bias, y_rc), c over the batch and the queue."""
    columns = [(encode(c), i) for c, i in zip(tiles.drawn, tiles.image_ids.tolist(), strict=True)] + queue
    total = 0.0
    for v, members in zip(embeddings["caption"].tolist(), region_members(regions["caption"]), strict=True):
        ids = {int(tiles.image_ids[t]) for t in members}
        count = sum(i in ids for _, i in columns)
        for t, i in columns:
            z = temperature * cosine(v, t) + bias
            total += bce(z, 1) / count if i in ids else 0.125 * bce(z, 0)
    return 0.025 * total


def slow_tag_loss(embeddings, regions, tiles, *, temperature=25.0, bias=-20.0):
    """(0.1 / 3) · mean_r Σ_k BCE(temperature · cos + bias, multi-hot), all classes, no background."""
    rows = []
    for v, members in zip(embeddings["tag"].tolist(), region_members(regions["tag"]), strict=True):
        tags = {tag for t in members for tag in tiles.tags[t]}
        classes = class_embeddings()[:-1].tolist()
        rows.append(sum(bce(temperature * cosine(v, c) + bias, k in tags) for k, c in enumerate(classes)))
    return 0.1 / 3 * sum(rows) / len(rows)


def close(actual, expected):
    torch.testing.assert_close(
        actual.detach().double(), torch.tensor(expected, dtype=torch.float64), rtol=2e-5, atol=1e-7
    )


# ---- CLIM release's losses


@pytest.mark.parametrize("bias", [-20.0, -1.0])  # at -20 negatives cost nearly nothing, at -1 they do
@pytest.mark.parametrize("tiles", [SINGLES, MOSAICS], ids=["singles", "mosaics"])
def test_clim_losses_with_an_empty_queue(texts, tiles, bias):
    method = Detic(**CLIM_PRESET | {"bias": bias})
    regions = method.select(tiles, no_proposals(tiles))
    embeddings = embed(regions)
    losses = method.losses(embeddings, regions, texts(tiles))
    assert set(losses) == {"loss_caption", "loss_tag"}
    close(losses["loss_caption"], slow_caption_loss(embeddings, regions, tiles, [], texts.row, bias=bias))
    close(losses["loss_tag"], slow_tag_loss(embeddings, regions, tiles, bias=bias))


@pytest.mark.parametrize("bias", [-20.0, -1.0])
def test_queued_captions_are_negatives_and_those_of_the_same_image_positives(texts, bias):
    """Captions first, then mosaics, as one iteration runs: image 1 is in both, image 6 twice in the batch."""
    method = Detic(**CLIM_PRESET | {"bias": bias})
    method.update_queues({}, texts(SINGLES))
    regions = method.select(MOSAICS, no_proposals(MOSAICS))
    embeddings = embed(regions)
    queue = [(texts.row("caption of 1"), 1), (texts.row("caption of 2"), 2)]
    expected = slow_caption_loss(embeddings, regions, MOSAICS, queue, texts.row, bias=bias)
    without = slow_caption_loss(embeddings, regions, MOSAICS, [], texts.row, bias=bias)
    assert abs(expected - without) > 0.01
    close(method.losses(embeddings, regions, texts(MOSAICS))["loss_caption"], expected)


def test_the_caption_loss_scales_with_the_number_of_regions(texts):
    """0.1 · (R / 4) · mean_r: two equal canvases cost twice as much, but for the other's captions."""
    method = Detic(**CLIM_PRESET | {"tag_weight": 0.0, "negative_weight": 0.0})
    one, two = canvas([1]), Tiles.cat([canvas([1]), canvas([2])])
    two.drawn[1] = one.drawn[0]
    losses = []
    for tiles in (one, two):
        regions = method.select(tiles, None)
        losses.append(method.losses({"caption": torch.ones(len(regions["caption"]), DIM)}, regions, texts(tiles)))
    close(losses[1]["loss_caption"], 2 * losses[0]["loss_caption"].item())


def test_closed_form_at_right_angles(texts):
    """Orthogonal to every text, the logit is -20: softplus(20) a positive, softplus(-20) / 8 the rest."""
    method = Detic(**CLIM_PRESET | {"num_groups": 0})
    tiles = canvas([1, 2, 3, 4])
    made = texts(tiles)
    made.drawn = torch.nn.functional.pad(made.drawn[:, :-1], (0, 1))
    made.class_embeddings = torch.nn.functional.pad(class_embeddings()[:, :-1], (0, 1))
    regions = method.select(tiles, no_proposals(tiles))
    last = torch.zeros(4, DIM)
    last[:, -1] = 2.0
    losses = method.losses({"caption": last, "tag": last}, regions, made)
    positive, negative = math.log1p(math.exp(20)), math.log1p(math.exp(-20))
    close(losses["loss_caption"], 0.025 * 4 * (positive + 3 * 0.125 * negative))
    close(losses["loss_tag"], 0.1 / 3 * CLASSES * negative)


def test_gradients_flow_to_regions_and_biases_only(texts):
    method = Detic(**CLIM_PRESET)
    method.update_queues({}, texts(SINGLES))
    made = texts(MOSAICS)
    regions = method.select(MOSAICS, no_proposals(MOSAICS))
    embeddings = embed(regions)
    sum(method.losses(embeddings, regions, made).values()).backward()
    assert {name for name, _ in method.named_parameters()} == {"bias.caption", "bias.tag"}
    for role in ("caption", "tag"):
        assert method.bias[role].grad.abs() > 0
        assert (embeddings[role].grad.abs().sum(dim=1) > 0).all()
        # Cosines do not see lengths: the gradient is at right angles to the embedding.
        along = (embeddings[role].grad * embeddings[role]).sum(dim=1)
        assert along.abs().max() < 1e-5
    assert not made.drawn.requires_grad and not method.queue.embeddings.requires_grad


def test_the_bias_gradient_is_that_of_the_formula(texts):
    method = Detic(**CLIM_PRESET)
    regions = method.select(MOSAICS, no_proposals(MOSAICS))
    embeddings = embed(regions)
    sum(method.losses(embeddings, regions, texts(MOSAICS)).values()).backward()
    above, below = (
        slow_caption_loss(embeddings, regions, MOSAICS, [], texts.row, bias=bias) for bias in (-19.999, -20.001)
    )
    assert method.bias["caption"].grad.item() == pytest.approx((above - below) / 0.002, rel=1e-4)
    above, below = (slow_tag_loss(embeddings, regions, MOSAICS, bias=bias) for bias in (-19.999, -20.001))
    assert method.bias["tag"].grad.item() == pytest.approx((above - below) / 0.002, rel=1e-4)


# ---- official Detic's losses


def slow_image_loss(captions, proposals, tiles, encode, columns):
    """0.1 / B Σ_i of 1/|T_i| Σ_t Σ_{k ≤ C+1} BCE(s_ik, 1[k = t]), and of each caption against the others."""
    tag_part = caption_part = 0.0
    for i, (x, v) in enumerate(zip(captions.tolist(), proposals.tolist(), strict=True)):
        scores = [50 * cosine(v, c) for c in class_embeddings().tolist()]
        assert scores[-1] == 0
        tags = tiles.tags[i]
        for t in tags:
            tag_part += sum(bce(s, k == t) for k, s in enumerate(scores)) / len(tags)
        own = 50 * cosine(x, encode(tiles.drawn[i]))
        caption_part += bce(own, 1)
        caption_part += sum(bce(50 * cosine(x, t), 0) for j, t in columns if j != i)
    return 0.1 * caption_part / len(tiles), 0.1 * tag_part / len(tiles)


OFFICIAL_BATCH = Tiles.cat([canvas([1], tags=[[0, 2]]), canvas([2], tags=[[]]), canvas([3], tags=[[1]])])


def test_official_image_loss(texts):
    method = Detic(**OFFICIAL_PRESET)
    assert list(method.parameters()) == [] and method.queue is None and method.state_dict() == {}
    regions = method.select(OFFICIAL_BATCH, no_proposals(OFFICIAL_BATCH))
    embeddings = embed(regions)
    losses = method.losses(embeddings, regions, texts(OFFICIAL_BATCH))
    columns = [(i, texts.row(c)) for i, c in enumerate(OFFICIAL_BATCH.drawn)]
    expected = slow_image_loss(embeddings["caption"], embeddings["tag"], OFFICIAL_BATCH, texts.row, columns)
    close(losses["loss_caption"], expected[0])
    close(losses["loss_tag"], expected[1])


def test_official_captions_of_all_processes_are_negatives(texts, monkeypatch):
    other = Tiles.cat([canvas([7]), canvas([8])])
    method = Detic(**OFFICIAL_PRESET)
    regions = method.select(OFFICIAL_BATCH, no_proposals(OFFICIAL_BATCH))
    embeddings = embed(regions)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    sent = []

    def all_gather(mine):
        sent.append(mine)
        return [(texts(other).drawn, other.image_ids), mine]  # this process is the second one

    monkeypatch.setattr(detic_module.comm, "all_gather", all_gather)
    losses = method.losses(embeddings, regions, texts(OFFICIAL_BATCH))
    assert len(sent) == 1 and not sent[0][0].requires_grad
    columns = [(i, texts.row(c)) for i, c in enumerate(OFFICIAL_BATCH.drawn)]
    columns += [(-1, texts.row(c)) for c in other.drawn]
    expected = slow_image_loss(embeddings["caption"], embeddings["tag"], OFFICIAL_BATCH, texts.row, columns)
    close(losses["loss_caption"], expected[0])
    close(losses["loss_tag"], expected[1])


def test_official_has_no_queue(texts):
    method = Detic(**OFFICIAL_PRESET)
    method.update_queues({}, texts(OFFICIAL_BATCH))
    assert texts.tower.asked == [] and list(method.buffers()) == []


# ---- selection


def test_regions_are_tiles_then_groups_and_captions_stay_on_the_tiles(monkeypatch):
    """Caption group box: union of member tiles; tag group box: union of members' largest proposals."""
    tiles, drawn = canvas([3, 1, 4, 5]), [masks((0, 1)), masks((1, 2, 3))]
    monkeypatch.setattr(detic_module, "draw_groups", lambda *_: drawn.pop(0))
    proposals = [Instances((100, 100), proposal_boxes=Boxes(torch.tensor([[55.0, 5, 95, 30], [10, 60, 30, 80]])))]
    regions = Detic(**CLIM_PRESET).select(tiles, proposals)
    assert regions["caption"].boxes.tolist() == [*tiles.boxes.tolist(), [0, 0, 100, 50]]
    tag_boxes = [[0, 0, 50, 50], [55, 5, 95, 30], [10, 60, 30, 80], [50, 50, 100, 100]]
    assert regions["tag"].boxes.tolist() == [*tag_boxes, [10, 5, 100, 100]]
    eye = torch.eye(4, dtype=torch.bool).tolist()
    assert regions["caption"].members.tolist() == [*eye, [True, True, False, False]]
    assert regions["tag"].members.tolist() == [*eye, [False, True, True, True]]
    assert regions["caption"].canvas.tolist() == [0] * 5


def test_groups_stay_on_their_canvas(monkeypatch):
    drawn = masks((0, 1), (0, 1, 2, 3), (6, 7), (4, 6), tiles=8)
    monkeypatch.setattr(detic_module, "draw_groups", lambda *_: drawn)
    regions = Detic(**CLIM_PRESET).select(MOSAICS, no_proposals(MOSAICS))
    assert regions["caption"].canvas.tolist() == [0] * 4 + [1] * 4 + [0, 0, 1, 1]
    assert len(regions["caption"]) == len(regions["tag"]) == 12
    assert regions["caption"].boxes[8:].tolist() == [
        [0, 0, 100, 50],
        [0, 0, 100, 100],
        [0, 50, 100, 100],
        [0, 0, 50, 100],
    ]


# ---- composition groups


def rectangles(n):
    """All sub-grid rectangles of two or more cells, as frozensets of cells."""
    spans = [(a, b) for a in range(n) for b in range(a, n)]
    return {
        frozenset(r * n + c for r in range(r0, r1 + 1) for c in range(c0, c1 + 1))
        for (r0, r1), (c0, c1) in product(spans, spans)
        if (r0, c0) != (r1, c1)
    }


def members_of(group):
    return frozenset(group.nonzero()[:, 0].tolist())


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 6), st.integers(0, 8), st.integers(0, 2**32 - 1))
def test_groups_are_distinct_rectangles_of_two_or_more_cells(n, num_groups, seed):
    torch.manual_seed(seed)
    groups = composition_groups(n, num_groups)
    assert groups.dtype == torch.bool and groups.shape == (min(num_groups, len(rectangles(n))), n * n)
    cells = [members_of(group) for group in groups]
    assert len(set(cells)) == len(cells)
    assert set(cells) <= rectangles(n)


def test_all_rectangles_of_a_small_grid_when_more_are_asked_for():
    groups = composition_groups(2, 100)
    assert {members_of(group) for group in groups} == rectangles(2)
    assert len(groups) == 5


def test_spans_are_two_uniform_draws_sorted():
    """First group of a 2x2: the whole 1/4, each row or column 1/8, over the 3/4 that are not single cells."""
    torch.manual_seed(0)
    counts = Counter(members_of(composition_groups(2, 1)[0]) for _ in range(3000))
    for cells in rectangles(2):
        expected = (1 / 4 if len(cells) == 4 else 1 / 8) / (3 / 4)
        assert abs(counts[cells] / 3000 - expected) < 0.03


def test_groups_are_block_diagonal():
    tiles = Tiles.cat([canvas([1, 2, 3, 4]), canvas([5]), canvas(list(range(9)))])
    groups = draw_groups(tiles, 4)
    assert groups.dtype == torch.bool and groups.shape == (8, 14)
    for group in groups[:4]:
        assert members_of(group) in rectangles(2)
    for group in groups[4:]:
        assert {t - 5 for t in members_of(group)} in rectangles(3)
    assert draw_groups(tiles, 0).shape == (0, 14) and draw_groups(SINGLES, 4).shape == (0, 2)


def test_a_group_is_the_union_of_its_members_boxes_on_their_canvas():
    tiles = Tiles.cat([canvas([1]), canvas([2, 3, 4, 5])])
    boxes = tiles.boxes + torch.tensor([2.0, 3, -2, -3])
    groups = masks((2, 4), (1, 2), (3,), tiles=5)
    regions = join_groups(Regions.of_tiles(boxes, tiles), groups)
    assert torch.equal(regions.boxes[:5], boxes)
    assert regions.boxes[5:].tolist() == [[52, 3, 98, 97], [2, 3, 98, 47], [2, 53, 48, 97]]
    assert regions.canvas.tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert torch.equal(regions.members, torch.cat([torch.eye(5, dtype=torch.bool), groups]))


def test_the_two_losses_get_groups_of_their_own_from_torchs_random_state():
    tiles, method = canvas(list(range(16))), Detic(**CLIM_PRESET | {"num_groups": 4})
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        regions = method.select(tiles, no_proposals(tiles))
        drawn.append([regions[role].members[16:] for role in ("caption", "tag")])
    assert drawn[0][0].shape == (4, 16)
    assert not torch.equal(*drawn[0])
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(drawn[0][0], drawn[2][0])
    without = Detic(**CLIM_PRESET | {"num_groups": 0}).select(tiles, no_proposals(tiles))
    assert {len(r) for r in without.values()} == {16}


def test_single_images_and_no_groups_draw_nothing():
    """So a run without mosaics is the same with any GROUPS."""
    state = torch.get_rng_state()
    Detic(**CLIM_PRESET).select(SINGLES, no_proposals(SINGLES))
    Detic(**CLIM_PRESET | {"num_groups": 0}).select(MOSAICS, no_proposals(MOSAICS))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "weights, roles, proposals",
    [
        ({"caption_weight": 0.0}, {"tag"}, True),
        ({"tag_weight": 0.0}, {"caption"}, False),
        ({}, {"caption", "tag"}, True),
    ],
)
def test_a_loss_of_weight_zero_is_left_out_whole(texts, weights, roles, proposals):
    """No regions to pool, no parameter without gradient, no proposals, no queue."""
    method = Detic(**CLIM_PRESET | weights)
    assert method.needs_proposals is proposals
    regions = method.select(SINGLES, no_proposals(SINGLES) if proposals else None)
    assert set(regions) == roles
    losses = method.losses(embed(regions), regions, texts(SINGLES))
    assert set(losses) == {f"loss_{role}" for role in roles}
    assert {name for name, _ in method.named_parameters()} == {f"bias.{role}" for role in roles}
    assert (method.queue is not None) is ("caption" in roles)
    method.update_queues({}, texts(SINGLES))


# ---- queue


def test_losses_change_no_state_and_update_queues_pushes_once(texts):
    method = Detic(**CLIM_PRESET)
    regions = method.select(MOSAICS, no_proposals(MOSAICS))
    for _ in range(2):
        method.losses(embed(regions), regions, texts(MOSAICS))
    assert method.queue.read()[1].tolist() == []
    method.update_queues({}, texts(SINGLES))
    method.update_queues({}, texts(canvas([3, 1, 4, 5])))
    embeddings, ids = method.queue.read()
    assert ids.tolist() == [3, 1, 4, 5, 1, 2]  # the newest batch first
    expected = texts.tower.encode([f"caption of {i}" for i in [3, 1, 4, 5, 1, 2]])
    assert torch.equal(embeddings, expected)


def test_a_batch_is_encoded_once(texts):
    method, made = Detic(**CLIM_PRESET), texts(MOSAICS)
    regions = method.select(MOSAICS, no_proposals(MOSAICS))
    for _ in range(3):  # stages of a cascade
        method.losses(embed(regions), regions, made)
    method.update_queues({}, made)
    assert texts.tower.asked == [MOSAICS.drawn]


def test_the_queue_is_in_no_checkpoint():
    assert set(Detic(**CLIM_PRESET).state_dict()) == {"bias.caption", "bias.tag"}


# ---- config


def test_presets_of_the_configs(load_cfg):
    clim = build_method(load_cfg("Detic_CLIM_C4.yaml"))
    expected = CLIM_PRESET | {"dim": 512, "queue_length": 256}
    assert clim.queue.embeddings.shape == (256, 512) and clim.num_groups == 4
    official = build_method(load_cfg("Detic_C4_official.yaml"))
    for method, preset in ((clim, expected), (official, OFFICIAL_PRESET)):
        for name in ("temperature", "negative_weight", "caption_weight", "caption_base_regions", "tag_weight"):
            assert getattr(method, name) == preset[name]
        for name in ("tag_target", "tag_min_iof", "tag_topk"):
            assert getattr(method, name) == preset[name]
        assert method.gather is (preset["caption_negatives"] == "gather")
        assert [b.item() for b in method.bias.values()] == ([-20.0] * 2 if preset["bias"] else [])
    assert build_method(load_cfg("BoxSup_C4.yaml")) is None
    assert build_method(load_cfg("Detic_C4_official_max-size.yaml")).tag_topk == 31


@pytest.mark.parametrize(
    "bad, message", [({"caption_negatives": "memory"}, "CAPTION_NEGATIVES"), ({"tag_target": "hot"}, "TAG_TARGET")]
)
def test_wrong_words_are_told(bad, message):
    with pytest.raises(UserError, match=message):
        Detic(**CLIM_PRESET | bad)
