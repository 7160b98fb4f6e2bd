"""VLDet whole, selection → stages → losses, against loops over tiles and nouns from the formulas (vldet §4)."""

from functools import partial
from itertools import permutations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from clim.errors import UserError
from clim.losses import noun_contrast
from clim.methods import Texts, build_method
from clim.methods.vldet import VLDet, match_nouns, match_softly, sinkhorn_plan
from clim.modeling import embed_regions

DIM, NOUNS = 6, 9
# With this seed no two plans of Sinkhorn are nearly equal, where float32 and float64 may choose different nouns.
TABLE = F.normalize(torch.randn(NOUNS, DIM, generator=torch.Generator().manual_seed(9)))
PRESET = {
    "nouns": TABLE, "temperature": 50.0, "caption_weight": 0.1, "noun_weight": 0.01, "noun_loss": "contrastive",
    "proposals": 4, "tile_proposals": 2, "tile_min_iof": 0.3, "exact_box": True,
}  # fmt: skip

# (height, width, tiles, nouns of each, proposals). Empty once clipped: the first proposal of the first image. Boxes
# move by 45 px, and then all boxes leave the second image, its own too.
PLAIN = [
    (100, 100, [[0, 0, 100, 100]], [[0, 2, 0]],
     [[-9, 0, 0, 30], [-9, 0, 50, 30], [60, 5, 120, 90], [20, 20, 30, 40], [2, 2, 50, 52], [0, 0, 99, 100]]),
    (90, 40, [[0, 0, 40, 90]], [[1]], [[5, 5, 35, 80], [1, 1, 9, 9]]),
    (100, 80, [[0, 0, 80, 100]], [[]], [[10, 10, 30, 30], [0, 40, 33, 90]]),
    (60, 90, [[0, 0, 90, 60]], [[3, 4, 1]], []),
    (60, 90, [[0, 0, 90, 60]], [[3, 4, 1]], [[5, 6, 30, 50], [40, 2, 80, 30]]),
]  # fmt: skip
CELLS = [[0, 0, 50, 50], [50, 0, 100, 50], [0, 50, 48, 98], [50, 50, 100, 100]]
MOSAICS = [
    (100, 100, CELLS, [[1, 5], [3], [], [8, 8, 0]],
     [[5, 9, 45, 60], [8, 3, 40, 20], [1, 1, 9, 9], [5, 5, 95, 40], [60, 60, 99, 80], [62, 51, 70, 120],
      [0, 0, 100, 100]]),
    (100, 100, [[3, 0, 47, 50], [50, 4, 100, 46]], [[7], [2, 6, 1]], [[10, 10, 40, 30], [52, 6, 130, 45]]),
]  # fmt: skip
SOURCES = {"captions": PLAIN, "mosaics": MOSAICS}
SHIFTS = ((45, -5, 45, 0), (6, 0, -3, 9))


@pytest.fixture
def texts_of(tiles_of, hash_tower):
    """``texts_of("captions", …)``: the texts of these sources, which know each other; image 3 is in both."""

    def make(*names):
        made = []
        for name in names:
            canvases, first = SOURCES[name], 0 if name == "captions" else 3
            boxes = [box for _, _, tiles, *_ in canvases for box in tiles]
            canvas = [i for i, (_, _, tiles, *_) in enumerate(canvases) for _ in tiles]
            tags = [list(tags) for *_, of_canvas, _ in canvases for tags in of_canvas]
            ids = [first + i for i in range(len(boxes))]
            captions = [[f"{name} {i}"] for i in ids]
            tiles = tiles_of(boxes, canvas=canvas, ids=ids, captions=captions, tags=tags)
            made.append(Texts(tiles, encoder=hash_tower(DIM), class_embeddings=torch.zeros(1, DIM)))
        for own in made:
            own.others = [other for other in made if other is not own]
        return made

    return make


def select(method, source, tiles):
    found = [Boxes(torch.tensor(boxes).reshape(-1, 4).float()) for *_, boxes in SOURCES[source]]
    sizes = [(height, width) for height, width, *_ in SOURCES[source]]
    proposals = [Instances(size, proposal_boxes=boxes) for size, boxes in zip(sizes, found, strict=True)]
    return method.select(tiles, proposals), sizes


