"""The cascade against one box after the other: losses, refined boxes, embeddings, fused scores, masks."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from clim.errors import UserError
from clim.modeling.box_predictors import OpenVocabOutputLayers
from clim.modeling.roi_heads import fused_scores

# Besides ``mask_overrides``
CASCADE = [
    "MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p4", "p5"], "MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True,
    "MODEL.ROI_BOX_HEAD.MULT_PROPOSAL_SCORE", True, "MODEL.PROPOSAL_GENERATOR.NAME", "CenterNet",
    "MODEL.OPEN_VOCAB.TRAIN_BIAS", [],
    "MODEL.OPEN_VOCAB.BASE_CLASSES", "", "MODEL.VOCABULARY.EMBEDDINGS", "",
]  # fmt: skip
SMALL = [
    "MODEL.ROI_HEADS.NUM_CLASSES", 7, "MODEL.TEXT.DIM", 6, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 3,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 64, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.5,
    "TEST.DETECTIONS_PER_IMAGE", 9,
]  # fmt: skip
SIZES = [(96, 128), (64, 120)]
GT = [[[10.0, 10, 60, 70], [70, 20, 120, 90]], [[8, 8, 56, 40]]]
GT_CLASSES = [[2, 5], [0]]
NEAR = [[[12, 8, 58, 74], [66, 22, 118, 84], [70, 60, 100, 90]], [[10, 10, 60, 44]]]
OUTSIDE = [[100.0, 40, 150, 110], [200.0, 10, 230, 40]]  # as CenterNet leaves them: clipped to a part, to no area
WEIGHTS = [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]


@pytest.fixture(scope="module")
def make_head(load_cfg, mask_overrides):
    """``make_head("KEY", value, …)``: a head of three stages and seven classes, whose boxes move by some pixels."""

    def make(*overrides, tower=None):
        cfg = load_cfg("BoxSup_C4.yaml", *mask_overrides, *CASCADE, *SMALL, *overrides)
        shapes = {f"p{i}": ShapeSpec(channels=4, stride=2**i) for i in (3, 4, 5)}
        torch.manual_seed(0)
        head = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, shapes, text_encoder=tower)
        for predictor in head.predictors:
            torch.nn.init.normal_(predictor.bbox_pred[2].weight, std=0.3)
        return head

    return make


def maps(batch=2):
    generator = torch.Generator().manual_seed(1)
    return {f"p{i}": torch.randn(batch, 4, 128 // 2**i, 160 // 2**i, generator=generator) for i in (3, 4, 5)}


def proposals_of(boxes):
    found = []
    for size, rows in zip(SIZES, boxes, strict=True):
        p = Instances(size, proposal_boxes=Boxes(torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)))
        p.objectness_logits = torch.linspace(0.9, 0.4, len(rows))
        found.append(p)
    return found


def truths(boxes=GT, classes=GT_CLASSES, masks=None):
    found = []
    for i, (size, rows, labels) in enumerate(zip(SIZES, boxes, classes, strict=True)):
        t = Instances(size, gt_boxes=Boxes(torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)))
        t.gt_classes = torch.tensor(labels, dtype=torch.int64)
        t.gt_masks = masks[i] if masks else PolygonMasks([[left_half(box)] for box in rows])
        found.append(t)
    return found


def left_half(box):
    x0, y0, x1, y1 = box
    middle = (x0 + x1) / 2
    return torch.tensor([x0, y0, middle, y0, middle, y1, x0, y1]).double().numpy()


def training_losses(head, features, proposals, targets):
    torch.manual_seed(0)
    with EventStorage():
        return head.train()(None, features, proposals, targets)[1]


# ---- The reference: one box at a time


def iou(a, b):
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    shared = max(width, 0) * max(height, 0)
    area = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return shared / (sum(area) - shared) if shared else 0.0


def encode(box, target, weights):
    (w, h), (tw, th) = ((b[2] - b[0], b[3] - b[1]) for b in (box, target))
    shift = ((target[0] + target[2] - box[0] - box[2]) / 2 / w, (target[1] + target[3] - box[1] - box[3]) / 2 / h)
    return [f * d for f, d in zip(weights, (*shift, math.log(tw / w), math.log(th / h)), strict=True)]


def decode(box, deltas, weights, size):
    (w, h), (height, width) = (box[2] - box[0], box[3] - box[1]), size
    dx, dy, dw, dh = (d / f for d, f in zip(deltas, weights, strict=True))
    x, y = (box[0] + box[2]) / 2 + dx * w, (box[1] + box[3]) / 2 + dy * h
    w, h = w * math.exp(min(dw, math.log(1000 / 16))), h * math.exp(min(dh, math.log(1000 / 16)))
    corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    return [min(max(c, 0.0), (width, height)[i % 2]) for i, c in enumerate(corners)]


@torch.no_grad()
def slow_stage(head, features, image, box, stage):
    """Projection, logits and deltas of one box."""
    of_image = [features[name][image : image + 1] for name in ("p3", "p4", "p5")]
    x = head.box_head[stage](head.box_pooler(of_image, [Boxes(torch.tensor([box]))]))
    predictor = head.box_predictor[stage]
    embedding = predictor.cls_score.linear(x)
    cosines = F.normalize(embedding, dim=1) @ predictor.cls_score.zs_weight[:, :-1]
    return embedding[0], (predictor.cls_score.temperature * cosines)[0].tolist(), predictor.bbox_pred(x)[0].tolist()


def slow_walk(head, features, boxes, refine=lambda boxes: boxes):
    """For each stage: [(image, box, embedding, logits, deltas)], and the boxes after it, [images][boxes]."""
    for stage, weights in enumerate(WEIGHTS):
        rows, moved = [], [[], []]
        for image, of_image in enumerate(boxes):
            for box in of_image:
                rows.append((image, box, *slow_stage(head, features, image, box, stage)))
                moved[image].append(decode(box, rows[-1][-1], weights, SIZES[image]))
        yield rows, moved
        boxes = refine(moved)


def with_area(boxes):
    return [[b for b in of_image if b[2] > b[0] and b[3] > b[1]] for of_image in boxes]


def slow_losses(head, features, boxes, drawn, *, beta=0.0, refine=with_area):
    """{loss: value} of all stages; ``boxes`` are those of the first stage, all of them sampled."""
    losses = {}
    for stage, (rows, _) in enumerate(slow_walk(head, features, boxes, refine)):
        cls, reg = 0.0, 0.0
        for image, box, _, logits, deltas in rows:
            overlaps = [iou(box, g) for g in GT[image]]
            best = max(range(len(overlaps)), key=overlaps.__getitem__)
            label = GT_CLASSES[image][best] if overlaps[best] >= (0.6, 0.7, 0.8)[stage] else 7
            cls += sum(math.log1p(math.exp(-logits[k] if k == label else logits[k])) for k in set(drawn) - {7})
            if label < 7:
                target = encode(box, GT[image][best], WEIGHTS[stage])
                for d in (abs(a - b) for a, b in zip(deltas, target, strict=True)):
                    reg += d**2 / beta / 2 if d < beta else d - beta / 2
        losses |= {f"loss_cls_stage{stage}": cls / len(rows), f"loss_box_reg_stage{stage}": reg / len(rows)}
    return losses


@pytest.mark.parametrize(
    "overrides, options",
    [
        ([], {}),
        (["MODEL.ROI_BOX_CASCADE_HEAD.KEEP_EMPTY", True, "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 0.1],
         {"refine": lambda boxes: boxes, "beta": 0.1}),
    ],
)  # fmt: skip
def test_losses_of_three_stages(make_head, monkeypatch, overrides, options):
    """RoIs are few, so that all are sampled: proposals and ground truth. One proposal loses its area when clipped."""
    head, drawn, asked = make_head(*overrides), [0, 2, 5, 6, 7], []
    monkeypatch.setattr(
        OpenVocabOutputLayers, "draw_classes", lambda self, gt: asked.append(len(gt)) or torch.tensor(drawn)
    )
    boxes = [[*NEAR[0], *OUTSIDE], NEAR[1]]
    result = training_losses(head, maps(), proposals_of(boxes), truths())
    first = [rows + truth for rows, truth in zip(boxes, GT, strict=True)]
    expected = slow_losses(head, maps(), first, drawn, **options)
    assert set(result) == {*expected, "loss_mask"}
    for name, value in expected.items():
        assert result[name].item() == pytest.approx(value, rel=1e-4), name
    assert all(expected[f"loss_box_reg_stage{k}"] > 0.01 for k in range(3))
    later = 9 if options else 8
    assert asked == [9, later, later]  # one draw a stage, over the boxes of the whole batch


@pytest.mark.parametrize("resample", [False, True])
def test_later_stages_take_all_refined_boxes_or_draw_again(make_head, monkeypatch, resample):
    """IoUs of the later stages are low: nearly all boxes are positive, and a quarter of 8 may be drawn."""
    overrides = [
        "MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.6, 0.05, 0.05), "MODEL.ROI_BOX_CASCADE_HEAD.RESAMPLE", resample,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8,
    ]  # fmt: skip
    head, seen, losses = make_head(*overrides), [], OpenVocabOutputLayers.losses
    monkeypatch.setattr(
        OpenVocabOutputLayers, "losses", lambda self, out, given: seen.append(given) or losses(self, out, given)
    )
    boxes = [[[x, 12.0, x + 50, 70] for x in range(0, 60, 6)], NEAR[1]]
    training_losses(head, maps(), proposals_of(boxes), truths())
    assert [len(p) for p in seen[0]] == [8, 2]
    for stage in (1, 2):
        for image, (before, after) in enumerate(zip(seen[stage - 1], seen[stage], strict=True)):
            refined = []
            for box in before.proposal_boxes.tensor.tolist():
                _, _, deltas = slow_stage(head, maps(), image, box, stage - 1)
                refined.append(decode(box, deltas, WEIGHTS[stage - 1], SIZES[image]))
            positive = [max(iou(box, g) for g in GT[image]) >= 0.05 for box in refined]
            count = min(sum(positive), 2) if resample else sum(positive)
            assert (after.gt_classes < 7).sum() == count
            assert len(after) == count + len(positive) - sum(positive)
            distances = torch.cdist(after.proposal_boxes.tensor, torch.tensor(refined), p=1)
            assert distances.min(1).values.max() < 1e-2  # refined boxes alone, and each at most once
            assert len(set(distances.argmin(1).tolist())) == len(after)
        assert (sum(positive) > 2) == (not resample) or image == 1


def test_a_stage_sends_back_part_of_its_gradient_and_masks_send_all(make_head):
    """The factor reaches feature maps alone: weights of the head get the whole gradient."""
    gradients = []
    for scale in (1.0, 0.25):
        head, features = make_head("MODEL.ROI_BOX_CASCADE_HEAD.GRADIENT_SCALE", scale), maps()
        for f in features.values():
            f.requires_grad_()
        losses = training_losses(head, features, proposals_of(NEAR), truths())
        embeddings = list(
            head.embed_stages(features, [p.proposal_boxes for p in proposals_of(NEAR)], image_sizes=SIZES)
        )
        terms = {"mask": losses.pop("loss_mask"), "boxes": sum(losses.values()), "regions": sum(embeddings).sum()}
        weight = head.box_head[0].fc1.weight
        found = {}
        for name, term in terms.items():
            found[name] = torch.autograd.grad(term, [features["p3"], weight], retain_graph=True, allow_unused=True)
        gradients.append(found)
    whole, part = gradients
    for name, factor in (("mask", 1.0), ("boxes", 0.25), ("regions", 0.25)):
        assert whole[name][0].abs().sum() > 0
        torch.testing.assert_close(part[name][0], factor * whole[name][0])
        if name != "mask":
            torch.testing.assert_close(part[name][1], whole[name][1])


# ---- Embeddings of any boxes


@pytest.mark.parametrize("refine", [None, lambda boxes: [boxes[0][1:], boxes[1][:0]]])
def test_boxes_are_embedded_at_every_stage_and_refined_in_between(make_head, refine):
    """``refine`` sees the moved boxes and chooses the next stage's; boxes without area are not left out."""
    head, features, seen, boxes = make_head().train(), maps(), [], [[*NEAR[0], *OUTSIDE], NEAR[1]]

    def spy(moved):
        seen.append([row for of_image in moved for row in of_image.tensor])
        return refine(moved)

    given = [p.proposal_boxes for p in proposals_of(boxes)]
    embedded = list(head.embed_stages(features, given, image_sizes=SIZES, refine=refine and spy))
    expected = list(slow_walk(head, features, boxes, *([refine] if refine else [])))
    for projections, (rows, _) in zip(embedded, expected, strict=True):
        torch.testing.assert_close(projections, torch.stack([row[2] for row in rows]), rtol=1e-4, atol=1e-4)
    assert len(seen) == (2 if refine else 0)  # not after the last stage
    for moved, (_, slow) in zip(seen, expected, strict=False):
        torch.testing.assert_close(torch.stack(moved), torch.tensor(sum(slow, [])), rtol=0, atol=1e-3)
        assert not any(row.requires_grad for row in moved)
    assert given[0].tensor[-2:].tolist() == OUTSIDE  # not changed in place
    sum(e.sum() for e in embedded).backward()
    for predictor, box_head in zip(head.predictors, head.box_head, strict=True):
        assert all(p.grad is None for p in predictor.bbox_pred.parameters())
        assert predictor.cls_score.linear.weight.grad.abs().sum() > 0 and box_head.fc1.weight.grad.abs().sum() > 0


