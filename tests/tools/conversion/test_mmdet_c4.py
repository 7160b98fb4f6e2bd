"""CLIM's Detic and ovdet's BARON: the converted detectors give MMDetection's detections; the command on a file."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

import convert_checkpoint as tool
from clim import Detector
from clim.checkpoints import SafeCheckpointer
from clim.data.categories import COCO_NAMES
from clim.errors import UserError
from conversion.convert import convert, find_kind
from conversion.rules import KINDS

CLASSES, DIM, WORDS, WORD_DIM = 80, 12, 4, 16
HEAD = "roi_head.bbox_head."
POSITIONS = "roi_head.baron_caption.positional_embed.pos_proj."


def with_head(detector, *, dim, outputs):
    """Add class embeddings of width ``dim``, projection to ``outputs``, two-layer box head, and unused tensors."""
    width, state = detector.out_channels, detector.state
    state[f"{HEAD}cls_embeddings"] = F.normalize(detector.draw(CLASSES, dim), dim=1)
    state[f"{HEAD}bg_embedding"] = torch.zeros(1, dim)
    state[f"{HEAD}cls_bias"] = torch.tensor([-18.5])
    for name, rows in (("fc_cls", outputs), ("fc_reg.0", width), ("fc_reg.2", 4)):
        detector.linear(f"{HEAD}{name}", rows, width)
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
        keys = ("MODEL.VOCABULARY.EMBEDDINGS", "", *keys, "MODEL.TEXT.DIM", DIM, *official.tiny_resnet)
        return build_model(load_cfg(name, *keys)).eval()

    return make


def official_detections(official, detector, image, embed):
    """``embed``: (R, outputs) of the projection → (R, D) unit rows."""
    s, (proposals, x) = detector.state, detector.proposed(image)
    embeddings = embed(F.linear(x, s[f"{HEAD}fc_cls.weight"], s[f"{HEAD}fc_cls.bias"]))
    logits = 25 * embeddings @ s[f"{HEAD}cls_embeddings"].T  # the sigmoid's argument; no bias at test
    hidden = F.linear(x, s[f"{HEAD}fc_reg.0.weight"], s[f"{HEAD}fc_reg.0.bias"]).relu()
    deltas = F.linear(hidden, s[f"{HEAD}fc_reg.2.weight"], s[f"{HEAD}fc_reg.2.bias"])
    # Deltas in units of the standard deviations .1, .1, .2, .2.
    boxes = official.moved(proposals, deltas * torch.tensor([0.1, 0.1, 0.2, 0.2]))
    return official.detections(official.clipped(boxes, image.shape[1:]), logits, threshold=0.05)


@torch.no_grad()
def check(official, model, detector, name, embed):
    """Check that the converted file fits ``model`` and gives the detections of ``detector``."""
    kind = find_kind(detector.state, KINDS.values())
    assert kind.name == name
    converted = convert(detector.state, kind)
    assert not converted.unknown and not converted.missing
    fits = model.load_state_dict(converted.weights, strict=False)
    assert fits.missing_keys == ["roi_heads.box_predictor.freq_weight"] and not fits.unexpected_keys
    image = official.image()
    (found,) = model([{"image": image, "height": 96, "width": 128}])
    official.check_detections(found["instances"], official_detections(official, detector, image, embed), at_least=100)
    return converted


def test_clims_detic(official, build, detic):
    model = build("Detic_CLIM_C4.yaml")
    left_out = check(official, model, detic, "clim-detic", lambda x: F.normalize(x, dim=1)).left_out
    assert model.method.bias["caption"].item() == -17 and model.method.bias["tag"].item() == -16
    assert model.classifier.cls_bias.tolist() == [-18.5]
    assert sorted(name for names in left_out.values() for name in names) == [
        "backbone.bn1.num_batches_tracked", f"{HEAD}bg_embedding", "roi_head.clip.text_encoder.ln_final.weight",
        "roi_head.detic_tags.tag_embeddings",
    ]  # fmt: skip


def test_ovdets_baron(official, build, baron, tiny_json):
    tower = tiny_json("vit", text={"context_length": 77})
    keys = ("MODEL.TEXT.WORD_DIM", WORD_DIM, "MODEL.TEXT.NAME", tower, "MODEL.TEXT.PRETRAINED", "")
    model = build("BARON_C4_joint.yaml", *keys)

    def embed(x):
        words = x.view(-1, WORDS, WORD_DIM)
        hidden = model.text_encoder.live.encode_words(words, torch.full((len(words),), WORDS)).hidden
        return F.normalize(hidden, dim=1)

    check(official, model, baron, "ovdet-baron", embed)
    for name, tensor in model.method.positional_embed.state_dict().items():
        assert torch.equal(tensor, baron.state[f"{POSITIONS}{name}"])
    state = {k: v for k, v in baron.state.items() if not k.startswith(POSITIONS)}  # the base stage
    assert find_kind(state, KINDS.values()).name == "ovdet-baron"
    assert len(convert(state, KINDS["ovdet-baron"]).missing) == 6


def test_detic_on_captions_alone(build, detic):
    state = {name: tensor for name, tensor in detic.state.items() if "detic_tags" not in name}
    converted = convert(state, KINDS["clim-detic"])
    assert converted.missing == ["method.bias.tag"]
    fits = build("Detic_CLIM_C4_caption.yaml").load_state_dict(converted.weights, strict=False)
    assert fits.missing_keys == ["roi_heads.box_predictor.freq_weight"] and not fits.unexpected_keys


def test_the_command_on_a_base_stage(official, detic, build, tmp_path, capsys):
    """The command turns MMEngine's file, with two unknown tensors, into one that a detector loads."""
    state = {name: tensor for name, tensor in detic.state.items() if "roi_head.detic" not in name}
    more = {"roi_head.mask_head.a": torch.ones(1), "roi_head.mask_head.b": torch.ones(1)}
    published, ours = str(tmp_path / "published.pth"), str(tmp_path / "ours.pth")
    torch.save({"meta": {"iter": 90000}, "state_dict": state | more}, published)
    with pytest.raises(UserError, match="published.pth, which is an input"):
        tool.main([published, "--output", published])
    with pytest.raises(UserError, match="--kind clim-fvlm: the file's tensors are those of kind clim-detic"):
        tool.main([published, "--output", ours, "--kind", "clim-fvlm"])
    with pytest.raises(UserError, match="--kind fvlm is none of ovrcnn-pretrain"):
        find_kind({}, KINDS.values(), "fvlm")
    tool.main([published, "--output", ours])
    printed = capsys.readouterr().out
    for part in (
        "clim-detic: ", f"taken      {len(state) - 3} tensors", "left out   1: the background's embedding",
        "not found  2, which training starts anew: method.bias.caption, method.bias.tag",
        "left out   2 that this kind does not know: roi_head.mask_head.a, roi_head.mask_head.b",
        "python train_net.py --eval-only --config-file configs/Detic_CLIM_C4.yaml", f"MODEL.WEIGHTS {ours}\n",
    ):  # fmt: skip
        assert part in printed
    model = build("Detic_CLIM_C4.yaml")
    SafeCheckpointer(model, "").load(ours)
    loaded = model.state_dict()
    for name, rule in KINDS["clim-detic"].table.items():
        if name in state:
            torch.testing.assert_close(loaded[rule.ours], rule.change(state[name]), rtol=0, atol=0)
    # The file's classes, as no others are configured.
    torch.testing.assert_close(model.classifier.class_embeddings[:-1], state[f"{HEAD}cls_embeddings"])
    detector = Detector(ours, overrides=["MODEL.TEXT.DIM", DIM, *official.tiny_resnet])  # without a config
    assert detector.names == list(COCO_NAMES) and len(detector.novel) == 80 - 48
    assert detector.model.roi_heads.box_predictor.freq_weight.sum() == 48