def run(method, head, source, texts):
    """Regions and losses of every stage."""
    regions, sizes = select(method, source, texts.tiles)
    refine = partial(method.refine, texts.tiles)
    stages = embed_regions(head, {"": torch.zeros(len(sizes), 1)}, regions, image_sizes=sizes, refine=refine)
    return [(of_stage["region"], method.losses(rows, of_stage, texts)) for of_stage, rows in stages]


# ---- the reference: lists of boxes of each tile, sums of scalars


def slow_selection(source, loops):
    """For each tile its proposals, best first, and its own box."""
    chosen = []
    for height, width, tiles, _, found in SOURCES[source]:
        clipped = [loops.clip(box, [0, 0, width, height]) for box in found]
        clipped = [box for box in clipped if box[0] < box[2] and box[1] < box[3]]
        for tile in tiles:
            mine = []
            for box in clipped:
                shares = [loops.area(loops.clip(box, other)) / loops.area(box) for other in tiles]
                if max(shares) > 0.3 and tiles[shares.index(max(shares))] == tile:
                    mine.append(loops.clip(box, tile))
            chosen.append([*mine[: 4 if len(tiles) == 1 else 2], tile])
    return chosen


def slow_refinement(boxes, moved, tiles, loops, *, exact):
    """The boxes of the next stage, from each tile's ``moved`` ones."""
    refined = [[loops.clip(box, tile) for box in of_tile] for of_tile, tile in zip(moved, tiles, strict=True)]
    if exact:
        refined = [[*of_tile[:-1], tile] for of_tile, tile in zip(refined, tiles, strict=True)]
    return [[b for b in of_tile if b[0] < b[2] and b[1] < b[3]] for of_tile in refined]


def softplus(x):
    return torch.log1p(torch.exp(x))


def cosine(a, b):
    return 50 * (a @ b) / (a.norm() * b.norm())


def slow_matches(similarity):
    """[(noun, region)] of the best of all one-to-one assignments of N nouns and P regions."""
    count, regions = similarity.shape
    if count <= regions:
        choices = [list(enumerate(chosen)) for chosen in permutations(range(regions), count)]
    else:
        choices = [[(n, p) for p, n in enumerate(chosen)] for chosen in permutations(range(count), regions)]
    return max(choices, key=lambda pairs: sum(similarity[n, p].item() for n, p in pairs))


def slow_plan(distance, *, eps=1e-3, iterations=100):
    n, p = distance.shape
    u, v = [1.0] * n, [1.0] * p
    cell = lambda i, j: (-distance[i, j] + u[i] + v[j]) / eps  # noqa: E731
    for _ in range(iterations):
        v = [v[j] - eps * torch.logsumexp(torch.stack([cell(i, j) for i in range(n)]), 0) for j in range(p)]
        u = [u[i] - eps * torch.logsumexp(torch.stack([cell(i, j) for j in range(p)]), 0) for i in range(n)]
    return torch.stack([torch.stack([cell(i, j) for j in range(p)]) for i in range(n)]).exp()


def slow_nouns(rows, own, others, variant):
    """The noun loss of one tile, from the embeddings of its regions without the last."""
    table, zero = TABLE.double(), torch.zeros((), dtype=torch.float64)
    if not rows:
        return zero
    similarity = torch.stack([torch.stack([cosine(table[n], row) for row in rows]) for n in own]) if own else None
    if variant == "sinkhorn":
        with_background = torch.zeros(len(own) + 1, len(rows), dtype=torch.float64)
        if own:
            with_background[:-1] = similarity.detach()
        plan = slow_plan(-with_background)
        pairs = [(max(range(len(own) + 1), key=lambda n: plan[n, p] / plan[n].max()), p) for p in range(len(rows))]
    else:
        pairs = slow_matches(similarity) if own else []
    if variant == "bce":
        positive = {(own[n], p) for n, p in pairs}
        logits = {(v, p): cosine(table[v], row) for v in range(NOUNS) for p, row in enumerate(rows)}
        return sum((softplus(-z if key in positive else z) for key, z in logits.items()), zero)
    loss = zero
    for n, p in pairs:
        loss = loss + softplus(-similarity[n, p] if n < len(own) else zero)
        for m in (m for of_tile in others for m in of_tile if m not in own):
            loss = loss + softplus(cosine(table[m], rows[p]))
    return loss