# ---- Detection


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(0, 4), st.integers(1, 5), st.booleans(), st.integers(0, 2**31 - 1))
def test_fused_scores_are_the_formulas(stages, regions, classes, multiply, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = [20 * torch.randn(regions, classes, generator=generator) for _ in range(stages)]
    proposal_scores = torch.rand(regions, generator=generator)
    fused = fused_scores(logits, proposal_scores if multiply else None)
    assert fused.shape == (regions, classes) and fused.dtype == torch.float64
    for r in range(regions):
        for k in range(classes):
            mean = sum(1 / (1 + math.exp(-stage[r, k].item())) for stage in logits) / stages
            expected = math.sqrt(mean * proposal_scores[r].item()) if multiply else mean
            assert fused[r, k].item() == pytest.approx(expected, rel=1e-12)


def slow_detections(head, features, boxes, scores, image):
    """[(score, class, box)] of an image, the best first: the threshold, class-wise NMS, the best of all classes."""
    stages = list(slow_walk(head, features, boxes))
    candidates = []
    for i, (score, box) in enumerate(zip(scores, stages[-1][1][image], strict=True)):
        logits = [[row[3] for row in rows if row[0] == image][i] for rows, _ in stages]
        means = [sum(1 / (1 + math.exp(-z)) for z in of_class) / 3 for of_class in zip(*logits, strict=True)]
        candidates += [(math.sqrt(m * score) if score else m, k, box) for k, m in enumerate(means)]
    kept = []
    for candidate in sorted(candidates, key=lambda c: -c[0]):
        overlaps = [iou(candidate[2], other[2]) for other in kept if other[1] == candidate[1]]
        if candidate[0] > 0.5 and max(overlaps, default=0.0) <= 0.5:
            kept.append(candidate)
    return kept[:9]


@pytest.mark.parametrize("multiply", [True, False])
def test_detections_with_masks(make_head, multiply):
    head = make_head("MODEL.ROI_BOX_HEAD.MULT_PROPOSAL_SCORE", multiply).eval()
    features, boxes = maps(), [[*NEAR[0], [50, 40, 90, 95], *OUTSIDE], NEAR[1]]
    with torch.no_grad():
        results, losses = head(None, features, proposals_of(boxes))
    assert losses == {}
    for image, found in enumerate(results):
        scores = torch.linspace(0.9, 0.4, len(boxes[image])).tolist() if multiply else [None] * len(boxes[image])
        expected = slow_detections(head, features, boxes, scores, image)
        assert 1 < len(found) == len(expected)
        assert found.pred_classes.tolist() == [k for _, k, _ in expected]
        torch.testing.assert_close(found.scores.tolist(), [s for s, _, _ in expected], rtol=1e-5, atol=0)
        torch.testing.assert_close(
            found.pred_boxes.tensor, torch.tensor([b for _, _, b in expected]), rtol=0, atol=0.01
        )
        assert torch.equal(found.logits.double().sigmoid(), found.scores)
        assert found.logits.tolist() == sorted(found.logits.tolist(), reverse=True)
        for box, mask in zip(found.pred_boxes, found.pred_masks, strict=True):  # on the final box
            of_image = [features[name][image : image + 1] for name in ("p3", "p4", "p5")]
            with torch.no_grad():
                logits = head.mask_head.layers(head.mask_pooler(of_image, [Boxes(box[None])]))
            torch.testing.assert_close(mask, logits[0].sigmoid(), rtol=1e-3, atol=1e-4)
    assert len(results[0]) == 9  # TEST.DETECTIONS_PER_IMAGE
    for image, together in enumerate(results):  # batched = single
        one = {name: f[image : image + 1] for name, f in features.items()}
        with torch.no_grad():
            (alone,), _ = head(None, one, [proposals_of(boxes)[image]])
        for name, value in alone.get_fields().items():
            other = together.get(name)
            pair = (value.tensor, other.tensor) if name == "pred_boxes" else (value, other)
            torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-3)


