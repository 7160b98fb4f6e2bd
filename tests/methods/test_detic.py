"""Detic whole: selection → losses → queue, against loops in plain Python written from the formulas."""

import math
from collections import Counter
from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.data.tiles import Tiles
from clim.methods import Regions, Texts, build_method
from clim.methods import detic as detic_module
from clim.methods.detic import Detic, composition_groups, draw_groups, join_groups
from clim.modeling import embed_regions

DIM, CLASSES = 6, 5

CLIM_PRESET = {
    "dim": DIM, "temperature": 25.0, "bias": [-20.0], "caption_weight": 0.1, "caption_base_regions": 4,
    "caption_negatives": "queue", "negative_weight": 0.125, "queue_length": 8, "tag_weight": 0.1 / 3,
    "tag_target": "multi_hot", "tag_min_iof": 0.3, "tag_topk": 128, "groups": 2,
}  # fmt: skip
OFFICIAL_PRESET = CLIM_PRESET | {
    "temperature": 50.0, "bias": [], "caption_base_regions": 0, "caption_negatives": "gather",
    "negative_weight": 1.0, "tag_weight": 0.1, "tag_target": "per_tag", "tag_topk": 32,
}  # fmt: skip
LVIS_PRESET = CLIM_PRESET | {
    "temperature": 50.0, "bias": [], "caption_weight": 1.0, "caption_base_regions": 0, "tag_weight": 0.1,
}  # fmt: skip


ROWS = torch.nn.functional.normalize(torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(9)), dim=1)
CLASS_EMBEDDINGS = torch.cat([ROWS, torch.zeros(1, DIM)])


