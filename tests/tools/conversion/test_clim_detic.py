"""CLIM's Detic files: the converted detector detects what MMDetection's would."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from conversion.convert import convert, find_kind
from conversion.rules import KINDS

CLASSES, DIM = 80, 12
HEAD = "roi_head.bbox_head."


def with_head(detector):
    """Its file: class embeddings, projection, two-layer box head, biases, and what is left out."""
    width, state = detector.out_channels, detector.state
    state[f"{HEAD}cls_embeddings"] = F.normalize(detector.draw(CLASSES, DIM), dim=1)
    state[f"{HEAD}bg_embedding"] = torch.zeros(1, DIM)
    state[f"{HEAD}cls_bias"] = torch.tensor([-18.5])
    detector.linear(f"{HEAD}fc_cls", DIM, width)
    detector.linear(f"{HEAD}fc_reg.0", width, width)
    detector.linear(f"{HEAD}fc_reg.2", 4, width)
    state["roi_head.detic_caption.bce_bias"] = torch.tensor([-17.0])
    state["roi_head.detic_tags.bce_bias"] = torch.tensor([-16.0])
    state["roi_head.detic_tags.tag_embeddings"] = state[f"{HEAD}cls_embeddings"]
    state["roi_head.clip.text_encoder.ln_final.weight"] = torch.ones(DIM)
    state["backbone.bn1.num_batches_tracked"] = torch.tensor(7)
    return detector


def official_detections(official, detector, image):
    s, size = detector.state, image.shape[1:]
    features = detector.features(image)
    proposals = detector.proposals(features, size)
    x = detector.region_features(features, proposals)
    embeddings = F.normalize(x @ s[f"{HEAD}fc_cls.weight"].T + s[f"{HEAD}fc_cls.bias"], dim=1)
    logits = 25 * embeddings @ s[f"{HEAD}cls_embeddings"].T  # the sigmoid's argument; no bias at test
    hidden = (x @ s[f"{HEAD}fc_reg.0.weight"].T + s[f"{HEAD}fc_reg.0.bias"]).relu()
    deltas = hidden @ s[f"{HEAD}fc_reg.2.weight"].T + s[f"{HEAD}fc_reg.2.bias"]
    # Deltas in units of the standard deviations .1, .1, .2, .2.
    boxes = official.moved(proposals, deltas * torch.tensor([0.1, 0.1, 0.2, 0.2]))
    return official.detections(official.clipped(boxes, size), logits, threshold=0.05)


@pytest.fixture(scope="module")
def build(load_cfg, official):
    def make(name):
        torch.manual_seed(0)
        keys = ("MODEL.VOCABULARY.EMBEDDINGS", "", "MODEL.TEXT.DIM", DIM, *official.tiny_resnet)
        return build_model(load_cfg(name, *keys)).eval()

    return make


def test_the_converted_detector_detects_what_the_official_one_does(official, build):
    detector = with_head(official.mmdet())
    kind = find_kind(detector.state, KINDS.values())
    assert kind.name == "clim-detic"
    converted = convert(detector.state, kind)
    assert not converted.unknown and not converted.missing

    model = build("Detic_CLIM_C4.yaml")
    fits = model.load_state_dict(converted.weights, strict=False)
    assert fits.missing_keys == ["roi_heads.box_predictor.freq_weight"] and not fits.unexpected_keys
    assert model.method.bias["caption"].item() == -17 and model.method.bias["tag"].item() == -16
    assert model.classifier.cls_bias.tolist() == [-18.5]

    image = official.image()
    (found,) = model([{"image": image, "height": 96, "width": 128}])
    expected = official_detections(official, detector, image)
    official.check_detections(found["instances"], expected, at_least=100)


def test_captions_only_and_base_stage_files(official, build):
    state = with_head(official.mmdet()).state
    state = {name: tensor for name, tensor in state.items() if "detic_tags" not in name}
    captions_only = convert(state, KINDS["clim-detic"])
    assert captions_only.missing == ["method.bias.tag"]
    fits = build("Detic_CLIM_C4_caption.yaml").load_state_dict(captions_only.weights, strict=False)
    assert fits.missing_keys == ["roi_heads.box_predictor.freq_weight"] and not fits.unexpected_keys

    base = convert({k: v for k, v in state.items() if "detic" not in k}, KINDS["clim-detic"])
    assert base.missing == ["method.bias.caption", "method.bias.tag"]


def test_why_the_rest_is_left_out(official):
    converted = convert(with_head(official.mmdet()).state, KINDS["clim-detic"])
    assert sorted(name for names in converted.left_out.values() for name in names) == [
        "backbone.bn1.num_batches_tracked",
        "roi_head.bbox_head.bg_embedding",
        "roi_head.clip.text_encoder.ln_final.weight",
        "roi_head.detic_tags.tag_embeddings",
    ]