def slow_losses(rows, texts, variant):
    """The losses of one source and stage, from the embeddings of each tile's regions."""
    tags = [tags for source in (texts, *texts.others) for tags in source.tiles.tags]
    ids = [i for source in (texts, *texts.others) for i in source.tiles.image_ids.tolist()]
    captions = torch.cat([source.drawn for source in (texts, *texts.others)]).double()
    caption = noun = torch.zeros((), dtype=torch.float64)
    for t, of_tile in enumerate(rows):
        if of_tile:
            for c, other in zip(captions, ids, strict=True):
                z = cosine(c, of_tile[-1])
                caption = caption + (softplus(-z) / ids.count(ids[t]) if other == ids[t] else softplus(z))
            noun = noun + slow_nouns(of_tile[:-1], tags[t], tags[:t] + tags[t + 1 :], variant)
    return {"loss_caption": 0.1 * caption / len(tags), "loss_noun": 0.01 * noun / len(tags)}


def close(actual, expected):
    """Equal up to a few float32 roundings of the largest entry, which a sum leaves in its small entries, too."""
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-6 * expected.abs().max().item())


@pytest.mark.parametrize("variant", ["contrastive", "bce", "sinkhorn"])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("names", [["captions"], ["captions", "mosaics"]])
def test_three_stages(texts_of, cascade, by_loops, names, exact, variant):
    """Boxes, losses and gradients of all sources and stages."""
    method = VLDet(**PRESET | {"exact_box": exact, "noun_loss": variant})
    for source, texts in zip(names, texts_of(*names), strict=True):
        head, slow = cascade(DIM, *SHIFTS), []
        head.weights.requires_grad_()
        stages, weights = run(method, head, source, texts), head.weights.detach().double().requires_grad_()
        own, boxes = texts.tiles.boxes.tolist(), slow_selection(source, by_loops)
        sizes = [SOURCES[source][c][:2] for c in texts.tiles.canvas.tolist()]
        for (regions, losses), weight, shift in zip(stages, weights, [*SHIFTS, (0, 0, 0, 0)], strict=True):
            assert regions.boxes.tolist() == [box for of_tile in boxes for box in of_tile]
            tiles = [t for t, of_tile in enumerate(boxes) for _ in of_tile]
            assert regions.members.nonzero()[:, 1].tolist() == tiles
            assert torch.equal(regions.canvas, texts.tiles.canvas[tiles]) and not regions.boxes.requires_grad
            rows = [[torch.tensor(b, dtype=torch.float64) @ weight for b in of_tile] for of_tile in boxes]
            slow.append(slow_losses(rows, texts, variant))
            for name, loss in losses.items():
                close(loss.detach(), slow[-1][name].detach())
            moved = [
                [by_loops.clip((torch.tensor(b) + torch.tensor(shift)).tolist(), [0, 0, w, h]) for b in of_tile]
                for of_tile, (h, w) in zip(boxes, sizes, strict=True)
            ]
            boxes = slow_refinement(boxes, moved, own, by_loops, exact=exact)
        assert (len(stages[1][0]) < len(stages[0][0])) and (exact or source == "mosaics" or not boxes[1])
        sum(loss for _, losses in stages for loss in losses.values()).backward()
        sum(loss for losses in slow for loss in losses.values()).backward()
        close(head.weights.grad, weights.grad)


def test_without_captions_or_nouns(texts_of, cascade):
    (texts,) = texts_of("captions")
    for key, name in (("noun_weight", "loss_caption"), ("caption_weight", "loss_noun")):
        ((_, losses),) = run(VLDet(**PRESET | {key: 0.0}), cascade(DIM), "captions", texts)
        assert set(losses) == {name}


