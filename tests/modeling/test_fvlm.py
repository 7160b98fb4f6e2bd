"""F-VLM: fused scores and matches against loops in plain Python, the heads, the detector whole, also with masks."""

import copy
import math

import pytest
import torch
from detectron2.layers import ShapeSpec, paste_masks_in_image
from detectron2.modeling import build_model
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads.roi_heads import ROI_HEADS_REGISTRY
from detectron2.structures import PolygonMasks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.ops import roi_align

from clim.modeling.box_predictors import log_odds
from clim.modeling.fvlm import BackgroundClassifier, BestMatcher, fused_log_scores

ALPHA, BETA = 0.1, 0.8


def softmax(row):
    top = max(row)
    powers = [math.exp(v - top) for v in row]
    return [p / sum(powers) for p in powers]


def slow(detection, vlm, has_boxes):
    """One region and one class after the other."""
    rows = []
    for a, b in zip(detection.tolist(), vlm.tolist(), strict=True):
        p, q = softmax(a), softmax(b)
        weights = [ALPHA if seen else BETA for seen in has_boxes.tolist()] + [ALPHA]
        rows.append([p[k] ** (1 - w) * q[k] ** w for k, w in enumerate(weights)])
    return torch.tensor(rows, dtype=torch.float64).reshape(detection.shape)


def fuse(detection, vlm, has_boxes):
    return fused_log_scores(detection, vlm, has_boxes, alpha=ALPHA, beta=BETA)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5), st.integers(1, 6), st.integers(0, 2**31 - 1))
def test_the_geometric_mean_of_two_softmaxes(regions, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    detection, vlm = (20 * torch.randn(regions, classes + 1, generator=generator) for _ in range(2))
    has_boxes = torch.rand(classes, generator=generator) < 0.5
    fused = fuse(detection, vlm, has_boxes)
    assert fused.shape == (regions, classes + 1)
    torch.testing.assert_close(fused.exp(), slow(detection, vlm, has_boxes), rtol=1e-9, atol=0)
    # Confident rows do not tie, although their float32 softmax is exactly 1.
    detection = torch.tensor([[20.0, 0.0, 0.0], [25.0, 0.0, 0.0]])
    odds = log_odds(fuse(detection, detection, torch.tensor([True, True])))[:, 0].float()
    assert (detection.softmax(1)[:, 0] == 1).all() and odds[0] < odds[1] and odds.sigmoid().tolist() == [1, 1]


def slow_matches(overlaps, appended):
    """MMDetection's rules one after the other: (object, label) of each proposal; own boxes are added after them."""
    proposed = overlaps.shape[1] - len(overlaps) * appended
    ious = [row[:proposed] for row in overlaps.tolist()]
    result = []
    for column in zip(*ious, strict=True):
        best = max(column)
        result.append([column.index(best), int(best >= 0.5)])
    for m, row in enumerate(ious):
        for p, iou in enumerate(row):
            if iou >= 0.5 and iou == max(row):
                result[p] = [m, 1]
    return result + [[m, 1] for m in range(len(overlaps)) if appended]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(0, 8), st.booleans(), st.integers(0, 2**31 - 1))
def test_the_best_proposal_of_an_object_is_its_own(objects, proposals, appended, seed):
    generator = torch.Generator().manual_seed(seed)
    overlaps = (torch.rand(objects, proposals, generator=generator) * 10).round() / 10  # with ties
    if appended:
        own = torch.eye(objects)
        own[0, -1] = own[-1, 0] = 1  # two objects with the same box
        overlaps = torch.cat([overlaps, own], 1)
    matches, labels = BestMatcher([0.5], [0, 1], appended=appended)(overlaps)
    found = list(zip(matches.tolist(), labels.tolist(), strict=True))
    slow = slow_matches(overlaps, appended)
    assert [one for one in found if one[1]] == [tuple(one) for one in slow if one[1]]
    assert labels.tolist() == [label for _, label in slow]