@pytest.fixture(scope="session")
def canvas(tiles_of):
    """``canvas(image ids, tags=)``: tiles of one 100 x 100 canvas."""

    def make(ids, *, tags=None):
        side = math.isqrt(len(ids))
        boxes = torch.tensor([[c % side, c // side, c % side + 1, c // side + 1] for c in range(side**2)]) * 100 / side
        return tiles_of(boxes, ids=ids, captions=[["another", f"caption of {i}"] for i in ids], tags=tags)

    return make


@pytest.fixture(scope="session")
def singles(canvas):
    return Tiles.cat([canvas([i], tags=[tags]) for i, tags in ((1, [0, 2]), (2, []), (3, [1]))])


@pytest.fixture(scope="session")
def mosaics(canvas):
    tags = [[[0], [0, 2], [], [4]], [[1], [1], [1, 3], [2]]]
    return Tiles.cat([canvas(ids, tags=t) for ids, t in zip(([3, 1, 4, 5], [6, 6, 7, 8]), tags, strict=True)])


@pytest.fixture
def texts(hash_tower):
    """``texts(tiles)``; ``texts.tower`` lists its calls; ``texts.rows(tiles)``: embeddings of drawn captions, ids."""

    def make(tiles):
        return Texts(tiles, encoder=make.tower, class_embeddings=CLASS_EMBEDDINGS)

    def rows(tiles):
        return list(zip(hash_tower(DIM).encode(tiles.drawn).tolist(), tiles.image_ids.tolist(), strict=True))

    make.tower, make.rows = hash_tower(DIM), rows
    return make


@pytest.fixture
def run(texts, proposals_of):
    """``run(method, tiles)`` → regions, embeddings that want a gradient, losses, without proposals."""

    def make(method, tiles):
        regions = method.select(tiles, proposals_of(*[[]] * (int(tiles.canvas.max()) + 1)))
        generator = torch.Generator().manual_seed(0)
        embeddings = {
            role: (3 * torch.randn(len(r), DIM, generator=generator)).requires_grad_() for role, r in regions.items()
        }
        return regions, embeddings, method.losses(embeddings, regions, texts(tiles))

    return make


def bce(logit, target):
    return math.log1p(math.exp(-logit if target else logit))


def cosine(a, b):
    norms = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


def with_members(embeddings, regions):
    """The embedding of every region, and its tiles."""
    members = [[t for t, inside in enumerate(row) if inside] for row in regions.members.tolist()]
    return zip(embeddings.tolist(), members, strict=True)


def masks(*groups, tiles=4):
    """Groups (G, T), of which the members are given."""
    return torch.tensor([[t in group for t in range(tiles)] for group in groups])


def slow_captions(embeddings, regions, tiles, columns, *, bias, temperature):
    """Σ_c w_rc · BCE(temperature · cos + bias, y_rc) of every region, c over ``columns`` (embedding, image id)."""
    rows = []
    for v, members in with_members(embeddings["caption"], regions["caption"]):
        ids = {int(tiles.image_ids[t]) for t in members}
        count = sum(i in ids for _, i in columns)
        logits = [(temperature * cosine(v, t) + bias, i in ids) for t, i in columns]
        rows.append(sum(bce(z, 1) / count if own else 0.125 * bce(z, 0) for z, own in logits))
    return rows


def slow_caption_loss(embeddings, regions, tiles, columns, *, bias=-20.0):
    return 0.025 * sum(slow_captions(embeddings, regions, tiles, columns, bias=bias, temperature=25))


def slow_tags(embeddings, regions, tiles, *, bias, temperature):
    """Σ_k BCE(temperature · cos + bias, multi-hot) of every region, all classes, no background."""
    rows, classes = [], ROWS.tolist()
    for v, members in with_members(embeddings["tag"], regions["tag"]):
        tags = {tag for t in members for tag in tiles.tags[t]}
        rows.append(sum(bce(temperature * cosine(v, c) + bias, k in tags) for k, c in enumerate(classes)))
    return rows


def slow_tag_loss(embeddings, regions, tiles, *, bias=-20.0):
    rows = slow_tags(embeddings, regions, tiles, bias=bias, temperature=25)
    return 0.1 / 3 * sum(rows) / len(rows)


def close(actual, expected):
    torch.testing.assert_close(
        actual.detach().double(), torch.tensor(expected, dtype=torch.float64), rtol=2e-5, atol=1e-7
    )


# ---- CLIM release's losses


@pytest.mark.parametrize("bias", [-20.0, -1.0])  # at -20 negatives cost nearly nothing, at -1 they do
def test_clim_losses_of_captions_and_then_of_mosaics(texts, run, singles, mosaics, bias):
    """Images 1 and 3 are in both sources, image 6 twice in the mosaics. Losses change no state."""
    method, columns = Detic(**CLIM_PRESET | {"bias": [bias]}), []
    for tiles in (singles, mosaics):
        columns = texts.rows(tiles) + columns
        regions, embeddings, losses = run(method, tiles)
        assert set(losses) == {"loss_caption", "loss_tag"}
        close(losses["loss_caption"], slow_caption_loss(embeddings, regions, tiles, columns, bias=bias))
        close(losses["loss_tag"], slow_tag_loss(embeddings, regions, tiles, bias=bias))
        assert len(method.queue.read()[1]) == len(columns) - len(tiles)
        method.update_queues({}, texts(tiles))
    embeddings, ids = method.queue.read()  # the newest batch is first
    assert ids.tolist() == [i for _, i in columns[:8]] and embeddings.tolist() == [row for row, _ in columns[:8]]


def test_gradients_flow_to_regions_and_biases_only(texts, run, singles, mosaics):
    method = Detic(**CLIM_PRESET)
    method.update_queues({}, texts(singles))
    regions, embeddings, losses = run(method, mosaics)
    sum(losses.values()).backward()
    assert {name for name, _ in method.named_parameters()} == {"bias.caption", "bias.tag"} == set(method.state_dict())
    columns = texts.rows(mosaics) + texts.rows(singles)
    slow = {
        "caption": lambda bias: slow_caption_loss(embeddings, regions, mosaics, columns, bias=bias),
        "tag": lambda bias: slow_tag_loss(embeddings, regions, mosaics, bias=bias),
    }
    for role, loss in slow.items():
        slope = (loss(-19.999) - loss(-20.001)) / 0.002
        assert method.bias[role].grad.item() == pytest.approx(slope, rel=1e-4)
        assert (embeddings[role].grad.abs().sum(dim=1) > 0).all()
        # Cosines do not see lengths: the gradient is at right angles to the embedding.
        assert (embeddings[role].grad * embeddings[role]).sum(dim=1).abs().max() < 1e-5
    assert not method.queue.embeddings.requires_grad


# ---- official Detic's losses


@pytest.mark.parametrize("processes", [1, 2])
def test_official_losses(texts, run, singles, canvas, monkeypatch, processes):
    """0.1 / B Σ_i of 1/|T_i| Σ_t Σ_{k ≤ C+1} BCE(s_ik, 1[k = t]), and of each caption against those of all others.

    This process is the second one.
    """
    method = Detic(**OFFICIAL_PRESET)
    assert method.queue is None and method.state_dict() == {} and not list(method.buffers())
    others = Tiles.cat([canvas([7]), canvas([8])])
    columns = texts.rows(singles)
    if processes == 2:
        other = iter([texts(others).drawn, others.image_ids])
        monkeypatch.setattr(detic_module, "gather_rows", lambda rows: (torch.cat([next(other), rows]), 2))
        columns = texts.rows(others) + columns
    _, embeddings, losses = run(method, singles)
    tag_loss = caption_loss = 0.0
    for i, (x, v) in enumerate(zip(embeddings["caption"].tolist(), embeddings["tag"].tolist(), strict=True)):
        scores = [50 * cosine(v, c) for c in CLASS_EMBEDDINGS.tolist()]
        tags = singles.tags[i]
        tag_loss += sum(bce(s, k == t) / len(tags) for t in tags for k, s in enumerate(scores))
        caption_loss += sum(bce(50 * cosine(x, t), j == singles.image_ids[i]) for t, j in columns)
    close(losses["loss_caption"], 0.1 * caption_loss / len(singles))
    close(losses["loss_tag"], 0.1 * tag_loss / len(singles))
    texts.tower.asked.clear()
    method.update_queues({}, texts(singles))
    assert texts.tower.asked == []


# ---- CLIM release's stages


def test_clim_losses_of_three_stages(texts, cascade, by_loops, proposals_of, singles, mosaics):
    """1.0 · mean_r for captions, 0.1 · mean_r for tags. Of the proposals a tile keeps one, of regressed boxes all."""
    method, columns = Detic(**LVIS_PRESET | {"tag_topk": 1}), texts.rows(mosaics) + texts.rows(singles)
    method.update_queues({}, texts(singles))
    found, topk, groups = [[[5, 9, 45, 60], [5, 5, 95, 40]], [[10, 60, 30, 80], [12, 60, 44, 95]]], 1, []
    head, refine = cascade(DIM, (-6, -4, 12, 3), (8, 2, 5, -7)), partial(method.refine, mosaics)
    torch.manual_seed(1)
    regions = method.select(mosaics, proposals_of(*found))
    stages = embed_regions(head, {"": torch.zeros(2, 1)}, regions, image_sizes=[(100, 100)] * 2, refine=refine)
    for (regions, embeddings), shift in zip(stages, [*head.shifts, (0, 0, 0, 0)], strict=True):
        exact, canvas = mosaics.boxes.tolist(), mosaics.canvas.tolist()
        of_tiles = {"caption": exact, "tag": by_loops.largest(exact, canvas, found, min_iof=0.3, topk=topk)}
        for role, boxes in of_tiles.items():
            joined = [torch.tensor([boxes[t] for t in row.nonzero()]) for row in regions[role].members]
            unions = [[*b[:, :2].amin(0).tolist(), *b[:, 2:].amax(0).tolist()] for b in joined]
            assert regions[role].boxes.tolist() == unions and len(unions) == 8 + 4
        losses = method.losses(embeddings, regions, texts(mosaics))
        captions = slow_captions(embeddings, regions, mosaics, columns, bias=0, temperature=50)
        close(losses["loss_caption"], sum(captions) / 12)
        close(losses["loss_tag"], 0.1 * sum(slow_tags(embeddings, regions, mosaics, bias=0, temperature=50)) / 12)
        moved = (regions["tag"].boxes + torch.tensor(shift)).clamp(0, 100)
        found, topk = [moved[regions["tag"].canvas == i].tolist() for i in (0, 1)], None
        groups += [regions[role].members[8:] for role in ("caption", "tag")]
    assert len({str(g.tolist()) for g in groups}) == 3 * 2

    method = Detic(**LVIS_PRESET | {"tag_weight": 0.0})
    (role,) = method.refine(mosaics, regions, {"caption": regions["caption"].boxes + 7}).items()
    assert role[0] == "caption" and torch.equal(role[1].boxes[:8], mosaics.boxes)


# ---- selection and composition groups


def test_regions_are_tiles_then_groups_and_captions_stay_on_the_tiles(monkeypatch, canvas, proposals_of):
    """The box of a group: the union of its tiles for captions, of their largest proposals for tags."""
    tiles, drawn = canvas([3, 1, 4, 5]), [masks((0, 1)), masks((1, 2, 3))]
    monkeypatch.setattr(detic_module, "draw_groups", lambda *_: drawn.pop(0))
    regions = Detic(**CLIM_PRESET).select(tiles, proposals_of([[55, 5, 95, 30], [10, 60, 30, 80]]))
    assert regions["caption"].boxes.tolist() == [*tiles.boxes.tolist(), [0, 0, 100, 50]]
    tag_boxes = [[0, 0, 50, 50], [55, 5, 95, 30], [10, 60, 30, 80], [50, 50, 100, 100]]
    assert regions["tag"].boxes.tolist() == [*tag_boxes, [10, 5, 100, 100]]
    eye = torch.eye(4, dtype=torch.bool).tolist()
    assert regions["caption"].members.tolist() == [*eye, [True, True, False, False]]
    assert regions["tag"].members.tolist() == [*eye, [False, True, True, True]]

    tiles = Tiles.cat([canvas([1]), canvas([2, 3, 4, 5])])  # the groups of a second canvas
    regions = join_groups(Regions.of_tiles(tiles.boxes, tiles), masks((2, 4), (3,), tiles=5))
    assert regions.boxes[5:].tolist() == [[50, 0, 100, 100], [0, 50, 50, 100]]
    assert regions.canvas.tolist() == [0, 1, 1, 1, 1, 1, 1]


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
    """All of them where more are asked for."""
    torch.manual_seed(seed)
    groups = composition_groups(n, num_groups)
    assert groups.dtype == torch.bool and groups.shape == (min(num_groups, len(rectangles(n))), n * n)
    cells = [members_of(group) for group in groups]
    assert len(set(cells)) == len(cells) and set(cells) <= rectangles(n)


def test_spans_are_two_uniform_draws_sorted():
    """First group of a 2x2: the whole 1/4, each row or column 1/8, over the 3/4 that are not single cells."""
    torch.manual_seed(0)
    counts = Counter(members_of(composition_groups(2, 1)[0]) for _ in range(3000))
    for cells in rectangles(2):
        expected = (1 / 4 if len(cells) == 4 else 1 / 8) / (3 / 4)
        assert abs(counts[cells] / 3000 - expected) < 0.03


def test_groups_of_all_canvases_come_from_torchs_random_state(run, canvas, singles, mosaics):
    tiles = Tiles.cat([canvas([1, 2, 3, 4]), canvas([5]), canvas(list(range(9)))])
    groups = draw_groups(tiles, 4)
    assert groups.dtype == torch.bool and groups.shape == (8, 14)
    assert {members_of(group) for group in groups[:4]} <= rectangles(2)
    assert {frozenset(t - 5 for t in members_of(group)) for group in groups[4:]} <= rectangles(3)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        regions, *_ = run(Detic(**CLIM_PRESET | {"groups": 4}), canvas(list(range(16))))
        drawn.append([regions[role].members[16:] for role in ("caption", "tag")])
    assert drawn[0][0].shape == (4, 16) and not torch.equal(*drawn[0])  # each loss has its own
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(drawn[0][0], drawn[2][0])
    state = torch.get_rng_state()  # a run without mosaics, or without groups, draws nothing
    run(Detic(**CLIM_PRESET), singles)
    regions, *_ = run(Detic(**CLIM_PRESET | {"groups": 0}), mosaics)
    assert torch.equal(torch.get_rng_state(), state) and {len(r) for r in regions.values()} == {8}


def test_a_loss_of_weight_zero_is_left_out_whole(texts, run, singles):
    """No regions to pool, no parameter without gradient, no proposals, no queue."""
    for weights, roles in (({"caption_weight": 0.0}, {"tag"}), ({"tag_weight": 0.0}, {"caption"})):
        method = Detic(**CLIM_PRESET | weights)
        assert method.needs_proposals is ("tag" in roles) and (method.queue is not None) is ("caption" in roles)
        regions, _, losses = run(method, singles)
        assert set(regions) == roles and set(losses) == {f"loss_{role}" for role in roles}
        assert {name for name, _ in method.named_parameters()} == {f"bias.{role}" for role in roles}
        method.update_queues({}, texts(singles))


def test_presets_of_the_configs(load_cfg):
    clim, official = (build_method(load_cfg(f"{name}.yaml")) for name in ("Detic_CLIM_C4", "Detic_C4_official"))
    assert clim.queue.embeddings.shape == (256, 512) and clim.num_groups == 4
    names = ("temperature", "negative_weight", "caption_weight", "caption_base_regions")
    for method, preset in ((clim, CLIM_PRESET), (official, OFFICIAL_PRESET)):
        for name in (*names, "tag_weight", "tag_target", "tag_min_iof", "tag_topk"):
            assert getattr(method, name) == preset[name]
        assert method.gather is (preset["caption_negatives"] == "gather")
        assert [b.item() for b in method.bias.values()] == preset["bias"] * 2
    assert build_method(load_cfg("BoxSup_C4.yaml")) is None
    assert build_method(load_cfg("Detic_C4_official_max-size.yaml")).tag_topk == 31
