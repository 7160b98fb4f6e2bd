"""The F-VLM detector, whole: canvases, a training step, and scores recomputed from the maps."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F
from torchvision.ops import roi_align

SIDE, CLASSES = 64, 80
LOSSES = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
SMALL = (
    "MODEL.IMAGE_ENCODER.PRETRAINED", "", "MODEL.TEXT.DIM", 12, "MODEL.VOCABULARY.EMBEDDINGS", "",
    "MODEL.FPN.NORM", "BN", "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.NORM", "BN",
    "MODEL.ROI_BOX_HEAD.CONV_DIM", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "INPUT.LSJ.SIZE", SIDE,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
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
def detector(build):
    return build()


def picture(height, width, seed=0):
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed))
    return {"image": image.to(torch.uint8), "height": height, "width": width}


def labelled(*boxes, classes=(), seed=0):
    sample = picture(48, SIDE, seed)
    sample["instances"] = Instances(
        (48, SIDE),
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )
    return sample


def train(model, *samples):
    with EventStorage():
        return model.train()({"detection": list(samples), "captions": [], "mosaics": []})


def detect(model, *samples):
    return [found["instances"] for found in model.eval()(list(samples))]


# ---- canvases


def test_pictures_lie_in_the_corner_of_a_coloured_square(detector):
    images = detector.preprocess_image([picture(40, 64), picture(24, 30)])
    assert images.tensor.shape == (2, 3, SIDE, SIDE) and images.image_sizes == [(40, 64), (24, 30)]
    mean, std = (
        torch.tensor([122.7709383, 116.7460125, 104.09373615]),
        torch.tensor([68.5005327, 66.6321579, 70.32316305]),
    )
    inside = (picture(24, 30)["image"].float() - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(images.tensor[1, :, :24, :30], inside)
    # The RGB mean on BGR pixels: red and blue of the padding have changed places, green is zero.
    padding = ((mean.flip(0) - mean) / std)[:, None].expand(3, 34)
    torch.testing.assert_close(images.tensor[1, :, 50, 30:], padding)
    torch.testing.assert_close(images.tensor[1, :, 30:, 50], padding)
    assert abs(images.tensor[1, 0, 50, 50].item()) > 0.2 and abs(images.tensor[1, 1, 50, 50].item()) < 1e-6


def test_larger_pictures_make_larger_squares(detector):
    assert detector.preprocess_image([picture(10, 97)]).tensor.shape[2:] == (128, 128)
    assert detector.preprocess_image([picture(10, 9)]).tensor.shape[2:] == (SIDE, SIDE)


# ---- training


def test_a_step_moves_everything_but_the_encoder(build):
    model = build()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = train(
        model, labelled([5, 5, 40, 40], classes=[0]), labelled([9, 2, 60, 30], classes=[2], seed=1)
    )
    assert set(losses) == LOSSES and all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    # Every parameter that learns has a gradient, so DDP needs no search for unused ones.
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    parameters = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("backbone.encoder.") for name in moved | parameters)
    assert "roi_heads.box_predictor.cls_score.zs_weight" not in moved
    unmoved = parameters - moved
    assert not unmoved, unmoved
    assert not any(module.training for module in model.backbone.encoder.modules())
    assert model.backbone.pyramid.training


def test_pictures_without_objects(build):
    model = build()
    losses = train(model, labelled(), labelled([9, 2, 60, 30], classes=[2]))
    assert all(loss.isfinite() for loss in losses.values())
    losses = train(model, labelled())
    assert losses["loss_box_reg"] == 0 and losses["loss_rpn_loc"] == 0 and losses["loss_cls"] > 0
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_classification_starts_at_chance_over_what_counts(build):
    """48 base classes and background, weight .6: novel and unused classes are outside the softmax."""
    model = build("MODEL.FVLM.DETECTOR_TEMPERATURE", 1e-6)
    loss = train(model, labelled())["loss_cls"]
    assert loss.item() == pytest.approx(0.6 * torch.tensor(49.0).log().item(), rel=1e-4)


# ---- inference


def test_scores_recomputed_from_the_maps(build):
    """Proposal → head's softmax; the same box unrefined → RoIAlign of the dense map → CLIP's softmax; fused."""
    model = build("MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.0, "TEST.DETECTIONS_PER_IMAGE", 10_000).eval()
    torch.nn.init.normal_(model.classifier.linear.weight)
    (found,) = detect(model, picture(48, SIDE))
    assert found.has("logits") and len(found) > 100

    with torch.no_grad():
        images = model.preprocess_image([picture(48, SIDE)])
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
        weight = torch.full((CLASSES,), 0.8)
        weight[model.roi_heads.box_predictor.freq_weight > 0] = 0.1
        assert (weight == 0.1).sum() == 48
        expected = p[:, :-1] ** (1 - weight) * q[:, :-1] ** weight
    # Without suppression every pair of a proposal and a class comes out, clipped boxes included.
    torch.testing.assert_close(
        found.scores.sort().values, expected.flatten().sort().values[-len(found) :], rtol=2e-3, atol=1e-7
    )
    assert len(found) == len(boxes) * CLASSES


def test_boxes_are_in_pixels_of_the_original_picture(detector):
    sample = picture(48, SIDE) | {"height": 480, "width": 640}
    (found,) = detect(detector, sample)
    boxes = found.pred_boxes.tensor
    assert found.image_size == (480, 640)
    assert boxes[:, 2].max() > SIDE and boxes[:, 2].max() <= 640 and boxes[:, 3].max() <= 480


def test_a_picture_is_detected_alike_alone_and_in_company(detector):
    first, second = picture(48, SIDE), picture(SIDE, 40, seed=1)
    alone = [detect(detector, first)[0], detect(detector, second)[0]]
    for single, together in zip(alone, detect(detector, first, second), strict=True):
        torch.testing.assert_close(single.scores, together.scores, rtol=1e-4, atol=1e-6)


def test_no_proposals(build):
    model = build("MODEL.RPN.POST_NMS_TOPK_TEST", 0)
    assert [len(found) for found in detect(model, picture(48, SIDE), picture(20, 20))] == [0, 0]


def test_the_switches_of_the_fusion(build):
    """alpha = beta = 0 leaves the detector's own softmax, 1 leaves CLIP's."""
    scores = {}
    for weight in (0.0, 1.0):
        model = build("MODEL.FVLM.ALPHA", weight, "MODEL.FVLM.BETA", weight)
        (found,) = detect(model, picture(48, SIDE))
        scores[weight] = found.scores
        model.classifier.temperature.data.fill_(1e-6)  # an undecided head
        (found,) = detect(model, picture(48, SIDE))
        if weight == 0:
            torch.testing.assert_close(found.scores, torch.full_like(found.scores, 1 / (CLASSES + 1)))
        else:
            torch.testing.assert_close(found.scores, scores[1.0])


# ---- weights


def test_a_checkpoint_holds_the_encoder_too(build):
    """So a trained detector needs no other file."""
    trained, other = build("SEED", 1), build()
    for p in trained.parameters():
        torch.nn.init.normal_(p, std=0.02)
    other.load_state_dict(trained.state_dict())
    assert any(name.startswith("backbone.encoder.visual.") for name in trained.state_dict())
    (a,), (b,) = detect(trained, picture(48, SIDE)), detect(other, picture(48, SIDE))
    assert torch.equal(a.scores, b.scores)


def test_mixed_precision(detector):
    """As on a GPU: losses are finite, and logits stay in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        losses = train(detector, labelled([5, 5, 40, 40], classes=[0]))
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
