"""Tiny official C4 detectors: random tensors under their names, and their forward, written out slowly."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck
from torchvision.ops import nms, roi_align

BLOCKS = {1: 3, 2: 4, 3: 6, 4: 3}
WIDTH = 4  # channels inside layer1; the other sizes follow as in ResNet-50
TINY_RESNET = (
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 2 * WIDTH, "MODEL.RESNETS.RES2_OUT_CHANNELS", 4 * WIDTH,
    "MODEL.RESNETS.WIDTH_PER_GROUP", WIDTH, "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
    "TEST.DETECTIONS_PER_IMAGE", 10_000,
)  # fmt: skip
SIZES = (32, 64, 128, 256, 512)
EXACT = [(0.5**-0.5, 0.5**0.5), (1, 1), (0.5**0.5, 0.5**-0.5)]  # width, height of a square with height / width .5, 1, 2
ROUNDED = [(23 / 16, 12 / 16), (1, 1), (11 / 16, 22 / 16)]


def stage(inputs, inside, blocks, *, stride):
    """Bottlenecks of Caffe's ResNet: the stride is on the first convolution."""
    shortcut = nn.Sequential(nn.Conv2d(inputs, 4 * inside, 1, stride, bias=False), nn.BatchNorm2d(4 * inside))
    first = Bottleneck(inputs, inside, stride, shortcut)
    first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
    return nn.Sequential(first, *(Bottleneck(4 * inside, inside) for _ in range(blocks - 1)))


@dataclass
class OfficialC4:
    """A C4 detector of one project: ``state`` with its names, and its forward up to the features of regions.

    Args:
        anchors: (width, height) of each anchor, in the project's order.
        offset: of anchors' centres, in cells.
        eps: what the normalisation adds to the variance.
        aligned: RoIAlign by half a pixel.
    """

    stem: str
    layer: str  # with {} for the number
    res5: str
    rpn: tuple[str, str, str]  # convolution, objectness, deltas
    anchors: list[tuple[float, float]]
    offset: float
    eps: float
    aligned: bool
    pixel_mean: tuple[float, float, float]  # BGR

    def __post_init__(self):
        self.random = torch.Generator().manual_seed(1)
        conv, norm = nn.Conv2d(3, 2 * WIDTH, 7, 2, 3, bias=False), nn.BatchNorm2d(2 * WIDTH)
        self.body = nn.ModuleDict({"stem": nn.ModuleDict({"conv1": conv, "bn1": norm})})
        channels = 2 * WIDTH
        for number, blocks in BLOCKS.items():
            inside = WIDTH * 2 ** (number - 1)
            self.body[f"layer{number}"] = stage(channels, inside, blocks, stride=1 if number == 1 else 2)
            channels = 4 * inside
        for module in self.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = self.eps
        self.body.eval()
        prefixes = {"stem": self.stem, "layer4": self.res5} | {f"layer{i}": self.layer.format(i) for i in (1, 2, 3)}
        self.state = {}
        for key, tensor in self.body.state_dict().items():
            part, _, name = key.partition(".")
            if not name.endswith("num_batches_tracked"):
                self._fill(name, tensor)
                self.state[prefixes[part] + name] = tensor
        self.state[f"{self.stem}conv1.weight"] /= 100  # pixels are larger than features
        self.out_channels, hidden = channels, channels // 2
        self.linear(self.rpn[0], hidden, hidden, 3, 3)
        self.linear(self.rpn[1], len(self.anchors), hidden, 1, 1)
        self.linear(self.rpn[2], 4 * len(self.anchors), hidden, 1, 1, scale=0.1)

    def draw(self, *shape):
        return torch.randn(shape, generator=self.random)

    def linear(self, name, rows, *columns, scale=1.0):
        """Draw a layer's weight and bias. Its outputs are about ``scale`` times as large as its inputs."""
        self.state[f"{name}.weight"] = scale * self.draw(rows, *columns) / math.prod(columns) ** 0.5
        self.state[f"{name}.bias"] = 0.1 * scale * self.draw(rows)

    def _fill(self, name, tensor):
        uniform = torch.rand(tensor.shape, generator=self.random)
        if tensor.ndim == 4:
            tensor.copy_(0.02 * self.draw(*tensor.shape) / math.prod(tensor.shape[1:]) ** 0.5)
        elif name.endswith("running_var"):  # so small that 1e-5 more or less is seen
            tensor.copy_(1e-4 + 3e-4 * uniform)
        elif name.endswith("weight"):
            tensor.copy_((0.3 if "bn3" in name else 1.0) * (0.5 + uniform))
        else:
            tensor.copy_((0.1 if name.endswith("bias") else 0.005) * self.draw(*tensor.shape))

    def features(self, image):
        """(3, H, W) BGR → (1, C, H / 16, W / 16)."""
        x = (image.float() - torch.tensor(self.pixel_mean)[:, None, None])[None]
        stem = self.body["stem"]
        x = F.max_pool2d(stem["bn1"](stem["conv1"](x)).relu(), 3, 2, 1)
        for number in (1, 2, 3):
            x = self.body[f"layer{number}"](x)
        return x

    def proposals(self, features, size):
        """(P, 4): at most 20, after NMS .7, best first."""
        s, (conv, objectness, regression) = self.state, self.rpn
        x = F.conv2d(features, s[f"{conv}.weight"], s[f"{conv}.bias"], padding=1).relu()
        logits, deltas = (F.conv2d(x, s[f"{n}.weight"], s[f"{n}.bias"])[0] for n in (objectness, regression))
        boxes, scores = decoded(logits, deltas, self.anchors, stride=16, offset=self.offset)
        boxes = clipped(boxes, size)
        order = scores.argsort(descending=True)
        order = order[(boxes[order, 2:] > boxes[order, :2]).all(1)]
        return boxes[order[nms(boxes[order], scores[order], 0.7)][:20]]

    def region_features(self, features, boxes):
        """(P, C') of boxes (P, 4): RoIAlign 14 x 14, layer4, mean."""
        rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)
        pooled = roi_align(features, rois, 14, 1 / 16, sampling_ratio=-1, aligned=self.aligned)
        return self.body["layer4"](pooled).mean((2, 3))

    def proposed(self, image):
        """Proposals (P, 4) of an image (3, H, W), and their features (P, C')."""
        features = self.features(image)
        boxes = self.proposals(features, image.shape[1:])
        return boxes, self.region_features(features, boxes)


