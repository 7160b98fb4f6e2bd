"""Official Detic in a cascade against a loop over images, written from the formulas (detic §3.1)."""

import math
from functools import partial

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F

from clim.methods import Texts, build_method
from clim.methods import detic as detic_module
from clim.methods.detic import Detic, OfficialDetic
from clim.modeling import embed_regions

DIM, CLASSES = 6, 5
PRESET = {
    "dim": DIM, "temperature": 50.0, "bias": [], "caption_weight": 0.1, "caption_base_regions": 0,
    "caption_negatives": "gather", "negative_weight": 0.125, "queue_length": 8, "tag_weight": 0.1,
    "tag_target": "per_tag", "tag_min_iof": 0.3, "tag_topk": 4, "groups": 0,
}  # fmt: skip
ROWS = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(9))
CLASS_EMBEDDINGS = F.pad(F.normalize(ROWS), (0, 0, 0, 1))
# (height, width, tags, proposals). Boxes move by 45 px: all of the second image leave it, its own box too.
IMAGES = [
    (100, 100, [0, 2], [[-9, 0, 50, 30], [60, 5, 120, 90], [20, 20, 30, 40], [2, 2, 50, 52], [0, 0, 100, 100]]),
    (90, 40, [1], [[5, 5, 35, 80], [1, 1, 9, 9]]),
    (100, 80, [], [[10, 10, 30, 30], [0, 40, 33, 90]]),
    (60, 90, [3, 4, 1], []),
]
SIZES = [(height, width) for height, width, *_ in IMAGES]
SHIFTS = ((45, -5, 45, 0), (6, 0, -3, 9))


IMAGE_BOXES = [[0, 0, width, height] for height, width in SIZES]


@pytest.fixture
def tiles(tiles_of):
    return tiles_of(IMAGE_BOXES, canvas=[0, 1, 2, 3], tags=[tags for _, _, tags, _ in IMAGES])


@pytest.fixture
def run(tiles, hash_tower):
    """``run(method, head)``: regions and losses of every stage."""
    found = [Boxes(torch.tensor(boxes).reshape(-1, 4).float()) for *_, boxes in IMAGES]
    proposals = [Instances(size, proposal_boxes=boxes) for size, boxes in zip(SIZES, found, strict=True)]

    def make(method, head):
        texts = Texts(tiles, encoder=hash_tower(DIM), class_embeddings=CLASS_EMBEDDINGS)
        regions, refine = method.select(tiles, proposals), partial(method.refine, tiles)
        stages = embed_regions(head, {"": torch.zeros(len(tiles), 1)}, regions, image_sizes=SIZES, refine=refine)
        return [(of_stage, method.losses(embeddings, of_stage, texts)) for of_stage, embeddings in stages]

    return make


def bce(logit, target):
    return math.log1p(math.exp(-logit if target else logit))


def slow_losses(boxes, weight, captions, area):
    """The losses of one stage, from the boxes of each image."""
    caption = tag = 0.0
    for i, (of_image, (_, _, tags, _)) in enumerate(zip(boxes, IMAGES, strict=True)):
        if of_image:
            picked = torch.tensor([of_image[-1], max(of_image[:-1] or of_image, key=area)]).float() @ weight
            scores = (50 * F.cosine_similarity(picked[:1], captions)).tolist()
            caption += sum(bce(s, 1) if i == j else 0.125 * bce(s, 0) for j, s in enumerate(scores))
            scores = (50 * F.cosine_similarity(picked[1:], CLASS_EMBEDDINGS)).tolist()
            tag += sum(bce(s, k == t) for t in tags for k, s in enumerate(scores)) / max(len(tags), 1)
    return {"loss_caption": 0.1 * caption / len(boxes), "loss_tag": 0.1 * tag / len(boxes)}


def close(losses, expected):
    assert {k: v.item() for k, v in losses.items()} == {k: pytest.approx(v, rel=1e-4) for k, v in expected.items()}


@pytest.mark.parametrize("with_captions", [True, False])
def test_three_stages(run, tiles, cascade, by_loops, hash_tower, with_captions):
    """Without captions there is no image box, and the worst proposal has no loss."""
    head, captions = cascade(DIM, *SHIFTS), hash_tower(DIM).encode(tiles.drawn)
    stages = run(OfficialDetic(**PRESET | ({} if with_captions else {"caption_weight": 0.0})), head)
    found = [boxes[:4] for *_, boxes in IMAGES]
    boxes = [[by_loops.clip(b, image) for b in best] for best, image in zip(found, IMAGE_BOXES, strict=True)]
    if with_captions:
        boxes = [[*best, image] for best, image in zip(boxes, IMAGE_BOXES, strict=True)]
    for (_, losses), pooled, weight, shift in zip(stages, head.pooled, head.weights, [*SHIFTS, None], strict=True):
        assert pooled == boxes
        expected = slow_losses(boxes, weight, captions, by_loops.area)
        close(losses, expected if with_captions else {"loss_tag": expected["loss_tag"]})
        moved = [(torch.tensor(b).reshape(-1, 4) + torch.tensor(shift or 0)).tolist() for b in boxes]
        clipped = [[by_loops.clip(b, image) for b in best] for best, image in zip(moved, IMAGE_BOXES, strict=True)]
        boxes = [[b for b in of_image if b[0] < b[2] and b[1] < b[3]] for of_image in clipped]
    if with_captions:
        assert [b[-1:] for b in head.pooled[1]] == [[[45, 0, 100, 100]], [], [[45, 0, 80, 100]], [[45, 0, 90, 60]]]


def test_with_one_stage_it_is_the_official_preset_of_detic(run, cascade):
    """Detic picks the boxes before they are embedded."""
    ((regions, losses),) = run(OfficialDetic(**PRESET), cascade(DIM))
    ((picked, expected),) = run(Detic(**PRESET), cascade(DIM))
    assert len(regions["box"]) == 4 + 2 + 2 + 0 + len(IMAGES) and {len(r) for r in picked.values()} == {len(IMAGES)}
    close(losses, {name: loss.item() for name, loss in expected.items()})


def test_without_any_box_losses_are_0_with_a_graph_and_still_gather(run, cascade, monkeypatch):
    """Another process waits for this one's captions."""
    gathered, head = [], cascade(DIM, (200, 0, 200, 0))
    monkeypatch.setattr(detic_module, "gather_rows", lambda rows: gathered.append(rows) or (rows, 0))
    head.weights.requires_grad_()
    *_, (regions, losses) = run(OfficialDetic(**PRESET), head)
    assert len(regions["box"]) == 0 and len(gathered) == 2 * 2  # captions and ids of two stages
    close(losses, {"loss_caption": 0, "loss_tag": 0})
    sum(losses.values()).backward()
    assert head.weights.grad.abs().sum() == 0


def test_it_is_built_from_the_keys_of_detic(load_cfg):
    method = build_method(load_cfg("Detic_C4_official.yaml", "MODEL.METHOD.NAME", "OfficialDetic"))
    assert type(method) is OfficialDetic and method.tag_topk == 32 and method.gather and method.state_dict() == {}