def test_scores_that_are_one_in_float32_keep_their_order(make_head, monkeypatch):
    """Logits of 18, 25 and 20 at every stage."""
    head = make_head("MODEL.ROI_BOX_HEAD.MULT_PROPOSAL_SCORE", False, "MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.0).eval()
    logits = torch.full((3, 8), -50.0)
    logits[:, 4] = torch.tensor([18.0, 25.0, 20.0])
    for predictor in head.predictors:
        monkeypatch.setattr(predictor.cls_score, "forward", lambda x: logits)
        torch.nn.init.zeros_(predictor.bbox_pred[2].weight)
    with torch.no_grad():
        (found,), _ = head(None, maps(1), proposals_of(NEAR)[:1])
    assert sorted({*found.scores.tolist()}, reverse=True) == found.scores.tolist() and len(found) == 3
    assert found.pred_classes.tolist() == [4] * 3
    torch.testing.assert_close(found.logits, torch.tensor([25.0, 20, 18]), rtol=1e-4, atol=0)
    torch.testing.assert_close(found.pred_boxes.tensor, torch.tensor(NEAR[0])[[1, 2, 0]].float(), rtol=0, atol=1e-3)


def test_images_without_boxes(make_head):
    """Training without ground truth and detection without proposals: zeros and empty instances, all with a graph."""
    head = make_head()
    nothing = truths([[], []], [[], []])
    nothing[1].remove("gt_masks")  # as Detectron2's mapper gives an image without annotations
    for boxes in (NEAR, [[], []]):
        losses = training_losses(head, maps(), proposals_of(boxes), nothing)
        assert losses["loss_mask"].item() == 0 and all(losses[f"loss_box_reg_stage{k}"].item() == 0 for k in range(3))
        assert all((losses[f"loss_cls_stage{k}"].item() > 0) == bool(boxes[0]) for k in range(3))
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in head.parameters())
        head.zero_grad()
    with torch.no_grad():
        results, _ = head.eval()(None, maps(), proposals_of([[], NEAR[1]]))
    assert [len(r) > 0 for r in results] == [False, True] and results[0].pred_masks.shape[1:] == (1, 28, 28)


