"""CLIM's F-VLM files: the converted detectors give MMDetection's detections, and masks on OV-LVIS."""

import json
import math

import open_clip
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from torch import nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, roi_align

from clim.data.categories import BASE_INDICES
from clim.modeling.backbones.clip_vit import ClipViT
from clim.modeling.backbones.resnet import LAYERS, ClipResNet
from conversion.convert import convert, find_kind
from conversion.rules import KINDS

SIDE, CLASSES, DIM, WIDTH, CHANNELS, FC = 64, 80, 12, 32, 16, 32
HEAD, MASK = "roi_head.bbox_head.", "roi_head.mask_head."
# 12 blocks, exact GELU, as published; the blocks of RN50x64.
VIT = {"layers": 12, "width": WIDTH, "head_width": 16, "patch_size": 16, "image_size": 32}
RESNET = {"layers": [3, 15, 36, 10], "width": 4, "image_size": 64}
CELLS = ("gp_64_4", "sum_44_4", "sum_43_3", "sum_34_4", "sum_55_5", "sum_77_7", "gp_75_6")
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
    """The forward of one of MMDetection's detectors; ``state`` has its names.

    Each kind has its own parts: ``resnet`` or ViT, ``nas`` or FPN, ``normed`` convolutions in the RPN, ``masks``.
    """

    def __init__(self, *, resnet=False, nas=False, normed=False, masks=False):
        super().__init__()
        torch.manual_seed(0)
        self.nas, self.masks = nas, masks
        # alpha, beta, temperature of CLIP, IoU of the final NMS
        self.numbers = (0.35, 0.65, 50, 0.5) if masks else (0.1, 0.8, 75, 0.4)
        clip = open_clip.CLIP(embed_dim=DIM, vision_cfg=RESNET if resnet else VIT, text_cfg=TEXT, quick_gelu=False)
        if resnet:
            self.encoder = ClipResNet(visual=clip.visual, unlocked_blocks=0, regions="v2")
        else:
            self.encoder = ClipViT(visual=clip.visual, unlocked_blocks=0)

        def up(channels=WIDTH):
            return nn.ConvTranspose2d(channels, channels, 2, stride=2)

        def convs(size, inputs=(CHANNELS,) * 4):
            return nn.ModuleList(Conv(c, CHANNELS, size) for c in inputs)

        def branch():
            return nn.ModuleList([nn.Linear(FC, FC)])

        def plain():
            return nn.ModuleDict({"conv": nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)})

        if not resnet:
            four = nn.Sequential(up(), nn.BatchNorm2d(WIDTH), nn.GELU(), up())
            self.backbone = nn.ModuleDict({"interpolate1": four, "interpolate2": nn.Sequential(up())})
        neck = {"lateral_convs": convs(1, [shape.channels for shape in self.encoder.tap_shapes.values()])}
        if nas:
            neck["extra_downsamples"] = nn.ModuleList([nn.Sequential(Conv(CHANNELS, CHANNELS, 1))])
            neck["fpn_stages"] = nn.ModuleList(self.stage() for _ in range(7))
        else:
            neck["fpn_convs"] = convs(3)
        self.neck = nn.ModuleDict(neck)
        rpn = [Conv(CHANNELS, CHANNELS, 3) if normed else plain() for _ in range(2)]
        cls, reg = nn.Conv2d(CHANNELS, 3, 1), nn.Conv2d(CHANNELS, 12, 1)
        self.rpn_head = nn.ModuleDict({"rpn_conv": nn.ModuleList(rpn), "rpn_cls": cls, "rpn_reg": reg})
        fcs = nn.ModuleList([nn.Linear(CHANNELS * 49, FC), nn.Linear(FC, FC)])
        parts = {"shared_convs": convs(3), "shared_fcs": fcs, "cls_fcs": branch(), "reg_fcs": branch()}
        parts |= {"fc_cls": nn.Linear(FC, DIM), "fc_reg": nn.Linear(FC, 4), "bg_embedding": nn.Linear(1, DIM)}
        self.roi_head = nn.ModuleDict({"bbox_head": nn.ModuleDict(parts)})
        if masks:
            mask = {"convs": convs(3), "upsample": up(CHANNELS), "conv_logits": nn.Conv2d(CHANNELS, 1, 1)}
            self.roi_head["mask_head"] = nn.ModuleDict(mask)
        self.draw(reg)
        visual = {f"backbone.visual.{k}": v.clone() for k, v in clip.visual.state_dict().items()}
        mine = {k: v.clone() for k, v in self.state_dict().items() if not k.startswith("encoder.")}
        self.state = mine | visual | {f"{HEAD}cls_temp": torch.tensor(5.0), f"{HEAD}cls_embeddings": self.texts}
        self.eval()

    @staticmethod
    def stage():
        """The cells of one of NAS-FPN's stages, each with a bias."""
        cells = {name: nn.ModuleDict({"out_conv": Conv(CHANNELS, CHANNELS, 3)}) for name in CELLS}
        for cell in cells.values():
            cell["out_conv"].conv.bias = nn.Parameter(torch.zeros(CHANNELS))
        return nn.ModuleDict(cells)

    @torch.no_grad()
    def draw(self, reg):
        for name, tensor in self.state_dict().items():
            if name.startswith("encoder."):
                continue
            if name.endswith(("bn.weight", "interpolate1.1.weight", "running_var")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1:
                tensor.normal_(std=0.1)
            elif tensor.ndim > 1:
                tensor.normal_(std=1.4 / math.prod(tensor.shape[1:]) ** 0.5)
            if "out_conv.conv.weight" in name:
                tensor *= 0.4  # or 49 cells that add maps would explode
        reg.weight.data /= 10  # anchors that move a little
        self.texts = F.normalize(torch.randn(CLASSES, DIM), dim=1)

    def pyramid(self, image):
        """Five maps of strides 4 … 64, and the map that CLIP's regions are pooled from."""
        mean = torch.tensor([122.7709383, 116.7460125, 104.09373615])[:, None, None]
        std = torch.tensor([68.5005327, 66.6321579, 70.32316305])[:, None, None]
        pixels = ((image - mean) / std)[None]
        if isinstance(self.encoder, ClipResNet):
            taps, dense = self.encoder.taps(pixels)
            maps = [taps[name] for name in LAYERS]
        else:
            taps, dense = self.encoder.taps(pixels, (3, 5, 7, 11))
            maps = [self.backbone["interpolate1"](taps[3]), self.backbone["interpolate2"](taps[5])]
            maps += [taps[7], F.max_pool2d(taps[11], 2)]
        maps = [conv(x) for conv, x in zip(self.neck["lateral_convs"], maps, strict=True)]
        if self.nas:
            maps.append(F.max_pool2d(self.neck["extra_downsamples"][0](maps[3]), 2))
            for stage in self.neck["fpn_stages"]:
                maps = nas_stage(stage, *maps)
            return maps, dense
        for i in (2, 1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], scale_factor=2, mode="nearest")
        maps = [conv(x) for conv, x in zip(self.neck["fpn_convs"], maps, strict=True)]
        return [*maps, maps[3][:, :, ::2, ::2]], dense

    def clip_regions(self, dense, rois):
        """CLIP's embeddings (R, D) of rois (R, 5)."""
        if isinstance(self.encoder, ClipResNet):
            grid = self.encoder.grid
            pooled = roi_align(dense, rois, grid, 1 / 32, sampling_ratio=-1, aligned=True)
            return self.encoder.visual.attnpool(pooled)
        return roi_align(dense, rois, 1, 1 / 16, sampling_ratio=-1, aligned=True)[:, :, 0, 0]

    def region_maps(self, maps, boxes, size):
        """(R, C, size, size), each box from the level of its area."""
        rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        levels = (areas.sqrt() / 56 + 1e-6).log2().floor().clamp(0, 3)
        x = torch.zeros(len(boxes), CHANNELS, size, size)
        for level in range(4):
            mine = levels == level
            x[mine] = roi_align(maps[level], rois[mine], size, 1 / (4 * 2**level), sampling_ratio=-1, aligned=True)
        return x

    def mask_logits(self, x):
        """(R, C, 14, 14) → (R, 1, 28, 28)."""
        head = self.roi_head["mask_head"]
        for layer in head["convs"]:
            x = layer(x).relu()
        return head["conv_logits"](head["upsample"](x).relu())

    def proposals(self, official, maps, size):
        boxes, scores, levels = [], [], []
        for level, x in enumerate(maps):
            stride = 4 * 2**level
            for layer in self.rpn_head["rpn_conv"]:
                x = (layer(x) if isinstance(layer, Conv) else layer["conv"](x)).relu()
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
        x = self.region_maps(maps, boxes, 7)
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
        alpha, beta, temperature, overlap = self.numbers
        seen = self.clip_regions(dense, torch.cat([torch.zeros(len(boxes), 1), boxes], 1)).double()
        q = (temperature * F.normalize(seen, dim=1) @ texts.T).softmax(1)
        weight = torch.full((CLASSES,), beta)
        weight[list(BASE_INDICES)] = alpha
        scores = p[:, :-1] ** (1 - weight) * q[:, :-1] ** weight
        boxes = official.moved(boxes, deltas * torch.tensor([0.1, 0.1, 0.2, 0.2]))
        return official.detections(
            official.clipped(boxes, size), scores.logit().float(), threshold=1e-4, overlap=overlap
        )


