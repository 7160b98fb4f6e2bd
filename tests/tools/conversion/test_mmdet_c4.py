"""CLIM's Detic and ovdet's BARON files: the converted detector detects what MMDetection's would."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from conversion.convert import convert, find_kind
from conversion.rules import KINDS

CLASSES, DIM, WORDS, WORD_DIM = 80, 12, 4, 16
HEAD = "roi_head.bbox_head."
POSITIONS = "roi_head.baron_caption.positional_embed.pos_proj."
NO_CLASSES = ("MODEL.VOCABULARY.EMBEDDINGS", "")


def with_head(detector, *, dim, outputs):
    """Its file: class embeddings ``dim`` wide, projection to ``outputs``, two-layer box head, what is left out."""
    width, state = detector.out_channels, detector.state
    state[f"{HEAD}cls_embeddings"] = F.normalize(detector.draw(CLASSES, dim), dim=1)
    state[f"{HEAD}bg_embedding"] = torch.zeros(1, dim)
    state[f"{HEAD}cls_bias"] = torch.tensor([-18.5])
    detector.linear(f"{HEAD}fc_cls", outputs, width)
    detector.linear(f"{HEAD}fc_reg.0", width, width)
    detector.linear(f"{HEAD}fc_reg.2", 4, width)
    state["roi_head.clip.text_encoder.ln_final.weight"] = torch.ones(dim)
    state["backbone.bn1.num_batches_tracked"] = torch.tensor(7)
    return detector


@pytest.fixture
def detic(official):
    """Detic's detector with captions and tags."""
    detector = with_head(official.mmdet(), dim=DIM, outputs=DIM)
    detector.state["roi_head.detic_caption.bce_bias"] = torch.tensor([-17.0])
    detector.state["roi_head.detic_tags.bce_bias"] = torch.tensor([-16.0])
    detector.state["roi_head.detic_tags.tag_embeddings"] = detector.state[f"{HEAD}cls_embeddings"]
    return detector


@pytest.fixture
def baron(official):
    """BARON's: regions become words, with a positional embedding."""
    detector = with_head(official.mmdet(), dim=WORD_DIM, outputs=WORDS * WORD_DIM)
    detector.linear(f"{POSITIONS}0", 512, 512)
    detector.state |= {f"{POSITIONS}1.weight": detector.draw(512), f"{POSITIONS}1.bias": detector.draw(512)}
    detector.linear(f"{POSITIONS}2", WORDS * WORD_DIM, 512)
    return detector


@pytest.fixture
def build(load_cfg, official):
    def make(name, *keys):
        torch.manual_seed(0)
        return build_model(load_cfg(name, *NO_CLASSES, *keys, "MODEL.TEXT.DIM", DIM, *official.tiny_resnet)).eval()

    return make


def official_detections(official, detector, image, embed):
    """``embed``: (R, outputs) of the projection → (R, D) unit rows."""
    s, size = detector.state, image.shape[1:]
    features = detector.features(image)
    proposals = detector.proposals(features, size)
    x = detector.region_features(features, proposals)
    embeddings = embed(F.linear(x, s[f"{HEAD}fc_cls.weight"], s[f"{HEAD}fc_cls.bias"]))
    logits = 25 * embeddings @ s[f"{HEAD}cls_embeddings"].T  # the sigmoid's argument; no bias at test
    hidden = F.linear(x, s[f"{HEAD}fc_reg.0.weight"], s[f"{HEAD}fc_reg.0.bias"]).relu()
    deltas = F.linear(hidden, s[f"{HEAD}fc_reg.2.weight"], s[f"{HEAD}fc_reg.2.bias"])
    # Deltas in units of the standard deviations .1, .1, .2, .2.
    boxes = official.moved(proposals, deltas * torch.tensor([0.1, 0.1, 0.2, 0.2]))
    return official.detections(official.clipped(boxes, size), logits, threshold=0.05)


def load(model, detector, name):
    """The converted file in ``model``: nothing is unknown, missing or unexpected."""
    kind = find_kind(detector.state, KINDS.values())
    assert kind.name == name
    converted = convert(detector.state, kind)
    assert not converted.unknown and not converted.missing
    fits = model.load_state_dict(converted.weights, strict=False)
    assert fits.missing_keys == ["roi_heads.box_predictor.freq_weight"] and not fits.unexpected_keys


@torch.no_grad()
def test_clims_detic(official, build, detic):
    model = build("Detic_CLIM_C4.yaml")
    load(model, detic, "clim-detic")
    assert model.method.bias["caption"].item() == -17 and model.method.bias["tag"].item() == -16
    assert model.classifier.cls_bias.tolist() == [-18.5]
    image = official.image()
    (found,) = model([{"image": image, "height": 96, "width": 128}])
    expected = official_detections(official, detic, image, lambda x: F.normalize(x, dim=1))
    official.check_detections(found["instances"], expected, at_least=100)


@torch.no_grad()
def test_ovdets_baron(official, build, baron, tiny_json):
    tower = tiny_json("vit", text={"context_length": 77})
    model = build(
        "BARON_C4_joint.yaml", "MODEL.TEXT.WORD_DIM", WORD_DIM, "MODEL.TEXT.NAME", tower, "MODEL.TEXT.PRETRAINED", ""
    )
    load(model, baron, "ovdet-baron")
    for i in range(3):
        assert torch.equal(model.method.positional_embed[i].weight, baron.state[f"{POSITIONS}{i}.weight"])
        assert torch.equal(model.method.positional_embed[i].bias, baron.state[f"{POSITIONS}{i}.bias"])

    def embed(x):
        words = x.view(-1, WORDS, WORD_DIM)
        hidden = model.text_encoder.live.encode_words(words, torch.full((len(words),), WORDS)).hidden
        return F.normalize(hidden, dim=1)

    image = official.image()
    (found,) = model([{"image": image, "height": 96, "width": 128}])
    official.check_detections(found["instances"], official_detections(official, baron, image, embed), at_least=100)


def test_files_of_fewer_stages(build, detic, baron):
    """Detic trained on captions alone; the base stages of both."""
    state = {name: tensor for name, tensor in detic.state.items() if "detic_tags" not in name}
    captions_only = convert(state, KINDS["clim-detic"])
    assert captions_only.missing == ["method.bias.tag"]
    fits = build("Detic_CLIM_C4_caption.yaml").load_state_dict(captions_only.weights, strict=False)
    assert fits.missing_keys == ["roi_heads.box_predictor.freq_weight"] and not fits.unexpected_keys
    base = convert({k: v for k, v in state.items() if "detic" not in k}, KINDS["clim-detic"])
    assert base.missing == ["method.bias.caption", "method.bias.tag"]

    state = {k: v for k, v in baron.state.items() if not k.startswith(POSITIONS)}
    assert find_kind(state, KINDS.values()).name == "ovdet-baron"
    assert len(convert(state, KINDS["ovdet-baron"]).missing) == 6


def test_what_is_left_out(detic):
    left_out = convert(detic.state, KINDS["clim-detic"]).left_out
    assert sorted(name for names in left_out.values() for name in names) == [
        "backbone.bn1.num_batches_tracked", f"{HEAD}bg_embedding", "roi_head.clip.text_encoder.ln_final.weight",
        "roi_head.detic_tags.tag_embeddings",
    ]  # fmt: skip
