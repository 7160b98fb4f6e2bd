"""NAS-FPN against its definition, cell by cell in plain loops; its size; the shipped backbone."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import Backbone
from torch.nn import functional as F

from clim.modeling.backbones.fpn import VLM
from clim.modeling.backbones.nas_fpn import LEVELS, NASFPN, Stack, attend_and_add, resize

C, INPUTS = 4, (3, 5, 6, 7)


class Maps(Backbone):
    """Gives its input back, a dict of maps with these channels."""

    def __init__(self, channels=INPUTS):
        super().__init__()
        self.shapes = {f"c{i}": ShapeSpec(channels=c, stride=2**i) for i, c in enumerate(channels, start=2)}

    def forward(self, maps):
        return maps

    def output_shape(self):
        return self.shapes


def slow_resize(x, size):
    """Location by location: the nearest one of a smaller map, the largest of a window of a larger one."""
    (h, w), (height, width) = x.shape[2:], size
    if (h, w) == (height, width):
        return x
    out = torch.zeros(*x.shape[:2], height, width)
    rows, columns = math.ceil(h / height), math.ceil(w / width)
    top, left = (rows * height - h) // 2, (columns * width - w) // 2
    for i in range(height):
        for j in range(width):
            if (h, w) < (height, width):
                out[:, :, i, j] = x[:, :, i * h // height, j * w // width]
                continue
            window = [
                x[:, :, r - top, c - left] if 0 <= r - top < h and 0 <= c - left < w else torch.zeros(x.shape[:2])
                for r in range(i * rows, (i + 1) * rows) for c in range(j * columns, (j + 1) * columns)
            ]  # fmt: skip
            out[:, :, i, j] = torch.stack(window).amax(0)
    return out


def slow_norm(x, norm):
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    return x * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]


def slow_stack(p3, p4, p5, p6, p7, cells):
    """The paper's names and the published order; ``cells``: {merged levels: (convolution's weight, bias, norm)}."""

    def gp(a, b, size):
        a, b = slow_resize(a, size.shape[2:]), slow_resize(b, size.shape[2:])
        gate = torch.stack([torch.stack([1 / (1 + torch.exp(-m.mean())) for m in image]) for image in b])
        return b + gate[:, :, None, None] * a

    def add(a, b):
        return slow_resize(a, b.shape[2:]) + b

    def end(name, x):
        weight, bias, norm = cells[name]
        return slow_norm(F.conv2d(x.clamp(min=0), weight, bias, padding=1), norm)

    p4a = end("gp_64_4", gp(p6, p4, p4))
    p4b = end("sum_44_4", add(p4a, p4))
    p3 = end("sum_43_3", add(p4b, p3))
    p4 = end("sum_34_4", add(p3, p4b))
    p5 = end("sum_55_5", add(gp(p4, p3, p5), p5))
    p7 = end("sum_77_7", add(gp(p5, p4b, p7), p7))
    p6 = end("gp_75_6", gp(p7, p5, p6))
    return p3, p4, p5, p6, p7


PUBLISHED = ("gp_64_4", "sum_44_4", "sum_43_3", "sum_34_4", "sum_55_5", "sum_77_7", "gp_75_6")


@torch.no_grad()
def shaken(module):
    """All weights and statistics drawn, so that each of them matters."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(std=0.3)
            if name.endswith(("norm.weight", "running_var")):
                tensor.abs_().add_(0.5)
    return module.eval()