def nas_stage(stage, p3, p4, p5, p6, p7):
    """MMDetection's seven cells, on maps that each halve the one before."""

    def fit(x, like):
        ratio = x.shape[2] / like.shape[2]
        return F.max_pool2d(x, int(ratio)) if ratio > 1 else F.interpolate(x, size=like.shape[2:], mode="nearest")

    def gp(a, b, like):
        a, b = fit(a, like), fit(b, like)
        return b + F.adaptive_avg_pool2d(b, 1).sigmoid() * a

    def end(name, x):
        return stage[name]["out_conv"](x.relu())

    p4_1 = end("gp_64_4", gp(p6, p4, p4))
    p4_2 = end("sum_44_4", p4_1 + p4)
    p3 = end("sum_43_3", fit(p4_2, p3) + p3)
    p4 = end("sum_34_4", fit(p3, p4) + p4_2)
    p5 = end("sum_55_5", p5 + gp(p4, p3, p5))
    p7 = end("sum_77_7", p7 + gp(p5, p4_2, p7))
    return [p3, p4, p5, end("gp_75_6", gp(p7, p5, p6)), p7]


SMALL = (
    "MODEL.IMAGE_ENCODER.PRETRAINED", "", "MODEL.TEXT.DIM", DIM, "MODEL.VOCABULARY.EMBEDDINGS", "",
    "MODEL.FPN.OUT_CHANNELS", CHANNELS, "MODEL.FPN.NORM", "BN", "MODEL.ROI_BOX_HEAD.NORM", "BN",
    "MODEL.ROI_BOX_HEAD.CONV_DIM", CHANNELS, "MODEL.ROI_BOX_HEAD.FC_DIM", FC, "INPUT.LSJ.SIZE", SIDE,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 20, "TEST.DETECTIONS_PER_IMAGE", 10_000,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-4,
)  # fmt: skip
MASKS = (
    "MODEL.ROI_HEADS.NUM_CLASSES", CLASSES, "MODEL.OPEN_VOCAB.BASE_CLASSES", "ovcoco",
    "MODEL.ROI_MASK_HEAD.NORM", "BN", "MODEL.ROI_MASK_HEAD.CONV_DIM", CHANNELS,
)  # fmt: skip
PUBLISHED = {
    "clim-fvlm": ("FVLM_ViTB16_CLIM_COCO.yaml", {}, ()),
    "clim-fvlm-lvis": ("lvis/FVLM_ViTB16_CLIM_LVIS.yaml", {"nas": True, "masks": True}, MASKS),
    "clim-fvlm-rn50x64": (
        "lvis/FVLM_RN50x64_CLIM_LVIS.yaml", {"resnet": True, "normed": True, "masks": True},
        (*MASKS, "MODEL.RPN.NORM", "BN"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_the_converted_detector_detects_what_the_official_one_does(official, load_cfg, tmp_path, name):
    config, parts, keys = PUBLISHED[name]
    published = OfficialFVLM(**parts)
    kind = find_kind(published.state, KINDS.values())
    assert kind.name == name and [k.name for k in KINDS.values() if k.fits(published.state)] == [name]
    converted = convert(published.state, kind)
    assert not converted.unknown and not converted.missing

    architecture = tmp_path / "clip.json"
    vision = RESNET if parts.get("resnet") else VIT
    architecture.write_text(json.dumps({"embed_dim": DIM, "vision_cfg": vision, "text_cfg": TEXT}))
    cfg = load_cfg(config, "MODEL.IMAGE_ENCODER.ARCHITECTURE", str(architecture), *SMALL, *keys)
    torch.manual_seed(1)
    model = build_model(cfg).eval()
    fits = model.load_state_dict(converted.weights, strict=False)
    assert fits.missing_keys == ["roi_heads.box_predictor.freq_weight"] and not fits.unexpected_keys
    assert model.classifier.temperature.item() == 5
    image = official.image(SIDE, SIDE)
    (found,) = model([{"image": image, "height": SIDE, "width": SIDE}])
    official.check_detections(found["instances"], published.detections(official, image), at_least=50)
    if parts.get("masks"):
        heads, boxes = model.roi_heads, found["instances"].pred_boxes.tensor[:9]
        features = model.backbone(model.preprocess_image([{"image": image}]).tensor)
        ours = heads.mask_head.layers(heads.mask_pooler([features[f"p{i}"] for i in range(2, 6)], [Boxes(boxes)]))
        maps, _ = published.pyramid(image.float())
        theirs = published.mask_logits(published.region_maps(maps, boxes, 14))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_file_of_a_frozen_resnet_may_lack_its_counts():
    state = OfficialFVLM(resnet=True, normed=True, masks=True).state
    counts = [n for n in state if n.startswith("backbone.") and n.endswith("num_batches_tracked")]
    converted = convert({n: t for n, t in state.items() if n not in counts}, KINDS["clim-fvlm-rn50x64"])
    assert len(converted.missing) == len(counts) == 3 + 3 * 64 + 4 and not converted.unknown