@pytest.mark.parametrize("variant", ["contrastive", "bce", "sinkhorn"])
def test_the_caption_belongs_to_the_last_box_and_tiles_without_boxes_count(texts_of, by_loops, variant):
    """The regressed box of the first image is empty, of the third image all are."""
    method, (texts,) = VLDet(**PRESET | {"exact_box": False, "noun_loss": variant}), texts_of("captions")
    before, _ = select(method, "captions", texts.tiles)
    boxes, tile = before["region"].boxes.clone(), before["region"].members.nonzero()[:, 1]
    boxes[(tile == 0).nonzero()[-1, 0]] = torch.tensor([100.0, 0, 100, 100])
    boxes[tile == 2] = torch.tensor([7.0, 7, 7, 30])
    after = method.refine(texts.tiles, before, {"region": boxes})
    counts = after["region"].members.sum(0).tolist()
    assert counts == [4, 3, 0, 1, 3] and before["region"].members.sum(0).tolist() == [5, 3, 3, 1, 3]
    embeddings = torch.randn(11, DIM, generator=torch.Generator().manual_seed(3))
    losses = method.losses({"region": embeddings}, after, texts)
    expected = slow_losses([list(rows) for rows in embeddings.double().split(counts)], texts, variant)
    for name, loss in losses.items():
        close(loss, expected[name])

    after = {"region": after["region"][torch.zeros(0, dtype=torch.int64)]}
    embeddings = torch.zeros(0, DIM, requires_grad=True)
    losses = method.losses({"region": embeddings}, after, texts)
    assert [loss.item() for loss in losses.values()] == [0, 0]
    sum(losses.values()).backward()


# ---- matching


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2**31), st.sampled_from([match_nouns, match_softly]))
def test_matching(nouns, regions, seed, match):
    """The best of all assignments, or the row of the largest mass, the first of several, in any order and batch."""
    generator = torch.Generator().manual_seed(seed)
    similarity = 50 * torch.rand(nouns, regions, generator=generator) - 25
    places, order = torch.randperm(regions, generator=generator), torch.randperm(nouns, generator=generator)
    order = torch.arange(nouns) if match is match_softly else order
    plain, permuted, _ = match([similarity, similarity[order][:, places], torch.rand(5, 6, generator=generator)])
    pairs = sorted(zip(*(rows.tolist() for rows in plain), strict=True))
    order = [*order.tolist(), nouns]
    assert pairs == sorted((order[n], places[p].item()) for n, p in zip(*permuted, strict=True))
    if match is match_nouns:
        assert pairs == sorted(slow_matches(similarity)) and len(pairs) == min(nouns, regions)
    elif regions:
        plan = sinkhorn_plan(-F.pad(similarity.double(), (0, 0, 0, 1)), eps=1e-3, iterations=100)
        torch.testing.assert_close(plan, slow_plan(-F.pad(similarity.double(), (0, 0, 0, 1))))
        torch.testing.assert_close(plan.sum(1), torch.ones(nouns + 1).double())
        assert sorted(p for _, p in pairs) == list(range(regions))


def test_noun_contrast_is_a_sum_of_binary_losses():
    logits, negatives = torch.tensor([[3.0, -2.0, 0.5], [0.1, 0.2, -9.0]]), torch.tensor([[0, 2, 1], [3, 0, 0]])
    expected = [softplus(-logits[0, 0]) + 2 * softplus(logits[0, 1]) + softplus(logits[0, 2])]
    expected += [softplus(-logits[1, 2]) + 3 * softplus(logits[1, 0])]
    torch.testing.assert_close(noun_contrast(logits, torch.tensor([0, 2]), negatives), torch.stack(expected))


# ---- the whole model


TINY = [
    "MODEL.ROI_HEADS.NUM_CLASSES", 7, "MODEL.TEXT.DIM", DIM, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 3,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.MASK_ON", False,
    "MODEL.OPEN_VOCAB.BASE_CLASSES", "", "MODEL.VOCABULARY.EMBEDDINGS", "",
]  # fmt: skip


