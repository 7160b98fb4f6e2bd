"""CenterNet: targets, losses and proposals against loops over locations and boxes; two processes.

``python test_centernet.py OUTPUT RANK`` is one of the processes; it writes OUTPUT/rank{0,1}.pth.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import create_ddp_model
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from clim.config import add_clim_config
from clim.losses import heat_map_losses, ltrb_giou_loss
from clim.modeling.centernet import centernet_targets, choose_proposals, flatten_maps, level_locations
from clim.processes import leave_group

CHANNELS = 32
STRIDES = [8, 16, 32, 64, 128]
SIZES = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]  # of a canvas of 128 x 192 px
NARROW = [[0, 20], [16, 40], [32, 80], [64, 90], [85, 1e7]]  # so that such a canvas has boxes of all levels
FOCAL = {"alpha": 0.25, "beta": 4, "gamma": 2.0, "clamp": 1e-4, "ignore_above": 0.85}


def built(*overrides, channels):
    """The module of the default config, as it starts."""
    cfg = get_cfg()
    add_clim_config(cfg)
    cfg.merge_from_list(["MODEL.PROPOSAL_GENERATOR.NAME", "CenterNet", *overrides])
    torch.manual_seed(0)
    return build_proposal_generator(cfg, {f"p{i}": ShapeSpec(channels=channels, stride=2**i) for i in range(3, 8)})


def centernet(*overrides):
    """A small module whose heat map and distances differ between locations."""
    module = built(*overrides, channels=CHANNELS)
    torch.nn.init.normal_(module.centernet_head.agn_hm.weight, std=0.1)
    torch.nn.init.normal_(module.centernet_head.bbox_pred.weight, std=0.1)
    return module


def features(batch, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {f"p{i}": torch.randn(batch, CHANNELS, *s, generator=generator) for i, s in enumerate(SIZES, start=3)}


def images(batch):
    return ImageList(torch.zeros(batch, 3, 128, 192), [(128, 192 - 20 * i) for i in range(batch)])


def truth(*boxes):
    return [Instances((128, 192), gt_boxes=Boxes(torch.tensor(b, dtype=torch.float32).reshape(-1, 4))) for b in boxes]


BOXES = ([[8.0, 8, 60, 70], [100, 20, 190, 120]], [[30.0, 40, 34, 44]], [])


# ---- the start


def test_the_start():
    head = built(channels=64).centernet_head
    for layer in [*head.bbox_tower[0::3], head.agn_hm, head.bbox_pred]:
        assert abs(layer.weight.std() - 0.01) < 1e-3
    assert head.bbox_pred.bias.tolist() == [8.0] * 4 and all((c.bias == 0).all() for c in head.bbox_tower[0::3])
    assert head.agn_hm.bias.item() == pytest.approx(-math.log(99)) and head.bbox_tower[1].num_groups == 32
    heat, distances = head([torch.zeros(1, 64, 2, 3)] * 5)
    torch.testing.assert_close(heat[4].sigmoid(), torch.full((1, 1, 2, 3), 0.01))
    assert (distances[4] == 8).all()


# ---- targets


def locations_in_order(batch):
    """(level, image, x, y) in the order of the flattened batch, column and row of the cell."""
    return [
        (level, image, column, row)
        for level, (height, width) in enumerate(SIZES) for image in range(batch)
        for row in range(height) for column in range(width)
    ]  # fmt: skip


def slow_targets(boxes, ranges, delta, min_radius):
    """(positives, heat map, one list of allowed distances for each location)."""
    positives, heat_map, allowed = [], [], []
    for n, (level, image, column, row) in enumerate(locations_in_order(len(boxes))):
        stride, (low, high) = STRIDES[level], ranges[level]
        x, y = column * stride + stride / 2, row * stride + stride / 2
        heat, nearest, candidates = 0.0, math.inf, []
        for x0, y0, x1, y1 in boxes[image]:
            cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
            cell = (math.floor(cx / stride), math.floor(cy / stride))
            is_centre = cell == (column, row)
            belongs = low <= math.hypot(x1 - x0, y1 - y0) / 2 <= high
            positives += [n] * (is_centre and belongs)
            radius2 = max(2 * delta**2 * (x1 - x0) * (y1 - y0), min_radius**2)
            weighted = 0.0 if is_centre else ((x - cx) ** 2 + (y - cy) ** 2) / radius2
            heat = max(heat, math.exp(-weighted))
            near = abs(column - cell[0]) <= 1 and abs(row - cell[1]) <= 1
            if belongs and near and x0 < x < x1 and y0 < y < y1:
                candidates.append((weighted, [side / stride for side in (x - x0, y - y0, x1 - x, y1 - y)]))
                nearest = min(nearest, weighted)
        heat_map.append(heat if heat >= 1e-4 else 0.0)
        allowed.append([sides for d, sides in candidates if d <= nearest + 1e-6 * (1 + nearest)] or [[-1.0] * 4])
    return positives, heat_map, allowed


def check_targets(boxes, ranges=NARROW, delta=1 / 9, min_radius=4):
    locations = level_locations(SIZES, STRIDES)
    tensors = [torch.tensor(b, dtype=torch.float32).reshape(-1, 4) for b in boxes]
    found = centernet_targets(locations, SIZES, STRIDES, tensors, ranges=ranges, delta=delta, min_radius=min_radius)
    positives, heat_map, allowed = slow_targets(boxes, ranges, delta, min_radius)
    assert sorted(found.positives.tolist()) == sorted(positives)
    torch.testing.assert_close(found.heat_map, torch.tensor(heat_map), rtol=1e-5, atol=1e-7)
    for row, candidates in zip(found.distances.tolist(), allowed, strict=True):
        assert any(row == pytest.approx(c, rel=1e-6) for c in candidates)
    return found


@st.composite
def a_box(draw):
    quarters = [sorted(draw(st.lists(st.integers(0, 4 * side), min_size=2, max_size=2, unique=True)))
                for side in (192, 128)]  # fmt: skip
    return [value / 4 for pair in zip(*quarters, strict=True) for value in pair]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(a_box(), max_size=4), min_size=1, max_size=2))
@example([[], []])
@example([[[48.0, 16, 72, 48]]])  # half of the diagonal is 20: two levels
@example([[[3.0, 3, 3.5, 3.5]], [[40.0, 40, 48, 48], [41.0, 41, 46, 46], [41.0, 41, 46, 46]]])  # small; one cell
def test_targets_are_those_of_loops_over_locations_and_boxes(boxes):
    check_targets(boxes)


def test_every_box_is_positive_once_for_each_of_its_levels():
    """Official ranges: 96 x 128 px has half a diagonal of exactly 80 px; a box of half a pixel has no other target."""
    tiny, both, rule = [3.0, 3, 3.5, 3.5], [40.0, 0, 136, 128], built(channels=CHANNELS).target_rule
    found = check_targets([[tiny, both, tiny], [both]], **rule)
    bases = [0, 2 * 16 * 24]  # of the levels p3 and p4
    centre, second = [8 * 24 + 11, 4 * 12 + 5], [16 * 24, 8 * 12]
    expected = [0, bases[0] + centre[0], bases[1] + centre[1], 0]
    assert found.positives.tolist() == [*expected, *(bases[i] + second[i] + centre[i] for i in (0, 1))]
    assert (found.heat_map[found.positives] == 1).all()
    assert found.distances[0].tolist() == [-1] * 4  # the location (4, 4) is outside the tiny box


# ---- losses


def test_heat_map_losses_count_positives_twice_and_skip_confident_negatives():
    logits = torch.tensor([-20.0, -2.0, 0.5, 1.0, 3.0, 20.0], requires_grad=True)
    heat, positives = [0.0, 0.3, 1.0, 1.0, 0.0, 1.0], [2, 2, 3, 5]
    p = [min(max(1 / (1 + math.exp(-z)), 1e-4), 1 - 1e-4) for z in logits.tolist()]
    expected = (
        -0.25 * sum(math.log(p[i]) * (1 - p[i]) ** 2 for i in positives),
        -0.75 * sum(math.log(1 - q) * q**2 * (1 - h) ** 4 for q, h in zip(p, heat, strict=True) if q < 0.85),
    )
    found = heat_map_losses(logits, torch.tensor(heat), torch.tensor(positives), **FOCAL)
    assert [x.item() for x in found] == pytest.approx(expected, rel=1e-5)
    sum(found).backward()
    assert logits.grad[[0, 5]].tolist() == [0, 0]  # clamped
    assert logits.grad[4] == 0 and (logits.grad[1:4] != 0).all()  # p = .95 is ignored


def slow_giou(a, b):
    def area(left, top, right, bottom):
        return (left + right) * (top + bottom)

    intersection, enclosing = (area(*map(f, a, b)) for f in (min, max))
    union = area(*a) + area(*b) - intersection
    return 1 - ((intersection + 1) / (union + 1) - (enclosing - union) / enclosing)


def test_giou_of_distances():
    pairs = [((1, 2, 3, 4), (1, 2, 3, 4)), ((0, 0, 0, 0), (1, 2, 3, 4)), ((3, 1, 0.5, 2), (1, 2, 3, 4))]
    predicted, target = (torch.tensor(side, dtype=torch.float32) for side in zip(*pairs, strict=True))
    found = ltrb_giou_loss(predicted.requires_grad_(), target)
    assert found.tolist() == pytest.approx([slow_giou(a, b) for a, b in pairs])
    assert found[0] == 0 and found[1].item() == pytest.approx(1 - 1 / 25)
    none = ltrb_giou_loss(predicted[:0], target[:0]).sum()
    none.backward()
    assert none == 0 and (predicted.grad == 0).all()


def expected_losses(module, maps, instances):
    """The module's losses put together from its parts."""
    with torch.no_grad():
        heat, distances = module.centernet_head(list(maps.values()))
    boxes = [x.gt_boxes.tensor.tolist() for x in instances]
    positives, heat_map, allowed = slow_targets(boxes, module.target_rule["ranges"], 1 / 9, 4)
    logits, heat_map = flatten_maps(heat)[:, 0], torch.tensor(heat_map)
    pos, neg = heat_map_losses(logits, heat_map, torch.tensor(positives).long(), **FOCAL)
    learns = [(i, sides[0]) for i, sides in enumerate(allowed) if sides[0][0] >= 0]
    giou = sum(slow_giou(flatten_maps(distances)[i].tolist(), sides) for i, sides in learns)
    count = max(len(positives), 1)
    return {
        "loss_centernet_loc": giou / max(len(learns), 1),
        "loss_centernet_agn_pos": 0.5 * pos.item() / count,
        "loss_centernet_agn_neg": 0.5 * neg.item() / count,
    }


