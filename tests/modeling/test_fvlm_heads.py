"""F-VLM's heads: the learned background, losses, fused scores of proposals, and other vocabularies."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.roi_heads import ROI_HEADS_REGISTRY
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from clim.modeling.fvlm import BackgroundClassifier, FVLMOutputLayers

CLASSES, WIDTH, DIM = 4, 12, 6
HAS_BOXES = torch.tensor([1.0, 0.0, 1.0, 0.0])


@pytest.fixture
def config(load_cfg):
    def load(*overrides):
        torch.manual_seed(0)
        return load_cfg(
            "FVLM_ViTB16_CLIP_COCO.yaml", "MODEL.TEXT.DIM", DIM, "MODEL.ROI_HEADS.NUM_CLASSES", CLASSES,
            "MODEL.VOCABULARY.NAMES", [f"class {i}" for i in range(CLASSES)], "MODEL.OPEN_VOCAB.BASE_CLASSES", "",
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.ROI_BOX_HEAD.NORM", "BN", *overrides,
        )  # fmt: skip

    return load


@pytest.fixture
def layers(config, hash_tower):
    """``layers("KEY", value, …)``: output layers of 4 classes, 2 of them with boxes."""

    def make(*overrides):
        cfg = config(*overrides)
        shape = ShapeSpec(channels=WIDTH)
        made = FVLMOutputLayers(cfg, shape, text_encoder=hash_tower(DIM), class_mask=HAS_BOXES.clone())
        torch.nn.init.normal_(made.cls_score.linear.weight)
        return made

    return make


def proposals(*boxes, size=(64, 64), **fields):
    found = Instances(size)
    found.proposal_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    for name, value in fields.items():
        found.set(name, value)
    return found


# ---- classifier


def test_logits_are_scaled_cosines_to_texts_and_background():
    torch.manual_seed(0)
    texts = torch.randn(CLASSES, DIM) * 3
    head = BackgroundClassifier(WIDTH, class_embeddings=texts, temperature=50)
    x = torch.randn(5, WIDTH)
    with torch.no_grad():
        logits = head(x)
        v = head.linear(head.hidden(x).clamp(min=0))
        b = head.background(torch.ones(1, 1))[0]  # the layer on the constant 1
        for row in range(5):
            expected = [50 * F.cosine_similarity(v[row], t, dim=0).item() for t in [*texts, b]]
            assert logits[row].tolist() == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(head.class_embeddings.norm(dim=1), torch.ones(CLASSES + 1))
    torch.testing.assert_close(head.class_embeddings[:-1], F.normalize(texts, dim=1))


def test_background_and_temperature_learn():
    torch.manual_seed(0)
    head = BackgroundClassifier(WIDTH, class_embeddings=torch.randn(CLASSES, DIM), temperature=50)
    head(torch.randn(3, WIDTH)).softmax(1)[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    names = {name for name, _ in head.named_parameters()}
    assert {"temperature", "background.weight", "background.bias"} < names
    assert not any("zs_weight" in name for name in names)


# ---- losses


def sampled():
    gt_boxes = Boxes(torch.tensor([[2.0, 2, 22, 26]] * 3))
    gt_classes = torch.tensor([2, CLASSES, 0])
    with_objects = proposals(
        [0, 0, 20, 20], [5, 5, 30, 40], [1, 1, 9, 9], gt_classes=gt_classes, gt_boxes=gt_boxes
    )
    # a picture without ground truth: background only, no gt_boxes
    return [with_objects, proposals([10, 10, 20, 20], gt_classes=torch.tensor([CLASSES]))]


def test_losses_of_sampled_regions(layers):
    head, x = layers().train(), torch.randn(4, WIDTH)
    torch.nn.init.normal_(head.bbox_pred[2].weight, std=0.5)
    with EventStorage():
        losses = head.losses(head(x), sampled())
    logits, deltas = head(x)
    nll = 0.0
    for row, gt in zip(logits.tolist(), [2, CLASSES, 0, CLASSES], strict=True):
        seen = [row[0], row[2], row[CLASSES]]
        nll += (0.6 if gt == CLASSES else 1.0) * (math.log(sum(map(math.exp, seen))) - row[gt])
    assert losses["loss_cls"].item() == pytest.approx(nll / 4, rel=1e-5)
    targets = head.box2box_transform.get_deltas(
        torch.tensor([[0.0, 0, 20, 20], [1, 1, 9, 9]]), torch.tensor([[2.0, 2, 22, 26]] * 2)
    )
    l1 = (deltas[[0, 2]] - targets).abs().sum() / 4
    torch.testing.assert_close(losses["loss_box_reg"], l1)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_losses_of_no_region_reach_every_parameter(layers):
    head = layers().train()
    empty = proposals(gt_classes=torch.zeros(0, dtype=torch.int64), gt_boxes=Boxes(torch.zeros(0, 4)))
    with EventStorage():
        losses = head.losses(head(torch.zeros(0, WIDTH)), [empty])
    sum(losses.values()).backward()
    assert all(loss.item() == 0 for loss in losses.values())
    assert all(p.grad is not None for p in head.parameters())


# ---- inference


def detect(head, x, *pictures):
    with torch.no_grad():
        return head.eval().inference(head(x), list(pictures))[0]


def test_scores_are_the_fusion_with_the_encoders_opinion(layers):
    """Far-apart boxes: every region gives every class once."""
    head, x, v = layers("TEST.DETECTIONS_PER_IMAGE", 100).eval(), torch.randn(3, WIDTH), torch.randn(3, DIM)
    torch.nn.init.zeros_(head.bbox_pred[2].weight)  # boxes stay
    boxes = [[0.0, 0, 10, 10], [20.0, 20, 30, 30], [40.0, 40, 50, 60]]
    first = proposals(*boxes[:2], vlm_embeddings=v[:2])
    second = proposals(boxes[2], vlm_embeddings=v[2:])
    found = detect(head, x, first, second)
    assert [len(f) for f in found] == [2 * CLASSES, CLASSES]

    with torch.no_grad():
        p = head.cls_score(x).softmax(1)
        texts = head.cls_score.class_embeddings
        q = (75 * F.normalize(v, dim=1) @ texts.T).softmax(1)
        assert texts.shape == (CLASSES + 1, DIM)
    seen = set()
    for picture, instances in enumerate(found):
        triples = zip(
            instances.pred_boxes.tensor, instances.pred_classes.tolist(), instances.scores, strict=True
        )
        for box, k, score in triples:
            region = [torch.allclose(box, torch.tensor(b), atol=1e-4) for b in boxes].index(True)
            assert (region == 2) == (picture == 1)
            w = 0.1 if HAS_BOXES[k] else 0.8
            expected = p[region, k].item() ** (1 - w) * q[region, k].item() ** w
            assert score.item() == pytest.approx(expected, rel=1e-3)
            seen.add((region, k))
    assert len(seen) == 3 * CLASSES


def test_ranks_go_by_logits_where_scores_are_one(layers):
    head = layers().eval()
    with torch.no_grad():
        texts = head.cls_score.class_embeddings[:-1]
        logits = torch.full((2, CLASSES + 1), -30.0)
        logits[0, 0], logits[1, 0] = 0.0, 5.0
        pictures = proposals([0, 0, 10, 10], [20, 20, 30, 30], vlm_embeddings=texts[[0, 0]] * 7)
        (found,), _ = head.inference((logits, torch.zeros(2, 4)), [pictures])
    best = found[:2]
    assert best.scores.tolist() == pytest.approx([1, 1], abs=1e-6) and best.logits[0] > best.logits[1]
    assert best.pred_boxes.tensor[0].tolist() == [20, 20, 30, 30]


def test_no_proposals(layers):
    found = detect(layers(), torch.zeros(0, WIDTH), proposals(vlm_embeddings=torch.zeros(0, DIM)))
    assert len(found[0]) == 0 and found[0].scores.shape == (0,)


def test_the_threshold_is_one_of_scores(layers):
    head, x, v = layers(), torch.randn(8, WIDTH), torch.randn(8, DIM)
    boxes = [[7.0 * i, 0, 7.0 * i + 5, 5.0] for i in range(8)]
    everything = detect(head, x, proposals(*boxes, vlm_embeddings=v))[0]
    head.test_score_thresh = 0.1
    some = detect(head, x, proposals(*boxes, vlm_embeddings=v))[0]
    assert 0 < len(some) < len(everything) and some.scores.min() > 0.1
    assert len(some) == (everything.scores > 0.1).sum()


# ---- vocabulary


def test_other_classes_keep_their_own_weights(layers):
    head, x, v = layers(), torch.randn(1, WIDTH), torch.randn(1, DIM)
    texts = head.cls_score.class_embeddings[:-1].detach()
    box = proposals([0, 0, 10, 10], vlm_embeddings=v)
    before = detect(head, x, box)[0]
    head.set_vocabulary(texts[[3, 1, 0, 2]], HAS_BOXES[[3, 1, 0, 2]])
    after = detect(head, x, box)[0]
    renamed = torch.tensor([2, 1, 3, 0])[before.pred_classes]
    assert after.pred_classes.tolist() == renamed.tolist()
    torch.testing.assert_close(after.scores, before.scores)

    head.set_vocabulary(texts[:2], torch.zeros(2))  # both without boxes
    p, q = (
        head.cls_score(x).softmax(1),
        (75 * F.normalize(v) @ head.cls_score.class_embeddings.T).softmax(1),
    )
    found = detect(head, x, box)[0]
    expected = (p**0.2 * q**0.8)[0, found.pred_classes]
    torch.testing.assert_close(found.scores, expected, rtol=1e-3, atol=1e-6)
    assert set(found.pred_classes.tolist()) == {0, 1}


def test_a_checkpoint_brings_the_background_not_the_classes(layers):
    trained, head = layers(), layers()
    torch.nn.init.normal_(trained.cls_score.background.bias)
    trained.set_vocabulary(torch.randn(7, DIM))
    mine = head.cls_score.class_embeddings.detach().clone()
    head.load_state_dict(trained.state_dict())
    loaded = head.cls_score.class_embeddings
    assert torch.equal(loaded[:-1], mine[:-1])
    torch.testing.assert_close(loaded[-1], trained.cls_score.class_embeddings[-1])


# ---- the whole head


def test_the_heads_of_the_shipped_config(config, hash_tower):
    """4 convolutions of 256 without bias (a norm follows) and 2 layers of 1024, shared; then one for each branch."""
    cfg = config()
    shapes = {f"p{i}": ShapeSpec(channels=256, stride=2**i) for i in range(2, 7)}
    heads = ROI_HEADS_REGISTRY.get("FVLMROIHeads")(cfg, shapes, text_encoder=hash_tower(DIM))
    sizes = {name: tuple(p.shape) for name, p in heads.named_parameters() if p.dim() > 1}
    assert sizes == {
        **{f"box_head.conv{i}.weight": (256, 256, 3, 3) for i in range(1, 5)},
        "box_head.fc1.weight": (1024, 256 * 49),
        "box_head.fc2.weight": (1024, 1024),
        "box_predictor.cls_score.hidden.weight": (1024, 1024),
        "box_predictor.cls_score.linear.weight": (DIM, 1024),
        "box_predictor.cls_score.background.weight": (DIM, 1),
        "box_predictor.bbox_pred.0.weight": (1024, 1024),
        "box_predictor.bbox_pred.2.weight": (4, 1024),
    }
    assert "box_head.conv1.norm.weight" in dict(heads.named_parameters())
    assert heads.num_classes == CLASSES and not heads.mask_on
    predictor = heads.box_predictor
    assert (predictor.alpha, predictor.beta, predictor.vlm_temperature) == (0.1, 0.8, 75)
    assert predictor.cls_score.temperature.item() == 50