@pytest.mark.parametrize("height, width", [(16, 16), (24, 40)])  # the second has odd maps at the coarse levels
@torch.no_grad()
def test_two_stacks_are_what_the_definition_says(height, width):
    torch.manual_seed(0)
    neck = shaken(NASFPN(Maps(), channels=C, stacks=2, norm="BN"))
    maps = [torch.randn(2, c, height >> i, width >> i) for i, c in enumerate(INPUTS)]

    levels = [slow_norm(F.conv2d(x, conv.weight), conv.norm) for x, conv in zip(maps, neck.laterals, strict=True)]
    last = slow_norm(F.conv2d(levels[-1], neck.extra.weight), neck.extra.norm)
    levels.append(last.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)))
    for stack in neck.stacks:
        convs = [stack[name] for name in ("p3_first", "p3_second", "p2", "p3", "p4", "p6", "p5")]
        cells = dict(zip(PUBLISHED, ((conv.weight, conv.bias, conv.norm) for conv in convs), strict=True))
        levels = slow_stack(*levels, cells)

    found = neck(dict(zip(neck.bottom_up.shapes, maps, strict=True)))
    assert list(found) == list(LEVELS)
    for ours, slow in zip(found.values(), levels, strict=True):
        torch.testing.assert_close(ours, slow, rtol=1e-4, atol=1e-5)
    assert min(x.min().item() for x in found.values()) < 0  # no activation after the last norm


@pytest.mark.parametrize(
    "have, want",
    [((4, 6), (4, 6)), ((3, 5), (6, 10)), ((2, 3), (5, 7)), ((8, 12), (4, 4)), ((7, 9), (3, 2)), ((5, 5), (2, 2))],
)
def test_sizes_of_maps(have, want):
    x = torch.randn(2, 3, *have, generator=torch.Generator().manual_seed(1)) - 2  # padding wins where all are negative
    assert torch.equal(resize(x, want), slow_resize(x, want))


def test_the_gate_is_the_mean_of_the_second_map_at_the_size_of_the_result():
    a, b = torch.ones(1, 1, 1, 1), torch.tensor([[[[0.0, 4], [0, 0]]]])
    assert attend_and_add(a, b, (1, 1)).item() == pytest.approx(4 + 1 / (1 + math.exp(-4)))  # the maximum, not 1
    gate = 1 / (1 + math.exp(-1))
    assert attend_and_add(a, b, (2, 2)).flatten().tolist() == pytest.approx([gate, 4 + gate, gate, gate])


def test_the_size_of_the_published_one():
    """29.8 M parameters: 768 channels in, 256 out, 7 stacks; laterals without bias, cells with bias."""
    neck = NASFPN(Maps([768] * 4), channels=256, stacks=7, norm="SyncBN")
    cell, lateral = 256 * 256 * 9 + 256 + 512, 768 * 256 + 512
    expected = 49 * cell + 4 * lateral + 256 * 256 + 512
    assert sum(p.numel() for p in neck.parameters()) == expected == 29_793_536
    assert isinstance(neck.stacks[6], Stack) and len(neck.stacks) == 7


def test_the_backbone_of_the_shipped_config(load_cfg, tiny_json):
    torch.manual_seed(0)
    cfg = load_cfg(
        "lvis/FVLM_ViTB16_CLIP_LVIS.yaml", "MODEL.IMAGE_ENCODER.PRETRAINED", "", "MODEL.FPN.OUT_CHANNELS", 8,
        "MODEL.IMAGE_ENCODER.ARCHITECTURE", tiny_json("vit", vision={"patch_size": 16, "layers": 12}),
        "MODEL.FPN.NORM", "BN", "MODEL.FPN.STACKS", 2,
    )  # fmt: skip
    model = build_backbone(cfg)
    shapes = {name: (s.channels, s.stride) for name, s in model.output_shape().items()}
    assert shapes == {f"p{i}": (8, 2**i) for i in range(2, 7)} and model.size_divisibility == 64
    assert len(model.pyramid.stacks) == 2
    features = model.train()(torch.randn(2, 3, 128, 192))
    assert {n: tuple(x.shape) for n, x in features.items()} == {
        name: (2, 8, 128 // stride, 192 // stride) for name, (_, stride) in shapes.items()
    }
    sum(x.sum() for x in features.values()).backward()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {name for name, p in model.named_parameters() if p.grad is not None}
    assert not any(name.startswith("encoder.") for name in learning)
    assert model.eval()(torch.randn(1, 3, 64, 64))[VLM].shape == (1, 12, 4, 4)
