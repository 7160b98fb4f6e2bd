"""Detic whole: selection → losses → queue, against loops in plain Python written from the formulas."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from clim.data.tiles import Tiles
from clim.errors import UserError
from clim.methods import Texts, build_method
from clim.methods import detic as detic_module
from clim.methods.detic import Detic

DIM, CLASSES = 6, 5

CLIM_PRESET = {
    "dim": DIM, "temperature": 25.0, "bias": -20.0, "caption_weight": 0.1, "caption_base_regions": 4,
    "caption_negatives": "queue", "negative_weight": 0.125, "queue_length": 8, "tag_weight": 0.1 / 3,
    "tag_target": "multi_hot", "tag_min_iof": 0.3, "tag_topk": 128,
}  # fmt: skip
OFFICIAL_PRESET = CLIM_PRESET | {
    "temperature": 50.0, "bias": None, "caption_base_regions": 0, "caption_negatives": "gather",
    "negative_weight": 1.0, "tag_weight": 0.1, "tag_target": "per_tag", "tag_topk": 32,
}  # fmt: skip


def canvas(ids, *, tags=None, groups=((), ())):
    """Tiles of one 100 x 100 canvas; ``groups``: the members of each group, for captions and for tags."""
    count = len(ids)
    side = math.isqrt(count)
    cell = 100 / side
    boxes = [
        [c % side * cell, c // side * cell, (c % side + 1) * cell, (c // side + 1) * cell]
        for c in range(count)
    ]
    masks = torch.zeros(2, len(groups[0]), count, dtype=torch.bool)
    for draw, rows in enumerate(groups):
        for row, members in enumerate(rows):
            masks[draw, row, list(members)] = True
    return Tiles(
        boxes=torch.tensor(boxes),
        canvas=torch.zeros(count, dtype=torch.int64),
        image_ids=torch.tensor(ids),
        captions=[[f"caption of {i}", "another"] for i in ids],
        drawn=[f"caption of {i}" for i in ids],
        tags=tags or [[] for _ in ids],
        groups=masks,
    )


SINGLES = Tiles.cat([canvas([1], tags=[[0, 2]]), canvas([2], tags=[[]])])
MOSAICS = Tiles.cat(
    [
        canvas([3, 1, 4, 5], tags=[[0], [0, 2], [], [4]], groups=([(0, 1), (0, 1, 2, 3)], [(1, 3), (2, 3)])),
        canvas([6, 6, 7, 8], tags=[[1], [1], [1, 3], [2]], groups=([(2, 3), (0, 2)], [(0, 1), (0, 1, 2, 3)])),
    ]
)


def class_embeddings():
    rows = torch.nn.functional.normalize(
        torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(9)), dim=1
    )
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
    return {
        role: (3 * torch.randn(len(r), DIM, generator=generator)).requires_grad_()
        for role, r in regions.items()
    }


def no_proposals(tiles):
    count = int(tiles.canvas.max()) + 1
    return [Instances((100, 100), proposal_boxes=Boxes(torch.zeros(0, 4))) for _ in range(count)]


def bce(logit, target):
    signed = -logit if target else logit
    return max(signed, 0.0) + math.log1p(math.exp(-abs(signed)))


def cosine(a, b):
    norms = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


def region_members(tiles, draw):
    """Tiles of every region: each tile alone, then each group."""
    groups = [[t for t, inside in enumerate(row) if inside] for row in tiles.groups[draw].tolist()]
    return [[t] for t in range(len(tiles))] + groups


def slow_caption_loss(embeddings, tiles, queue, encode, *, temperature=25.0, bias=-20.0):
    """0.025 Σ_r Σ_c w_rc · BCE(temperature · cos + bias, y_rc), c over the batch and the queue."""
    columns = [(encode(c), i) for c, i in zip(tiles.drawn, tiles.image_ids.tolist(), strict=True)] + queue
    total = 0.0
    for v, members in zip(embeddings.tolist(), region_members(tiles, 0), strict=True):
        ids = {int(tiles.image_ids[t]) for t in members}
        count = sum(i in ids for _, i in columns)
        for t, i in columns:
            z = temperature * cosine(v, t) + bias
            total += bce(z, 1) / count if i in ids else 0.125 * bce(z, 0)
    return 0.025 * total


def slow_tag_loss(embeddings, tiles, *, temperature=25.0, bias=-20.0):
    """(0.1 / 3) · mean_r Σ_k BCE(temperature · cos + bias, multi-hot), all classes, no background."""
    rows = []
    for v, members in zip(embeddings.tolist(), region_members(tiles, 1), strict=True):
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
    close(losses["loss_caption"], slow_caption_loss(embeddings["caption"], tiles, [], texts.row, bias=bias))
    close(losses["loss_tag"], slow_tag_loss(embeddings["tag"], tiles, bias=bias))


@pytest.mark.parametrize("bias", [-20.0, -1.0])
def test_queued_captions_are_negatives_and_those_of_the_same_image_positives(texts, bias):
    """Captions first, then mosaics, as one iteration runs: image 1 is in both, image 6 twice in the batch."""
    method = Detic(**CLIM_PRESET | {"bias": bias})
    method.commit(texts(SINGLES))
    regions = method.select(MOSAICS, no_proposals(MOSAICS))
    embeddings = embed(regions)
    queue = [(texts.row("caption of 1"), 1), (texts.row("caption of 2"), 2)]
    expected = slow_caption_loss(embeddings["caption"], MOSAICS, queue, texts.row, bias=bias)
    without = slow_caption_loss(embeddings["caption"], MOSAICS, [], texts.row, bias=bias)
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
        losses.append(
            method.losses({"caption": torch.ones(len(regions["caption"]), DIM)}, regions, texts(tiles))
        )
    close(losses[1]["loss_caption"], 2 * losses[0]["loss_caption"].item())


def test_closed_form_at_right_angles(texts):
    """Orthogonal to every text, the logit is -20: softplus(20) a positive, softplus(-20) / 8 the rest."""
    method = Detic(**CLIM_PRESET)
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
    method.commit(texts(SINGLES))
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
        slow_caption_loss(embeddings["caption"], MOSAICS, [], texts.row, bias=bias)
        for bias in (-19.999, -20.001)
    )
    assert method.bias["caption"].grad.item() == pytest.approx((above - below) / 0.002, rel=1e-4)
    above, below = (slow_tag_loss(embeddings["tag"], MOSAICS, bias=bias) for bias in (-19.999, -20.001))
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


def test_official_has_nothing_to_commit(texts):
    method = Detic(**OFFICIAL_PRESET)
    method.commit(texts(OFFICIAL_BATCH))
    assert texts.tower.asked == [] and list(method.buffers()) == []


# ---- selection


def test_regions_are_tiles_then_groups_and_captions_stay_on_the_tiles():
    """Caption group box: union of member tiles; tag group box: union of members' largest proposals."""
    tiles = canvas([3, 1, 4, 5], groups=([(0, 1)], [(1, 2, 3)]))
    proposals = [
        Instances((100, 100), proposal_boxes=Boxes(torch.tensor([[55.0, 5, 95, 30], [10, 60, 30, 80]])))
    ]
    regions = Detic(**CLIM_PRESET).select(tiles, proposals)
    assert regions["caption"].boxes.tolist() == [*tiles.boxes.tolist(), [0, 0, 100, 50]]
    tag_boxes = [[0, 0, 50, 50], [55, 5, 95, 30], [10, 60, 30, 80], [50, 50, 100, 100]]
    assert regions["tag"].boxes.tolist() == [*tag_boxes, [10, 5, 100, 100]]
    eye = torch.eye(4, dtype=torch.bool).tolist()
    assert regions["caption"].members.tolist() == [*eye, [True, True, False, False]]
    assert regions["tag"].members.tolist() == [*eye, [False, True, True, True]]
    assert regions["caption"].canvas.tolist() == [0] * 5