@pytest.mark.parametrize("boxes", [BOXES, ([], [])])
def test_losses_of_the_module(boxes):
    module = centernet().train()
    maps, instances = features(len(boxes)), truth(*boxes)
    _, losses = module(images(len(boxes)), maps, instances)
    assert {name: x.item() for name, x in losses.items()} == pytest.approx(expected_losses(module, maps, instances))
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_all_is_float32_inside_autocast():
    module = centernet().train()
    plain, losses = module(images(3), features(3), truth(*BOXES))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, same = module(images(3), features(3), truth(*BOXES))
    assert all(torch.equal(losses[name], same[name]) for name in losses)
    assert all(torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor) for a, b in zip(plain, low, strict=True))


# ---- proposals


def slow_choice(locations, distances, probabilities, *, min_probability, level_topk, topk, nms_threshold):
    candidates = []
    for centres, sides, p in zip(locations, distances, probabilities, strict=True):
        above = [i for i in range(len(p)) if p[i] > min_probability]
        for i in sorted(above, key=lambda i: -p[i])[:level_topk]:
            (x, y), (left, top, right, bottom) = centres[i].tolist(), sides[i].tolist()
            box = [x - left, y - top, max(x + right, x - left + 0.01), max(y + bottom, y - top + 0.01)]
            candidates.append((math.sqrt(p[i]), box))
    kept = []
    for score, box in sorted(candidates, key=lambda pair: -pair[0]):
        if all(box_iou(torch.tensor([box]), torch.tensor([other])) <= nms_threshold for _, other in kept):
            kept.append((score, box))
    return [(s, b) for s, b in kept if len(kept) <= topk or s >= kept[topk - 1][0]]