# ---- Masks


def bit_masks(size, boxes):
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[int(y0) : int(y1), int(x0) : int((x0 + x1) / 2)] = True
    return BitMasks(masks)


@pytest.mark.parametrize("kind", ["polygons", "bitmasks"])
def test_masks_learn_from_positives_of_the_first_stage(make_head, kind):
    """Objects are the left halves of their boxes. The positives are the ground truth: targets have 14 of 28 columns."""
    head, features = make_head(), maps()
    masks = [bit_masks(*pair) for pair in zip(SIZES, GT, strict=True)] if kind == "bitmasks" else None
    far = [[[0, 70, 20, 90]], [[80, 40, 110, 60]]]
    loss = training_losses(head, features, proposals_of(far), truths(masks=masks))["loss_mask"].item()
    target = torch.zeros(28, 28)
    target[:, :14] = 1
    expected = []
    for image, boxes in enumerate(GT):
        of_image = [features[name][image : image + 1] for name in ("p3", "p4", "p5")]
        for box in boxes:
            logits = head.mask_head.layers(head.mask_pooler(of_image, [Boxes(torch.tensor([box]).float())]))[0, 0]
            expected.append(F.binary_cross_entropy_with_logits(logits, target).item())
    assert loss == pytest.approx(sum(expected) / 3, rel=1e-4)


