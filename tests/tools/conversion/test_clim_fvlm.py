"""CLIM's F-VLM file: the converted detector gives MMDetection's detections."""

import json
import math

import open_clip
import torch
from detectron2.modeling import build_model
from torch import nn
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


class Conv(nn.Module):
    """A convolution without bias and its normalisation, under MMDetection's names."""

    def __init__(self, inputs, outputs, size):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.bn(self.conv(x))


class OfficialFVLM(nn.Module):
    """The forward of MMDetection's detector; ``state`` has its names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        clip = open_clip.CLIP(embed_dim=DIM, vision_cfg=VIT, text_cfg=TEXT, quick_gelu=False)

        def up():
            return nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=2)

        def convs(inputs, size):
            return nn.ModuleList(Conv(inputs, CHANNELS, size) for _ in range(4))

        def branch():
            return nn.ModuleList([nn.Linear(FC, FC)])

        four = nn.Sequential(up(), nn.BatchNorm2d(WIDTH), nn.GELU(), up())
        self.backbone = nn.ModuleDict({"interpolate1": four, "interpolate2": nn.Sequential(up())})
        self.neck = nn.ModuleDict({"lateral_convs": convs(WIDTH, 1), "fpn_convs": convs(CHANNELS, 3)})
        rpn = [nn.ModuleDict({"conv": nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)}) for _ in range(2)]
        cls, reg = nn.Conv2d(CHANNELS, 3, 1), nn.Conv2d(CHANNELS, 12, 1)
        self.rpn_head = nn.ModuleDict({"rpn_conv": nn.ModuleList(rpn), "rpn_cls": cls, "rpn_reg": reg})
        fcs = nn.ModuleList([nn.Linear(CHANNELS * 49, FC), nn.Linear(FC, FC)])
        parts = {"shared_convs": convs(CHANNELS, 3), "shared_fcs": fcs, "cls_fcs": branch(), "reg_fcs": branch()}
        parts |= {"fc_cls": nn.Linear(FC, DIM), "fc_reg": nn.Linear(FC, 4), "bg_embedding": nn.Linear(1, DIM)}
        self.roi_head = nn.ModuleDict({"bbox_head": nn.ModuleDict(parts)})
        for name, tensor in self.state_dict().items():
            if name.endswith(("bn.weight", "interpolate1.1.weight", "running_var")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1:
                tensor.normal_(std=0.1)
            elif tensor.ndim > 1:
                tensor.normal_(std=1.4 / math.prod(tensor.shape[1:]) ** 0.5)
        reg.weight.data /= 10  # anchors that move a little
        self.texts = F.normalize(torch.randn(CLASSES, DIM), dim=1)
        self.state = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        self.state |= {f"backbone.visual.{k}": v.clone() for k, v in clip.visual.state_dict().items()}
        self.state |= {f"{HEAD}cls_temp": torch.tensor(5.0), f"{HEAD}cls_embeddings": self.texts}
        self.encoder = ClipViT(visual=clip.visual, unlocked_blocks=0)
        self.eval()

    def pyramid(self, image):
        """Five maps of strides 4 … 64, and the map of unit vectors."""
        mean = torch.tensor([122.7709383, 116.7460125, 104.09373615])[:, None, None]
        std = torch.tensor([68.5005327, 66.6321579, 70.32316305])[:, None, None]
        taps, dense = self.encoder.taps(((image - mean) / std)[None], (3, 5, 7, 11))
        maps = [self.backbone["interpolate1"](taps[3]), self.backbone["interpolate2"](taps[5])]
        maps += [taps[7], F.max_pool2d(taps[11], 2)]
        maps = [conv(x) for conv, x in zip(self.neck["lateral_convs"], maps, strict=True)]
        for i in (2, 1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], scale_factor=2, mode="nearest")
        maps = [conv(x) for conv, x in zip(self.neck["fpn_convs"], maps, strict=True)]
        return [*maps, maps[3][:, :, ::2, ::2]], dense

    def proposals(self, official, maps, size):
        boxes, scores, levels = [], [], []
        for level, x in enumerate(maps):
            stride = 4 * 2**level
            for layer in self.rpn_head["rpn_conv"]:
                x = layer["conv"](x).relu()
            logits, deltas = self.rpn_head["rpn_cls"](x)[0], self.rpn_head["rpn_reg"](x)[0]
            # Squares of 8 strides, height / width .5, 1, 2.
            anchors = [(8 * stride / ratio**0.5, 8 * stride * ratio**0.5) for ratio in (0.5, 1.0, 2.0)]
            found = official.decoded(logits, deltas, anchors, stride=stride, offset=0)
            boxes.append(found[0])
            scores.append(found[1])
            levels.append(torch.full(found[1].shape, level))
        boxes, scores, levels = official.clipped(torch.cat(boxes), size), torch.cat(scores), torch.cat(levels)
        real = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes = boxes[real]
        return boxes[batched_nms(boxes, scores[real], levels[real], 0.7)[:20]]

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
            x[mine] = roi_align(maps[level], rois[mine], 7, 1 / (4 * 2**level), sampling_ratio=-1, aligned=True)
        head = self.roi_head["bbox_head"]
        for layer in head["shared_convs"]:
            x = layer(x).relu()
        x = x.flatten(1)
        for layer in head["shared_fcs"]:
            x = layer(x).relu()
        embeddings = head["fc_cls"](head["cls_fcs"][0](x).relu())
        deltas = head["fc_reg"](head["reg_fcs"][0](x).relu())
        background = F.normalize(head["bg_embedding"](torch.ones(1, 1)), dim=1)
        texts = torch.cat([self.texts, background]).double()
        p = (5 * F.normalize(embeddings.double(), dim=1) @ texts.T).softmax(1)
        seen = roi_align(dense, rois, 1, 1 / 16, sampling_ratio=-1, aligned=True)[:, :, 0, 0].double()
        q = (75 * F.normalize(seen, dim=1) @ texts.T).softmax(1)
        weight = torch.full((CLASSES,), 0.8)
        weight[list(BASE_INDICES)] = 0.1
        scores = p[:, :-1] ** (1 - weight) * q[:, :-1] ** weight
        boxes = official.moved(boxes, deltas * torch.tensor([0.1, 0.1, 0.2, 0.2]))
        return official.detections(official.clipped(boxes, size), scores.logit().float(), threshold=1e-4, overlap=0.4)


@torch.no_grad()
def test_the_converted_detector_detects_what_the_official_one_does(official, load_cfg, tmp_path):
    published = OfficialFVLM()
    kind = find_kind(published.state, KINDS.values())
    assert kind.name == "clim-fvlm"
    converted = convert(published.state, kind)
    assert not converted.unknown and not converted.missing
    # Detectors on LVIS are of no kind: their neck is NAS-FPN, which has other names.
    assert not kind.fits({k: v for k, v in published.state.items() if not k.startswith("neck.lateral_convs")})

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
    model = build_model(cfg).eval()
    fits = model.load_state_dict(converted.weights, strict=False)
    assert fits.missing_keys == ["roi_heads.box_predictor.freq_weight"] and not fits.unexpected_keys
    assert model.classifier.temperature.item() == 5
    image = official.image(SIDE, SIDE)
    (found,) = model([{"image": image, "height": SIDE, "width": SIDE}])
    official.check_detections(found["instances"], published.detections(official, image), at_least=50)