def decoded(logits, deltas, anchors, *, stride, offset):
    """Boxes and scores of logits (A, h, w) and deltas (4A, h, w), one by one. ``anchors``: (width, height)."""
    boxes, scores = [], []
    for a, (w, h) in enumerate(anchors):
        for row in range(logits.shape[1]):
            for column in range(logits.shape[2]):
                x, y = stride * (column + offset), stride * (row + offset)
                anchor = torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]])
                boxes.append(moved(anchor, deltas[None, 4 * a : 4 * a + 4, row, column])[0])
                scores.append(logits[a, row, column])
    return torch.stack(boxes), torch.stack(scores)


def moved(boxes, deltas, weights=(1, 1, 1, 1)):
    """Boxes (R, 4) shifted and scaled by deltas (R, 4)."""
    dx, dy, dw, dh = (deltas / torch.tensor(weights)).unbind(1)
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = boxes[:, 0] + w / 2 + dx * w, boxes[:, 1] + h / 2 + dy * h
    w, h = w * dw.clamp(max=math.log(1000 / 16)).exp(), h * dh.clamp(max=math.log(1000 / 16)).exp()
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)


def clipped(boxes, size):
    height, width = size
    return torch.stack([boxes[:, i].clamp(0, (width, height)[i % 2]) for i in range(4)], 1)


def detections(boxes, logits, *, threshold, overlap=0.5):
    """[(log-odds, class, box)] of boxes (R, 4) and log-odds (R, K): NMS class by class."""
    found = []
    for k in range(logits.shape[1]):
        chosen = (logits[:, k] > math.log(threshold / (1 - threshold))).nonzero()[:, 0]
        for i in chosen[nms(boxes[chosen], logits[chosen, k], overlap)].tolist():
            found.append((logits[i, k].item(), k, boxes[i]))
    return found


def check_detections(instances, expected, *, at_least):
    """Each instance is one of ``expected``: within 1e-3 of its log-odds and .02 px of its box."""
    assert len(instances) == len(expected) >= at_least
    free = torch.ones(len(expected), dtype=torch.bool)
    for logit, k, box in expected:
        same = free & (instances.pred_classes == k) & ((instances.logits - logit).abs() < 1e-3)
        same &= (instances.pred_boxes.tensor - box).abs().amax(1) < 0.02
        assert same.any(), (logit, k, box)
        free[same.nonzero()[0]] = False


def mmdet():
    """MMDetection's detector with CLIM's and ovdet's settings: anchors by size, then ratio."""
    return OfficialC4(
        stem="backbone.", layer="backbone.layer{}.", res5="roi_head.shared_head.layer4.",
        rpn=("rpn_head.rpn_conv", "rpn_head.rpn_cls", "rpn_head.rpn_reg"),
        anchors=[(size * w, size * h) for size in SIZES for w, h in EXACT],
        offset=0.0, eps=1e-5, aligned=True, pixel_mean=(103.53, 116.28, 123.675),
    )  # fmt: skip


def ovrcnn():
    """maskrcnn-benchmark's detector: anchors of rounded sides, by ratio, then size; no eps; RoIAlign not aligned."""
    return OfficialC4(
        stem="backbone.body.stem.", layer="backbone.body.layer{}.",
        res5="roi_heads.box.feature_extractor.head.layer4.",
        rpn=("rpn.head.conv", "rpn.head.cls_logits", "rpn.head.bbox_pred"),
        anchors=[(size * w, size * h) for w, h in ROUNDED for size in SIZES],
        offset=0.5, eps=0.0, aligned=False, pixel_mean=(102.9801, 115.9465, 122.7717),
    )  # fmt: skip


def image(height=96, width=128):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(5)).byte()


@pytest.fixture(scope="session")
def official():
    """The detectors and functions above."""
    shared = (mmdet, ovrcnn, image, decoded, moved, clipped, detections, check_detections)
    return SimpleNamespace(tiny_resnet=TINY_RESNET, **{function.__name__: function for function in shared})