@pytest.mark.parametrize("topk", [5, 12, 100])
def test_choice_of_proposals(topk):
    generator = torch.Generator().manual_seed(topk)
    locations = list(level_locations(SIZES[2:], STRIDES[2:]).split([24, 6, 2]))
    distances = [torch.rand(len(x), 4, generator=generator) * 60 for x in locations]
    distances[1][2] = 0.0  # no side: 0.01 px
    probabilities = [torch.rand(len(x), generator=generator) for x in locations]
    rule = {"min_probability": 0.2, "level_topk": 15, "topk": topk, "nms_threshold": 0.6}
    boxes, scores = choose_proposals(locations, distances, probabilities, **rule)
    expected = slow_choice(locations, distances, probabilities, **rule)
    assert scores.tolist() == pytest.approx([score for score, _ in expected])
    torch.testing.assert_close(boxes, torch.tensor([box for _, box in expected]))


def test_ties_with_the_last_proposal_stay_and_no_candidate_is_fine():
    centres = [torch.arange(12).float()[:, None].expand(12, 2) * 100]
    sides, p = [torch.ones(12, 4)], [torch.tensor([0.9] * 2 + [0.25] * 9 + [0.1])]
    rule = {"min_probability": 0.05, "level_topk": 100, "nms_threshold": 0.9}
    boxes, scores = choose_proposals(centres, sides, p, topk=4, **rule)
    assert scores.tolist() == pytest.approx([0.9**0.5] * 2 + [0.5] * 9)
    assert (boxes[:, 2:] - boxes[:, :2] == 2).all()
    boxes, scores = choose_proposals(centres, sides, [p[0] * 0.01], topk=4, **rule)
    assert boxes.shape == (0, 4) and scores.shape == (0,)