def test_groups_stay_on_their_canvas():
    regions = Detic(**CLIM_PRESET).select(MOSAICS, no_proposals(MOSAICS))
    assert regions["caption"].canvas.tolist() == [0] * 4 + [1] * 4 + [0, 0, 1, 1]
    assert len(regions["caption"]) == len(regions["tag"]) == 12
    assert regions["caption"].boxes[8:].tolist() == [
        [0, 0, 100, 50],
        [0, 0, 100, 100],
        [0, 50, 100, 100],
        [0, 0, 50, 100],
    ]


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
    method.commit(texts(SINGLES))


# ---- queue


def test_losses_change_no_state_and_commit_pushes_once(texts):
    method = Detic(**CLIM_PRESET)
    regions = method.select(MOSAICS, no_proposals(MOSAICS))
    for _ in range(2):
        method.losses(embed(regions), regions, texts(MOSAICS))
    assert method.queue.read()[1].tolist() == []
    method.commit(texts(SINGLES))
    method.commit(texts(canvas([3, 1, 4, 5])))
    embeddings, ids = method.queue.read()
    assert ids.tolist() == [3, 1, 4, 5, 1, 2]  # the newest batch first
    expected = texts.tower.encode([f"caption of {i}" for i in [3, 1, 4, 5, 1, 2]])
    assert torch.equal(embeddings, expected)


def test_a_batch_is_encoded_once(texts):
    method, made = Detic(**CLIM_PRESET), texts(MOSAICS)
    regions = method.select(MOSAICS, no_proposals(MOSAICS))
    for _ in range(3):  # stages of a cascade
        method.losses(embed(regions), regions, made)
    method.commit(made)
    assert texts.tower.asked == [MOSAICS.drawn]


def test_the_queue_is_in_no_checkpoint():
    assert set(Detic(**CLIM_PRESET).state_dict()) == {"bias.caption", "bias.tag"}


# ---- config


def test_presets_of_the_configs(load_cfg):
    clim = build_method(load_cfg("Detic_CLIM_C4.yaml"))
    expected = CLIM_PRESET | {"dim": 512, "queue_length": 256}
    assert clim.queue.embeddings.shape == (256, 512)
    official = build_method(load_cfg("Detic_C4_official.yaml"))
    for method, preset in ((clim, expected), (official, OFFICIAL_PRESET)):
        for name in (
            "temperature",
            "negative_weight",
            "caption_weight",
            "caption_base_regions",
            "tag_weight",
        ):
            assert getattr(method, name) == preset[name]
        for name in ("tag_target", "tag_min_iof", "tag_topk"):
            assert getattr(method, name) == preset[name]
        assert method.gather is (preset["caption_negatives"] == "gather")
        assert [b.item() for b in method.bias.values()] == ([-20.0] * 2 if preset["bias"] else [])
    assert build_method(load_cfg("BoxSup_C4.yaml")) is None
    assert build_method(load_cfg("Detic_C4_official_max-size.yaml")).tag_topk == 31


@pytest.mark.parametrize(
    "bad, message",
    [({"caption_negatives": "memory"}, "CAPTION_NEGATIVES"), ({"tag_target": "hot"}, "TAG_TARGET")],
)
def test_wrong_words_are_told(bad, message):
    with pytest.raises(UserError, match=message):
        Detic(**CLIM_PRESET | bad)
