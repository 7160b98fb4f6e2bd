"""ovdet's BARON file: the converted detector detects what MMDetection's would, its words read by the same tower."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from conversion.convert import convert, find_kind
from conversion.rules import KINDS

CLASSES, WORDS, WORD_DIM = 80, 4, 16
HEAD = "roi_head.bbox_head."
POSITIONS = "roi_head.baron_caption.positional_embed.pos_proj."


def with_head(detector):
    """Its file: pseudo words, embeddings of classes as wide as a word, positional embedding, the text tower."""
    width, state = detector.out_channels, detector.state
    state[f"{HEAD}cls_embeddings"] = F.normalize(detector.draw(CLASSES, WORD_DIM), dim=1)
    state[f"{HEAD}bg_embedding"] = torch.zeros(1, WORD_DIM)
    state[f"{HEAD}cls_bias"] = torch.tensor([-18.5])
    detector.linear(f"{HEAD}fc_cls", WORDS * WORD_DIM, width)
    detector.linear(f"{HEAD}fc_reg.0", width, width)
    detector.linear(f"{HEAD}fc_reg.2", 4, width)
    detector.linear(f"{POSITIONS}0", 512, 512)
    state[f"{POSITIONS}1.weight"], state[f"{POSITIONS}1.bias"] = detector.draw(512), detector.draw(512)
    detector.linear(f"{POSITIONS}2", WORDS * WORD_DIM, 512)
    state["roi_head.clip.text_encoder.ln_final.weight"] = torch.ones(WORD_DIM)
    return detector


@pytest.fixture(scope="module")
def model(load_cfg, official, tiny_json):
    torch.manual_seed(0)
    cfg = load_cfg(
        "BARON_C4_joint.yaml", "MODEL.VOCABULARY.EMBEDDINGS", "", "MODEL.TEXT.WORD_DIM", WORD_DIM,
        "MODEL.TEXT.NAME", tiny_json("vit", text={"context_length": 77}), "MODEL.TEXT.PRETRAINED", "",
        "MODEL.TEXT.DIM", 12, *official.tiny_resnet,
    )  # fmt: skip
    return build_model(cfg).eval()


def official_detections(official, detector, image, tower):
    s, size = detector.state, image.shape[1:]
    features = detector.features(image)
    proposals = detector.proposals(features, size)
    x = detector.region_features(features, proposals)
    words = F.linear(x, s[f"{HEAD}fc_cls.weight"], s[f"{HEAD}fc_cls.bias"]).view(-1, WORDS, WORD_DIM)
    hidden = tower.encode_words(words, torch.full((len(words),), WORDS)).hidden
    logits = 25 * F.normalize(hidden, dim=1) @ s[f"{HEAD}cls_embeddings"].T
    hidden = F.linear(x, s[f"{HEAD}fc_reg.0.weight"], s[f"{HEAD}fc_reg.0.bias"]).relu()
    deltas = F.linear(hidden, s[f"{HEAD}fc_reg.2.weight"], s[f"{HEAD}fc_reg.2.bias"])
    boxes = official.moved(proposals, deltas * torch.tensor([0.1, 0.1, 0.2, 0.2]))
    return official.detections(official.clipped(boxes, size), logits, threshold=0.05)


def test_the_converted_detector_detects_what_the_official_one_does(official, model):
    detector = with_head(official.mmdet())
    kind = find_kind(detector.state, KINDS.values())
    assert kind.name == "ovdet-baron"
    converted = convert(detector.state, kind)
    assert not converted.unknown and not converted.missing
    fits = model.load_state_dict(converted.weights, strict=False)
    assert fits.missing_keys == ["roi_heads.box_predictor.freq_weight"] and not fits.unexpected_keys
    for i in range(3):
        assert torch.equal(model.method.positional_embed[i].weight, detector.state[f"{POSITIONS}{i}.weight"])
        assert torch.equal(model.method.positional_embed[i].bias, detector.state[f"{POSITIONS}{i}.bias"])

    image = official.image()
    with torch.no_grad():
        (found,) = model([{"image": image, "height": 96, "width": 128}])
        expected = official_detections(official, detector, image, model.text_encoder.live)
    official.check_detections(found["instances"], expected, at_least=100)


def test_base_stage_files_have_no_positions(official):
    state = {k: v for k, v in with_head(official.mmdet()).state.items() if not k.startswith(POSITIONS)}
    assert find_kind(state, KINDS.values()).name == "ovdet-baron"
    assert len(convert(state, KINDS["ovdet-baron"]).missing) == 6