@pytest.mark.parametrize("training, count", [(True, 30), (False, 12)])
def test_proposals_of_the_module_in_its_mode(training, count):
    """With and without ground truth, and of an image alone, they are the same; they may lie outside the image."""
    keys = ("MODEL.CENTERNET.POST_NMS_TOPK_TRAIN", 30, "MODEL.CENTERNET.POST_NMS_TOPK_TEST", 12)
    module = centernet(*keys).train(training)
    maps = features(3)
    found, losses = module(images(3), maps, truth(*BOXES) if training else None)
    assert bool(losses) == training and [x.image_size for x in found] == images(3).image_sizes
    proposed = module.propose(images(3), {name: x.requires_grad_() for name, x in maps.items()})
    single = module.propose(ImageList(torch.zeros(1, 3, 128, 192), [(128, 192)]), {n: x[:1] for n, x in maps.items()})
    torch.testing.assert_close(single[0].proposal_boxes.tensor, found[0].proposal_boxes.tensor)
    for ours, again in zip(found, proposed, strict=True):
        boxes, scores = ours.proposal_boxes.tensor, ours.objectness_logits
        assert torch.equal(boxes, again.proposal_boxes.tensor) and torch.equal(scores, again.objectness_logits)
        assert len(ours) == count and (scores[:-1] >= scores[1:]).all() and scores[0] > scores[-1]
        assert (boxes < 0).any() and not boxes.requires_grad and not again.objectness_logits.requires_grad
        assert ((boxes[:, 2:] - boxes[:, :2]) > 0.009).all()
    rule = module.choice[training]
    heat, distances = module.centernet_head(list(maps.values()))
    expected, scores = choose_proposals(
        list(level_locations(SIZES, STRIDES).split([h * w for h, w in SIZES])),
        [x[1].flatten(1).T.detach() * stride for x, stride in zip(distances, STRIDES, strict=True)],
        [x[1].flatten().sigmoid().detach() for x in heat], **rule,
    )  # fmt: skip
    assert torch.equal(found[1].proposal_boxes.tensor, expected)
    assert torch.equal(found[1].objectness_logits, scores) and rule["min_probability"] == 1e-4


# ---- two processes

HALVES = {  # boxes of two images a process
    "both": ((BOXES[0], BOXES[1]), (BOXES[1], BOXES[0])),
    "one": ((BOXES[0], BOXES[0]), ([], [])),
    "none": (([], []), ([], [])),
}


def step(module, halves, case):
    """Losses and gradients of the images of these processes."""
    maps = [features(2, seed=rank) for rank in halves]
    joined = {name: torch.cat([m[name] for m in maps]) for name in maps[0]}
    instances = truth(*(boxes for rank in halves for boxes in HALVES[case][rank]))
    module.zero_grad()
    _, losses = module(images(len(instances)), joined, instances)
    sum(losses.values()).backward()
    gradients = {name.removeprefix("module."): p.grad.clone() for name, p in module.named_parameters()}
    return {name: loss.item() for name, loss in losses.items()}, gradients


def main(output, rank):
    torch.distributed.init_process_group("gloo", init_method=f"file://{output}/store", rank=rank, world_size=2)
    module = create_ddp_model(centernet().train(), device_ids=None)
    torch.save({case: step(module, [rank], case) for case in HALVES}, output / f"rank{rank}.pth")
    comm.synchronize()
    leave_group()


def test_two_processes_are_one_with_both_halves(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    commands = [[sys.executable, __file__, str(tmp_path), str(rank)] for rank in (0, 1)]
    processes = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, text=True) for c in commands]
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pth") for rank in (0, 1)]
    for case in HALVES:
        losses, gradients = step(centernet().train(), [0, 1], case)
        part = 1 / 2 if case == "none" else 1  # without boxes each process divides its sum by 1
        for name, loss in losses.items():
            mean = sum(rank[case][0][name] for rank in ranks) / 2
            assert mean == pytest.approx(loss * part, rel=1e-5), (case, name)
        for name, gradient in gradients.items():
            for rank in ranks:
                torch.testing.assert_close(rank[case][1][name], gradient * part, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