def test_matches_where_there_is_nothing_and_what_the_rule_changes():
    matcher = BestMatcher([0.5], [0, 1], appended=True)
    assert matcher(torch.zeros(0, 3))[1].tolist() == [0, 0, 0] and len(matcher(torch.zeros(0, 0))[0]) == 0
    # Both objects fit the only proposal best: the second has it, though the first fits better.
    overlaps = torch.tensor([[0.9, 1, 0.2], [0.8, 0.2, 1]])
    assert matcher(overlaps)[0].tolist() == [1, 0, 1]
    assert Matcher([0.5], [0, 1])(overlaps)[0].tolist() == [0, 0, 1]


CLASSES, WIDTH, DIM = 4, 12, 6


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


def test_the_heads_of_the_shipped_config(load_cfg, hash_tower):
    """4 convolutions of 256 without bias (a norm follows) and 2 layers of 1024, shared; then one for each branch."""
    cfg = load_cfg(
        "FVLM_ViTB16_CLIP_COCO.yaml", "MODEL.TEXT.DIM", DIM, "MODEL.ROI_HEADS.NUM_CLASSES", CLASSES,
        "MODEL.VOCABULARY.NAMES", [f"class {i}" for i in range(CLASSES)], "MODEL.OPEN_VOCAB.BASE_CLASSES", "",
        "MODEL.ROI_BOX_HEAD.NORM", "BN",
    )  # fmt: skip
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


SIDE, COCO = 64, 80
LOSSES = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
SMALL = (
    "MODEL.IMAGE_ENCODER.PRETRAINED", "", "MODEL.TEXT.DIM", 12, "MODEL.VOCABULARY.EMBEDDINGS", "",
    "MODEL.FPN.NORM", "BN", "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.NORM", "BN",
    "MODEL.ROI_BOX_HEAD.CONV_DIM", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "INPUT.LSJ.SIZE", SIDE,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
)  # fmt: skip
SMALL_MASKS = (
    "MODEL.ROI_MASK_HEAD.NORM", "BN", "MODEL.ROI_MASK_HEAD.CONV_DIM", 8, "MODEL.FPN.STACKS", 1, "INPUT.LSJ.SIZE", 128,
)  # fmt: skip


@pytest.fixture(scope="module")
def build(load_cfg, tiny_json):
    """``build("KEY", value, …)``: the shipped CLIM detector on a small random ViT."""
    architecture = tiny_json("vit", vision={"patch_size": 16, "layers": 6})

    def make(*overrides):
        torch.manual_seed(0)
        keys = ("MODEL.IMAGE_ENCODER.ARCHITECTURE", architecture, *SMALL, *overrides)
        return build_model(load_cfg("FVLM_ViTB16_CLIM_COCO.yaml", *keys))

    return make


@pytest.fixture(scope="module")
def build_lvis(load_cfg, tiny_json):
    """``build_lvis("ViTB16" or "RN50x64", "KEY", value, …)``: the shipped detectors on tiny encoders."""
    architectures = {
        "ViTB16": tiny_json("vit", vision={"patch_size": 16, "layers": 6}),
        "RN50x64": tiny_json("resnet", vision={"image_size": 128}),
    }

    def make(encoder, *overrides):
        torch.manual_seed(0)
        keys = ("MODEL.IMAGE_ENCODER.ARCHITECTURE", architectures[encoder], *SMALL, *SMALL_MASKS)
        norm = ("MODEL.RPN.NORM", "BN") if encoder == "RN50x64" else ()
        return build_model(load_cfg(f"lvis/FVLM_{encoder}_CLIP_LVIS.yaml", *keys, *norm, *overrides))

    return make


@pytest.fixture(scope="module")
def masked(detection):
    """``masked(boxes=…, …)``: an image whose masks are the triangles above the boxes' diagonals."""

    def make(**options):
        sample = detection(112, 128, **options)
        corners = [[x0, y0, x1, y0, x1, y1] for x0, y0, x1, y1 in sample["instances"].gt_boxes.tensor.tolist()]
        sample["instances"].gt_masks = PolygonMasks([[corner] for corner in corners])
        return sample

    return make


@pytest.fixture(scope="module")
def detector(build):
    return build()


def detections(model, *samples):
    return [found["instances"] for found in model.eval()(list(samples))]