@pytest.mark.parametrize("exact", [True, False])
def test_the_cascade_of_ovlvis(load_cfg, texts_of, by_loops, exact):
    """Losses of all stages with the real head; gradients reach its projections and features, and no boxes."""
    torch.manual_seed(0)
    cfg = load_cfg("lvis/VLDet_C2_official.yaml", *TINY)
    shapes = {f"p{i}": ShapeSpec(channels=4, stride=2**i) for i in (3, 4, 5)}
    head = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, shapes, text_encoder=None)
    for predictor in head.predictors:
        torch.nn.init.normal_(predictor.bbox_pred[2].weight, std=0.5)
    method, texts = VLDet(**PRESET | {"exact_box": exact}), texts_of("captions", "mosaics")[1]
    features = {f"p{i}": torch.randn(2, 4, 104 // 2**i, 104 // 2**i, requires_grad=True) for i in (3, 4, 5)}
    regions, sizes = select(method, "mosaics", texts.tiles)
    stages = embed_regions(head, features, regions, image_sizes=sizes, refine=partial(method.refine, texts.tiles))
    total = sum(loss for of_stage, rows in stages for loss in method.losses(rows, of_stage, texts).values())
    total.backward()
    weights = [*features.values(), *head.parameters()]
    grads, expected, boxes = [w.grad for w in weights], 0.0, slow_selection("mosaics", by_loops)
    scaled = [f / 3 + f.detach() * 2 / 3 for f in features.values()]
    for box_head, predictor in zip(head.box_head, head.predictors, strict=True):
        rows, moved = [], []
        for of_tile, canvas in zip(boxes, texts.tiles.canvas.tolist(), strict=True):
            tensor = torch.tensor(of_tile, dtype=torch.float32).reshape(-1, 4)
            x = box_head(head.box_pooler([f[[canvas]] for f in scaled], [Boxes(tensor)]))
            rows.append(list(predictor.cls_score.linear(x).double()))
            refined = predictor.box2box_transform.apply_deltas(predictor.bbox_pred(x), tensor)
            moved.append([by_loops.clip(box, [0, 0, 100, 100]) for box in refined.tolist()])
        expected = expected + sum(slow_losses(rows, texts, "contrastive").values())
        boxes = slow_refinement(boxes, moved, texts.tiles.boxes.tolist(), by_loops, exact=exact)
    close(total.detach(), expected.detach())
    for grad, slow in zip(grads, torch.autograd.grad(expected, weights, allow_unused=True), strict=True):
        assert (grad is None) == (slow is None)
        if slow is not None:
            torch.testing.assert_close(grad, slow, rtol=1e-3, atol=1e-5)
    assert not [n for n, w in head.named_parameters() if ("bbox_pred" in n) == (w.grad is not None)]


def test_from_config(load_cfg, tmp_path, texts_of):
    torch.save(TABLE[:, None] * 3, tmp_path / "nouns.pth")
    keys = ("MODEL.TEXT.DIM", DIM, "MODEL.METHOD.VLDET.EMBEDDINGS", str(tmp_path / "nouns.pth"))
    method = build_method(load_cfg("lvis/VLDet_CLIM_C2.yaml", *keys))
    torch.testing.assert_close(method.nouns, TABLE)
    assert (method.proposals, method.tile_proposals, method.exact_box) == (32, 8, True)
    assert not list(method.parameters()) and set(method.state_dict()) == {"nouns"}
    for more, message in (
        (("MODEL.TEXT.DIM", 8), "6 dimensions, but MODEL.TEXT.DIM is 8"),
        (("MODEL.METHOD.VLDET.EMBEDDINGS", str(tmp_path / "gone.pth")), "VLDET.EMBEDDINGS"),
    ):
        with pytest.raises(UserError, match=message):
            build_method(load_cfg("VLDet_C4_official.yaml", *keys, *more))
    (texts,) = texts_of("captions")
    texts.tiles.tags[1] = [NOUNS]
    with pytest.raises(UserError, match="has noun 9, but MODEL.METHOD.VLDET.EMBEDDINGS has 9 rows"):
        method.noun_losses(torch.zeros(0, DIM), torch.zeros(0, dtype=torch.int64), texts)