# ---- Configuration


def test_an_rpn_gives_no_scores_to_multiply_with(make_head):
    with pytest.raises(UserError, match="ProposingRPN gives logits.* set .*MULT_PROPOSAL_SCORE to False"):
        make_head("MODEL.PROPOSAL_GENERATOR.NAME", "ProposingRPN")
    make_head("MODEL.PROPOSAL_GENERATOR.NAME", "ProposingRPN", "MODEL.ROI_BOX_HEAD.MULT_PROPOSAL_SCORE", False)


def test_all_stages_share_class_embeddings_that_are_built_once(make_head, hash_tower):
    tower = hash_tower(6)
    head = make_head("MODEL.VOCABULARY.NAMES", ["dog", "cat"], "MODEL.VOCABULARY.PROMPT", "name", tower=tower)
    assert tower.asked == [["dog", "cat"]] and head.num_classes == 2
    weights = [p.cls_score.zs_weight for p in head.predictors]
    assert all(torch.equal(w, weights[0]) for w in weights) and weights[0].shape == (6, 3)
    assert len({w.data_ptr() for w in weights}) == 3  # a checkpoint is loaded into each
    head.set_vocabulary(torch.eye(6)[:4])
    assert [p.num_classes for p in head.predictors] == [4] * 3
    assert [p.box2box_transform.weights for p in head.predictors] == WEIGHTS
