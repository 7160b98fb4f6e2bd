"""NAS-FPN (arXiv 1904.07392) on a frozen image encoder, as F-VLM on OV-LVIS has it (clip_fvlm §4).

Levels are named by their stride, 2^i px for p{i}, as Detectron2 names an FPN's: p2 to p6. The paper and MMDetection
call the same maps p3 to p7. Shapes: N images, C channels of every level, (h, w) locations of a map.
"""

import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from fvcore.nn import c2_xavier_fill
from torch import Tensor, nn

from .fpn import ClipFPN, build_on_encoder

LEVELS = ("p2", "p3", "p4", "p5", "p6")  # strides 4 to 64; p6 is made of p5
CELLS = ("p3_first", "p3_second", "p2", "p3", "p4", "p6", "p5")  # of a stack, in the order of their computation


class NASFPN(Backbone):
    """``stacks`` times the seven cells of :class:`Stack`, on five maps of C = ``channels``.

    ``bottom_up`` gives four maps of strides 4 to 32, finest first. Each goes through a 1 x 1 convolution and a norm.
    The fifth map is the last of these after one more convolution and norm, halved by max-pooling.
    """

    size_divisibility = 64  # the coarsest stride, so that every level halves the one before

    def __init__(self, bottom_up: Backbone, *, channels: int, stacks: int, norm: str):
        super().__init__()
        self.bottom_up, self.channels = bottom_up, channels
        inputs = [shape.channels for shape in bottom_up.output_shape().values()]
        self.laterals = nn.ModuleList(_normed(c, channels, 1, norm=norm, bias=False) for c in inputs)
        self.extra = _normed(channels, channels, 1, norm=norm, bias=False)
        self.stacks = nn.ModuleList(Stack(channels, norm=norm) for _ in range(stacks))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """What ``bottom_up`` takes → {"p2": (N, C, H / 4, W / 4), …, "p6": (N, C, H / 64, W / 64)}."""
        maps = self.bottom_up(images).values()
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        levels.append(F.max_pool2d(self.extra(levels[-1]), 2))
        for stack in self.stacks:
            levels = stack(*levels)
        return dict(zip(LEVELS, levels, strict=True))

    def output_shape(self):
        return {name: ShapeSpec(channels=self.channels, stride=4 << i) for i, name in enumerate(LEVELS)}


class Stack(nn.ModuleDict):
    """One of NAS-FPN's repeated parts: maps of five levels → maps of the same sizes.

    Every cell merges two maps by a sum or by :func:`attend_and_add`, then applies ReLU, a 3 x 3 convolution with bias
    and a norm. The inner merges of p4 and p6 have no convolution of their own.
    """

    def __init__(self, channels: int, *, norm: str):
        super().__init__({name: _normed(channels, channels, 3, norm=norm, bias=True) for name in CELLS})

    def forward(self, p2: Tensor, p3: Tensor, p4: Tensor, p5: Tensor, p6: Tensor) -> list[Tensor]:
        def cell(name: str, merged: Tensor) -> Tensor:
            return self[name](F.relu(merged, inplace=True))

        sizes = {name: x.shape[2:] for name, x in zip(LEVELS, (p2, p3, p4, p5, p6), strict=True)}
        first = cell("p3_first", attend_and_add(p5, p3, sizes["p3"]))
        second = cell("p3_second", first + p3)
        p2 = cell("p2", resize(second, sizes["p2"]) + p2)
        p3 = cell("p3", resize(p2, sizes["p3"]) + second)
        p4 = cell("p4", p4 + attend_and_add(p3, p2, sizes["p4"]))
        p6 = cell("p6", p6 + attend_and_add(p4, second, sizes["p6"]))
        p5 = cell("p5", attend_and_add(p6, p4, sizes["p5"]))
        return [p2, p3, p4, p5, p6]


def attend_and_add(a: Tensor, b: Tensor, size: tuple[int, int]) -> Tensor:
    """b + σ(mean of b over its locations) · a, with both maps (N, C, …) brought to ``size`` (h, w) first."""
    a, b = resize(a, size), resize(b, size)
    return b + b.mean((2, 3), keepdim=True).sigmoid() * a


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, h, w) → (N, C, *size): the nearest locations of a smaller map, the maxima of a larger one.

    The windows of the maximum do not overlap. Zeros around the map fill it up to a multiple of ``size``; of an odd
    number of rows or columns, one more is on the right or below.
    """
    if x.shape[2:] == size:
        return x
    if x.shape[2:] < size:
        return F.interpolate(x, size=size, mode="nearest")
    height, width = (-(-have // want) for have, want in zip(x.shape[2:], size, strict=True))
    rows, columns = height * size[0] - x.shape[2], width * size[1] - x.shape[3]
    padded = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return F.max_pool2d(padded, (height, width))


def _normed(inputs: int, outputs: int, size: int, *, norm: str, bias: bool) -> Conv2d:
    conv = Conv2d(inputs, outputs, size, padding=size // 2, bias=bias, norm=get_norm(norm, outputs))
    c2_xavier_fill(conv)
    return conv


@BACKBONE_REGISTRY.register()
def build_clip_nas_fpn_backbone(cfg, input_shape) -> ClipFPN:
    """As ``build_clip_fpn_backbone``, with NAS-FPN of MODEL.FPN.STACKS stacks in place of the FPN."""
    fpn = cfg.MODEL.FPN
    options = {"channels": fpn.OUT_CHANNELS, "stacks": fpn.STACKS, "norm": fpn.NORM}
    return build_on_encoder(cfg, lambda levels: NASFPN(levels, **options))