def test_images_lie_in_the_corner_of_a_coloured_square(detector, detection):
    image = detection(24, 30)
    images = detector.preprocess_image([detection(40, 64), image])
    assert images.tensor.shape == (2, 3, SIDE, SIDE) and images.image_sizes == [(40, 64), (24, 30)]
    mean = torch.tensor([122.7709383, 116.7460125, 104.09373615])
    std = torch.tensor([68.5005327, 66.6321579, 70.32316305])
    inside = (image["image"].float() - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(images.tensor[1, :, :24, :30], inside)
    # The RGB mean on BGR pixels: red and blue of the padding have changed places, green is zero.
    padding = ((mean.flip(0) - mean) / std)[:, None].expand(3, 34)
    torch.testing.assert_close(images.tensor[1, :, 50, 30:], padding)
    torch.testing.assert_close(images.tensor[1, :, 30:, 50], padding)
    assert abs(images.tensor[1, 0, 50, 50].item()) > 0.2 and abs(images.tensor[1, 1, 50, 50].item()) < 1e-6
    assert detector.preprocess_image([detection(10, 97)]).tensor.shape[2:] == (128, 128)


def test_a_step_moves_everything_but_the_encoder(build, detection, train_step):
    model = build()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = train_step(model, [detection(48, SIDE), detection(48, SIDE, seed=1)])
    assert set(losses) == LOSSES and all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    # Every parameter that learns has a gradient, so DDP needs no search for unused ones.
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    parameters = {name for name, p in model.named_parameters() if p.requires_grad}
    assert parameters <= moved and "roi_heads.box_predictor.cls_score.zs_weight" not in moved
    assert not any(name.startswith("backbone.encoder.") for name in moved)
    assert not any(module.training for module in model.backbone.encoder.modules())
    assert model.backbone.pyramid.training


def test_images_without_objects(build, detection, train_step):
    model, empty = build(), detection(48, SIDE, boxes=())
    assert all(loss.isfinite() for loss in train_step(model, [empty, detection(48, SIDE)]).values())
    losses = train_step(model, [empty])
    assert losses["loss_box_reg"] == 0 and losses["loss_rpn_loc"] == 0 and losses["loss_cls"] > 0
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    # Chance over 48 base classes and background, weight .6: novel and unused classes are outside the softmax.
    loss = train_step(build("MODEL.FVLM.DETECTOR_TEMPERATURE", 1e-6), [empty])["loss_cls"]
    assert loss.item() == pytest.approx(0.6 * torch.tensor(49.0).log().item(), rel=1e-4)


def test_scores_recomputed_from_the_maps(build, detection):
    """Proposal → head's softmax; the same box unrefined → RoIAlign of the dense map → CLIP's softmax; fused."""
    model = build("MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.0, "TEST.DETECTIONS_PER_IMAGE", 10_000).eval()
    torch.nn.init.normal_(model.classifier.linear.weight)
    (found,) = detections(model, detection(48, SIDE))
    assert found.has("logits") and len(found) > 100

    with torch.no_grad():
        images = model.preprocess_image([detection(48, SIDE)])
        features = model.backbone(images.tensor)
        (proposals,), _ = model.proposal_generator(images, features)
        boxes = proposals.proposal_boxes
        heads = model.roi_heads
        pooled = heads.box_pooler([features[f"p{i}"] for i in range(2, 6)], [boxes])
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        p = logits.softmax(1)

        _, dense = model.backbone.encoder.taps(images.tensor)
        rois = torch.cat([torch.zeros(len(boxes), 1), boxes.tensor], 1)
        v = roi_align(dense, rois, 1, 1 / 16, sampling_ratio=-1, aligned=True)[:, :, 0, 0]
        texts, background = model.classifier.zs_weight[:, :-1].T, model.classifier.background
        b = F.normalize(background.weight[:, 0] + background.bias, dim=0)
        q = (75 * F.normalize(v, dim=1) @ torch.cat([texts, b[None]]).T).softmax(1)
        weight = torch.full((COCO,), 0.8)
        weight[model.roi_heads.box_predictor.freq_weight > 0] = 0.1
        assert (weight == 0.1).sum() == 48
        expected = p[:, :-1] ** (1 - weight) * q[:, :-1] ** weight
    # Without suppression every pair of a proposal and a class comes out, clipped boxes included.
    torch.testing.assert_close(
        found.scores.sort().values, expected.double().flatten().sort().values[-len(found) :], rtol=2e-3, atol=1e-7
    )
    assert len(found) == len(boxes) * COCO


def test_images_alone_and_in_company_and_their_pixels(detector, detection):
    first, second = detection(48, SIDE), detection(SIDE, 40, seed=1)
    alone = [detections(detector, first)[0], detections(detector, second)[0]]
    for single, together in zip(alone, detections(detector, first, second), strict=True):
        torch.testing.assert_close(single.scores, together.scores, rtol=1e-4, atol=1e-6)
    (found,) = detections(detector, first | {"height": 480, "width": 640})
    boxes = found.pred_boxes.tensor
    assert found.image_size == (480, 640)
    assert boxes[:, 2].max() > SIDE and boxes[:, 2].max() <= 640 and boxes[:, 3].max() <= 480


def test_no_proposals_in_two_images(build, detection):
    model = build("MODEL.RPN.POST_NMS_TOPK_TEST", 0)
    assert [len(found) for found in detections(model, detection(48, SIDE), detection(20, 20))] == [0, 0]


@pytest.mark.parametrize("encoder", ["ViTB16", "RN50x64"])
def test_a_step_with_masks(build_lvis, masked, train_step, encoder):
    model = build_lvis(encoder)
    losses = train_step(model, [masked(), masked(seed=1)])
    assert set(losses) == LOSSES | {"loss_mask"} and all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    sizes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert sizes["roi_heads.mask_head.predictor.weight"] == (1, 8, 1, 1)  # one map for all classes
    convolutions = [name for name in sizes if "mask_fcn" in name and "norm" not in name]
    assert convolutions == [f"roi_heads.mask_head.mask_fcn{i}.weight" for i in range(1, 5)]
    rpn = {name.removeprefix("proposal_generator.rpn_head.conv.conv0.") for name in sizes if "head.conv.conv0." in name}
    assert rpn == ({"weight", "norm.weight", "norm.bias"} if encoder == "RN50x64" else {"weight", "bias"})
    heads = model.roi_heads
    assert [1 / pooler.spatial_scale for pooler in heads.mask_pooler.level_poolers] == [4, 8, 16, 32]
    assert isinstance(heads.proposal_matcher, BestMatcher) and heads.proposal_matcher.appended
    assert (heads.box_predictor.freq_weight > 0).sum() == 866


def test_images_without_objects_and_masks(build_lvis, masked, train_step):
    model = build_lvis("ViTB16", "MODEL.FVLM.DETECTOR_TEMPERATURE", 1e-6)
    losses = train_step(model, [masked(boxes=()), masked(boxes=(), seed=1)])
    # Chance over 866 base classes and background, weight .9.
    assert losses["loss_mask"] == 0 and losses["loss_cls"].item() == pytest.approx(0.9 * math.log(867), rel=1e-4)
    sum(losses.values()).backward()
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("encoder", ["ViTB16", "RN50x64"])
def test_masks_of_the_final_boxes(build_lvis, masked, encoder):
    model = build_lvis(encoder, "TEST.DETECTIONS_PER_IMAGE", 7)
    torch.nn.init.normal_(model.roi_heads.mask_head.predictor.weight)
    (found,) = detections(model, masked() | {"height": 224, "width": 256})
    assert len(found) == 7 and found.pred_masks.shape == (7, 224, 256)
    with torch.no_grad():
        images = model.preprocess_image([masked()])
        features = model.backbone(images.tensor)
        boxes = found.pred_boxes.clone()
        boxes.scale(0.5, 0.5)
        heads = model.roi_heads
        pooled = heads.mask_pooler([features[f"p{i}"] for i in range(2, 6)], [boxes])
        maps = heads.mask_head.layers(pooled).sigmoid()
    assert pooled.shape[2:] == (14, 14) and maps.shape == (7, 1, 28, 28)
    assert torch.equal(paste_masks_in_image(maps[:, 0], found.pred_boxes, (224, 256)), found.pred_masks)


def test_mixed_precision(detector, detection, train_step):
    """As on a GPU: losses are finite, and logits stay in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        losses = train_step(detector, [detection(48, SIDE)])
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
