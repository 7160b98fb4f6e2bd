"""OVR-CNN's files of both stages: the converted detector gives maskrcnn-benchmark's detections."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from torch.nn import functional as F

from clim.data.categories import BASE_INDICES, NOVEL_INDICES
from clim.detector import Detector
from clim.text import build_text_tower, word_piece_means
from conversion.convert import convert, find_kind
from conversion.rules import KINDS

CLASSES, DIM = 80, 12
PREDICTOR = "roi_heads.box.predictor."
SCORED = sorted(BASE_INDICES + NOVEL_INDICES)


def second_stage(detector):
    """The file: boxes of background and object, frozen projection, 48 class embeddings after a row of zeros."""
    width, state = detector.out_channels, detector.state
    detector.linear(f"{PREDICTOR}emb_pred", DIM, width)
    detector.linear(f"{PREDICTOR}bbox_pred", 8, width)
    state[f"{PREDICTOR}cls_score.weight"] = F.pad(detector.draw(48, DIM), (0, 0, 1, 0))
    state[f"{PREDICTOR}cls_score.bias"] = torch.zeros(49)
    state["rpn.anchor_generator.cell_anchors.0"] = detector.draw(15, 4)
    return detector


def first_stage(detector):
    """The file of the first stage: no RPN, layer4 in the backbone, the projection twice, BERT."""
    state = {k: v for k, v in detector.state.items() if k.startswith("backbone.")}
    for name, tensor in detector.state.items():
        if name.startswith(detector.res5):
            state["backbone.body.layer4." + name.removeprefix(detector.res5)] = tensor
    for name in ("weight", "bias"):
        state[f"mmss_heads.GroundingHead.v2l_projection.{name}"] = detector.state[f"{PREDICTOR}emb_pred.{name}"]
        state[f"mmss_heads.TransformerHead.v2l_projection.{name}"] = detector.state[f"{PREDICTOR}emb_pred.{name}"]
    state["mmss_heads.TransformerHead.heads.imagePredictions.decoder.weight"] = torch.ones(DIM, DIM)
    state["language_backbone.body.embeddings"] = torch.ones(9, DIM)
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def published(official):
    return second_stage(official.ovrcnn())


@pytest.fixture
def model(load_cfg, official, published, tmp_path):
    """Our detector for (80, D) class embeddings ``model.words`` of different lengths."""
    words = 0.4 * published.draw(CLASSES, DIM)
    np.save(tmp_path / "words.npy", words.numpy())
    keys = (
        "MODEL.VOCABULARY.EMBEDDINGS", str(tmp_path / "words.npy"), "MODEL.TEXT.DIM", DIM,
        "MODEL.ANCHOR_GENERATOR.NAME", "RoundedAnchorGenerator",
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(load_cfg("OVRCNN_C4.yaml", *keys, *official.tiny_resnet)).eval()
    model.words = words
    return model


def official_detections(official, detector, image, words):
    s, (proposals, x) = detector.state, detector.proposed(image)
    embeddings = F.linear(x, s[f"{PREDICTOR}emb_pred.weight"], s[f"{PREDICTOR}emb_pred.bias"])
    # The classes of a test are loaded into cls_score: raw dot products, no bias, 0 for the background.
    logits = F.pad(embeddings @ words[SCORED].T, (1, 0)).double()
    deltas = F.linear(x, s[f"{PREDICTOR}bbox_pred.weight"], s[f"{PREDICTOR}bbox_pred.bias"])[:, 4:]
    boxes = official.clipped(official.moved(proposals, deltas, (10, 10, 5, 5)), image.shape[1:])
    odds = logits.softmax(1)[:, 1:].logit().float()
    return [(z, SCORED[k], box) for z, k, box in official.detections(boxes, odds, threshold=0.05)]


def test_the_converted_detector_detects_what_the_official_one_does(official, published, model):
    kind = find_kind(published.state, KINDS.values())
    assert kind.name == "ovrcnn"
    converted = convert(published.state, kind)
    assert not converted.unknown and not converted.missing and len(converted.left_out) == 2
    fits = model.load_state_dict(converted.weights, strict=False)
    assert fits.missing_keys == ["roi_heads.box_predictor.class_embeddings"] and not fits.unexpected_keys

    image = official.image()
    with torch.no_grad():
        (found,) = model([{"image": image, "height": 96, "width": 128}])
        expected = official_detections(official, published, image, model.words)
    official.check_detections(found["instances"], expected, at_least=15)


def test_it_finds_what_a_user_names(official, published, load_cfg, tmp_path):
    """The file has no class embeddings. Those of the names, here of MiniLM, are enough."""
    projection = {
        f"{PREDICTOR}emb_pred.weight": published.draw(384, published.out_channels),
        f"{PREDICTOR}emb_pred.bias": published.draw(384),
    }
    weights = convert(published.state | projection, KINDS["ovrcnn"]).weights
    torch.save({"model": weights}, tmp_path / "ours.pth")
    predictor = Detector(
        load_cfg(
            "OVRCNN_C4.yaml", "MODEL.WEIGHTS", str(tmp_path / "ours.pth"), "MODEL.TEXT.NAME", "minilm",
            "MODEL.TEXT.DIM", 384, "MODEL.VOCABULARY.NAMES", ["zebra", "a red bus"], *official.tiny_resnet,
        )
    )  # fmt: skip
    head = predictor.model.roi_heads.box_predictor
    assert torch.equal(head.emb_pred.weight, projection[f"{PREDICTOR}emb_pred.weight"])
    rows = word_piece_means(build_text_tower(name="minilm"), ["zebra", "a red bus"])
    torch.testing.assert_close(head.class_embeddings, F.pad(rows, (0, 0, 0, 1)))
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    (found,) = predictor.detect([image], threshold=0.0)
    assert set(found.pred_classes.tolist()) <= {0, 1}


@torch.no_grad()
def test_a_detector_starts_from_the_converted_first_stage(official, published, model):
    state = first_stage(published)
    kind = find_kind(state, KINDS.values())
    assert kind.name == "ovrcnn-pretrain"
    converted = convert(state, kind)
    assert not converted.unknown and len(converted.left_out) == 3
    assert all(name.startswith("image_encoder.") for name in converted.weights)
    assert all(name.startswith("method.transformer.") for name in converted.missing)
    fits = model.load_state_dict(converted.weights, strict=False)
    assert not fits.unexpected_keys
    trunk = ("backbone.", "roi_heads.res5.", "roi_heads.box_predictor.emb_pred.")
    assert not [name for name in fits.missing_keys if name.startswith(trunk)]

    image = official.image()
    expected = published.features(image)
    images = model.preprocess_image([{"image": image}])
    features = model.backbone(images.tensor)
    torch.testing.assert_close(features["res4"], expected, rtol=1e-3, atol=1e-3)
    boxes = torch.tensor([[3.0, 5, 60, 80], [20, 10, 120, 90]])
    x = published.region_features(expected, boxes)
    weight, bias = (published.state[f"{PREDICTOR}emb_pred.{name}"] for name in ("weight", "bias"))
    pooled = model.roi_heads._shared_roi_transform([features["res4"]], [Boxes(boxes)]).mean((2, 3))
    ours = model.roi_heads.box_predictor.project(pooled)
    torch.testing.assert_close(ours, F.linear(x, weight, bias), rtol=1e-3, atol=1e-3)
