"""CLIM's F-VLM file: the converted detector detects what MMDetection's would, encoder, pyramid and fused scores."""

import json
import math

import open_clip
import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F
from torchvision.ops import batched_nms, roi_align

from clim.data.categories import BASE_INDICES
from clim.modeling.backbones.clip_vit import ClipViT
from conversion.convert import convert, find_kind
from conversion.rules import KINDS

SIDE, CLASSES, DIM, WIDTH, CHANNELS, FC = 64, 80, 12, 32, 16, 32
HEAD = "roi_head.bbox_head."
# 12 blocks, exact GELU, as published.
VIT = {"layers": 12, "width": WIDTH, "head_width": 16, "patch_size": 16, "image_size": 32}
TEXT = {"context_length": 16, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}


class OfficialFVLM:
    """``state`` under MMDetection's names, and the forward of that detector."""

    def __init__(self):
        torch.manual_seed(0)
        clip = open_clip.CLIP(embed_dim=DIM, vision_cfg=VIT, text_cfg=TEXT, quick_gelu=False).eval()
        self.encoder = ClipViT(visual=clip.visual, unlocked_blocks=0)
        self.state = {f"backbone.visual.{k}": v.clone() for k, v in clip.visual.state_dict().items()}
        self.linear("backbone.interpolate1.0", WIDTH, WIDTH, 2, 2)
        self.norm("backbone.interpolate1.1", WIDTH)
        self.linear("backbone.interpolate1.3", WIDTH, WIDTH, 2, 2)
        self.linear("backbone.interpolate2.0", WIDTH, WIDTH, 2, 2)
        for i in range(4):
            self.convolution(f"neck.lateral_convs.{i}", CHANNELS, WIDTH, 1)
            self.convolution(f"neck.fpn_convs.{i}", CHANNELS, CHANNELS, 3)
            self.convolution(f"{HEAD}shared_convs.{i}", CHANNELS, CHANNELS, 3)
        for i in (0, 1):
            self.linear(f"rpn_head.rpn_conv.{i}.conv", CHANNELS, CHANNELS, 3, 3)
        self.linear("rpn_head.rpn_cls", 3, CHANNELS, 1, 1)
        self.linear("rpn_head.rpn_reg", 12, CHANNELS, 1, 1)
        self.state["rpn_head.rpn_reg.weight"] /= 10  # anchors that move a little
        self.linear(f"{HEAD}shared_fcs.0", FC, CHANNELS * 49)
        for name in ("shared_fcs.1", "cls_fcs.0", "reg_fcs.0"):
            self.linear(f"{HEAD}{name}", FC, FC)
        self.linear(f"{HEAD}fc_cls", DIM, FC)
        self.linear(f"{HEAD}fc_reg", 4, FC)
        self.linear(f"{HEAD}bg_embedding", DIM, 1)
        self.state[f"{HEAD}cls_temp"] = torch.tensor(5.0)
        self.state[f"{HEAD}cls_embeddings"] = F.normalize(torch.randn(CLASSES, DIM), dim=1)

    def linear(self, name, *shape):
        self.state[f"{name}.weight"] = 1.4 * torch.randn(shape) / math.prod(shape[1:]) ** 0.5
        self.state[f"{name}.bias"] = 0.1 * torch.randn(shape[0])

    def norm(self, name, channels):
        self.state |= {
            f"{name}.weight": 0.5 + torch.rand(channels),
            f"{name}.bias": 0.1 * torch.randn(channels),
            f"{name}.running_mean": 0.1 * torch.randn(channels),
            f"{name}.running_var": 0.5 + torch.rand(channels),
            f"{name}.num_batches_tracked": torch.tensor(9),
        }

    def convolution(self, name, outputs, inputs, size):
        self.linear(f"{name}.conv", outputs, inputs, size, size)
        del self.state[f"{name}.conv.bias"]  # a norm follows
        self.norm(f"{name}.bn", outputs)

    def of(self, name):
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]

    def run_norm(self, name, x):
        mean, var = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, *self.of(name), eps=1e-5)

    def run(self, name, x):
        weight = self.state[f"{name}.conv.weight"]
        return self.run_norm(f"{name}.bn", F.conv2d(x, weight, padding=weight.shape[2] // 2))

    def pyramid(self, image):
        """Five maps of strides 4 … 64, and the map of unit vectors."""
        mean = torch.tensor([122.7709383, 116.7460125, 104.09373615])[:, None, None]
        std = torch.tensor([68.5005327, 66.6321579, 70.32316305])[:, None, None]
        taps, dense = self.encoder.taps(((image - mean) / std)[None], (3, 5, 7, 11))
        c2 = F.conv_transpose2d(taps[3], *self.of("backbone.interpolate1.0"), stride=2)
        c2 = F.gelu(self.run_norm("backbone.interpolate1.1", c2))
        c2 = F.conv_transpose2d(c2, *self.of("backbone.interpolate1.3"), stride=2)
        c3 = F.conv_transpose2d(taps[5], *self.of("backbone.interpolate2.0"), stride=2)
        maps = [c2, c3, taps[7], F.max_pool2d(taps[11], 2)]
        maps = [self.run(f"neck.lateral_convs.{i}", x) for i, x in enumerate(maps)]
        for i in (2, 1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], scale_factor=2, mode="nearest")
        maps = [self.run(f"neck.fpn_convs.{i}", x) for i, x in enumerate(maps)]
        return [*maps, maps[3][:, :, ::2, ::2]], dense

    def proposals(self, official, maps, size):
        boxes, scores, levels = [], [], []
        for level, x in enumerate(maps):
            stride = 4 * 2**level
            for i in (0, 1):
                x = F.conv2d(x, *self.of(f"rpn_head.rpn_conv.{i}.conv"), padding=1).relu()
            logits = F.conv2d(x, *self.of("rpn_head.rpn_cls"))[0]
            deltas = F.conv2d(x, *self.of("rpn_head.rpn_reg"))[0]
            for a, ratio in enumerate((0.5, 1.0, 2.0)):  # height / width of squares of 8 strides
                w, h = 8 * stride / ratio**0.5, 8 * stride * ratio**0.5
                for row in range(x.shape[2]):
                    for column in range(x.shape[3]):
                        cx, cy = stride * column, stride * row
                        anchor = torch.tensor([[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]])
                        boxes.append(official.moved(anchor, deltas[None, 4 * a : 4 * a + 4, row, column])[0])
                        scores.append(logits[a, row, column])
                        levels.append(level)
        boxes = official.clipped(torch.stack(boxes), size)
        real = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores, levels = boxes[real], torch.stack(scores)[real], torch.tensor(levels)[real]
        return boxes[batched_nms(boxes, scores, levels, 0.7)[:20]]

    def detections(self, official, image):
        size = image.shape[1:]
        maps, dense = self.pyramid(image.float())
        boxes = self.proposals(official, maps, size)
        rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        levels = (areas.sqrt() / 56 + 1e-6).log2().floor().clamp(0, 3)
        x = torch.zeros(len(boxes), CHANNELS, 7, 7)
        for level in range(4):
            mine = levels == level
            pooled = roi_align(maps[level], rois[mine], 7, 1 / (4 * 2**level), sampling_ratio=-1, aligned=True)
            x[mine] = pooled
        for i in range(4):
            x = self.run(f"{HEAD}shared_convs.{i}", x).relu()
        x = x.flatten(1)
        for i in (0, 1):
            x = F.linear(x, *self.of(f"{HEAD}shared_fcs.{i}")).relu()
        embeddings = F.linear(F.linear(x, *self.of(f"{HEAD}cls_fcs.0")).relu(), *self.of(f"{HEAD}fc_cls"))
        deltas = F.linear(F.linear(x, *self.of(f"{HEAD}reg_fcs.0")).relu(), *self.of(f"{HEAD}fc_reg"))

        background = F.normalize(F.linear(torch.ones(1, 1), *self.of(f"{HEAD}bg_embedding")), dim=1)
        texts = torch.cat([self.state[f"{HEAD}cls_embeddings"], background]).double()
        p = (self.state[f"{HEAD}cls_temp"] * F.normalize(embeddings.double(), dim=1) @ texts.T).softmax(1)
        seen = roi_align(dense, rois, 1, 1 / 16, sampling_ratio=-1, aligned=True)[:, :, 0, 0].double()
        q = (75 * F.normalize(seen, dim=1) @ texts.T).softmax(1)
        weight = torch.full((CLASSES,), 0.8)
        weight[list(BASE_INDICES)] = 0.1
        scores = p[:, :-1] ** (1 - weight) * q[:, :-1] ** weight
        boxes = official.moved(boxes, deltas * torch.tensor([0.1, 0.1, 0.2, 0.2]))
        return official.detections(official.clipped(boxes, size), scores.logit().float(), threshold=1e-4, overlap=0.4)


@pytest.fixture(scope="module")
def published():
    with torch.no_grad():
        return OfficialFVLM()


@pytest.fixture
def build(load_cfg, tmp_path):
    def make():
        architecture = tmp_path / "vit.json"
        architecture.write_text(json.dumps({"embed_dim": DIM, "vision_cfg": VIT, "text_cfg": TEXT}))
        cfg = load_cfg(
            "FVLM_ViTB16_CLIM_COCO.yaml", "MODEL.IMAGE_ENCODER.ARCHITECTURE", str(architecture),
            "MODEL.IMAGE_ENCODER.PRETRAINED", "", "MODEL.TEXT.DIM", DIM, "MODEL.VOCABULARY.EMBEDDINGS", "",
            "MODEL.FPN.OUT_CHANNELS", CHANNELS, "MODEL.FPN.NORM", "BN", "MODEL.ROI_BOX_HEAD.NORM", "BN",
            "MODEL.ROI_BOX_HEAD.CONV_DIM", CHANNELS, "MODEL.ROI_BOX_HEAD.FC_DIM", FC, "INPUT.LSJ.SIZE", SIDE,
            "MODEL.RPN.POST_NMS_TOPK_TEST", 20, "TEST.DETECTIONS_PER_IMAGE", 10_000,
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-4,
        )  # fmt: skip
        torch.manual_seed(1)
        return build_model(cfg).eval()

    return make


def test_the_converted_detector_detects_what_the_official_one_does(official, published, build):
    kind = find_kind(published.state, KINDS.values())
    assert kind.name == "clim-fvlm"
    converted = convert(published.state, kind)
    assert not converted.unknown and not converted.missing

    model = build()
    fits = model.load_state_dict(converted.weights, strict=False)
    assert fits.missing_keys == ["roi_heads.box_predictor.freq_weight"] and not fits.unexpected_keys
    assert model.classifier.temperature.item() == 5

    image = official.image(SIDE, SIDE)
    with torch.no_grad():
        (found,) = model([{"image": image, "height": SIDE, "width": SIDE}])
        expected = published.detections(official, image)
    official.check_detections(found["instances"], expected, at_least=50)


def test_detectors_on_lvis_are_of_no_kind(published):
    """Their neck is NAS-FPN, which has other names and no counterpart here."""
    state = {k: v for k, v in published.state.items() if not k.startswith("neck.lateral_convs")}
    assert not KINDS["clim-fvlm"].fits(state)
