"""Detectron2's FPN: p3 to p7 for CenterNet, and F-VLM's on a frozen image encoder, whose taps get strides 4 to 32.

Shapes: N images, C channels, H, W pixels, R regions, D width of region embeddings.
"""

import math
from collections.abc import Callable

import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet50

from .encoder import build_image_encoder

LEVELS = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}  # name: stride in px of the pyramid's inputs
VLM = "vlm"  # the encoder's dense map; its own region embeddings are pooled from it, at test only
UPSCALING = ("deconvolution", "interpolation")
SHAPES = {f"layer{i}": ShapeSpec(channels=64 * 2**i, stride=2**i) for i in (3, 4, 5)}  # official Detic's names


def build_p3_p7_fpn(bottom_up: Backbone, fpn) -> FPN:
    """Levels p3 to p5 from the three outputs of ``bottom_up``; p6 from p5, p7 from ReLU(p6). ``fpn``: cfg.MODEL.FPN."""
    top = LastLevelP6P7(fpn.OUT_CHANNELS, fpn.OUT_CHANNELS, in_feature="p5")
    names, options = list(bottom_up.output_shape()), {"norm": fpn.NORM, "fuse_type": fpn.FUSE_TYPE}
    return FPN(bottom_up, names, fpn.OUT_CHANNELS, top_block=top, **options)


@BACKBONE_REGISTRY.register()
def build_p67_timm_fpn_backbone(cfg, input_shape):
    """:class:`TorchvisionResNet50` under the FPN of MODEL.FPN, as in official Detic. MODEL.BACKBONE is not read."""
    return build_p3_p7_fpn(TorchvisionResNet50(), cfg.MODEL.FPN)


class TorchvisionResNet50(Backbone):
    """OV-LVIS's ResNet-50 (detic §3.1), torchvision's, with frozen batch norm; strides are in 3 x 3 convolutions.

    Outputs "layer3" to "layer5" are torchvision's layer2 to layer4. ``base.fc`` is in files of weights, but not used.
    """

    def __init__(self):
        super().__init__()
        self.base = FrozenBatchNorm2d.convert_frozen_batchnorm(resnet50(num_classes=11221))  # of ImageNet-21K-P
        self.base.fc.requires_grad_(False)
        self.register_load_state_dict_pre_hook(_keep_unused)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        net, maps = self.base, {}
        x = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))
        for name, layer in zip(SHAPES, (net.layer2, net.layer3, net.layer4), strict=True):
            x = maps[name] = layer(x)
        return maps

    def output_shape(self):
        return SHAPES


def _keep_unused(module: TorchvisionResNet50, state_dict, prefix, *_):
    """Keep ``fc`` and the counts of batch norm, which nothing uses, where a file lacks them."""
    for name, value in module.state_dict(prefix=prefix).items():
        if name.endswith("num_batches_tracked") or name.startswith(f"{prefix}base.fc."):
            state_dict.setdefault(name, value)


def rescaling(channels: int, factor: float, *, upscaling: str, norm: str) -> nn.Module:
    """(N, C, h, w) → (N, C, factor · h, factor · w) for a factor of 1/2, 1, 2, 4 or 8.

    It enlarges by 2 x 2 deconvolutions, a norm and a GELU between two of them (CLIM release), or by bilinear
    interpolation (CLIM paper), and halves by 2 x 2 max-pooling.
    """
    if factor == 1:
        return nn.Identity()
    if factor == 0.5:
        return nn.MaxPool2d(2)
    if upscaling == "interpolation":
        return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False)
    first, *others = [nn.ConvTranspose2d(channels, channels, 2, stride=2) for _ in range(3 if factor == 8 else 2)]
    if factor == 2:
        return first
    layers = [first]
    for layer in others:  # "" is no norm; the layers keep their numbers
        layers += [get_norm(norm, channels) or nn.Identity(), nn.GELU(), layer]
    return nn.Sequential(*layers)


class TapLevels(Backbone):
    """The bottom-up network of an FPN: rescales four taps, finest first, of ``shapes`` to the strides of LEVELS."""

    def __init__(self, shapes: dict[str, ShapeSpec], *, upscaling: str, norm: str):
        super().__init__()
        self.taps = dict(zip(LEVELS, shapes, strict=True))
        self.rescale, self.shapes = nn.ModuleDict(), {}
        for (level, stride), shape in zip(LEVELS.items(), shapes.values(), strict=True):
            factor = 2.0 ** round(math.log2(shape.stride / stride))  # 14 px count as 16
            self.rescale[level] = rescaling(shape.channels, factor, upscaling=upscaling, norm=norm)
            self.shapes[level] = ShapeSpec(channels=shape.channels, stride=stride)

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """{tap: map} → {level: (N, C, H / stride, W / stride)}."""
        return {level: self.rescale[level](maps[tap]) for level, tap in self.taps.items()}

    def output_shape(self):
        return self.shapes


class ClipFPN(Backbone):
    """A frozen ``encoder`` with ``taps``, always in evaluation mode, and a ``pyramid``: {tap: map} → {level: map}.

    Images for patches of 14 px are made 14/16 as large, bilinearly, so that locations are 16 px of the input apart.
    """

    def __init__(self, encoder: nn.Module, pyramid: Backbone):
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.pyramid = pyramid
        self.scale = encoder.stride / 2 ** round(math.log2(encoder.stride))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised pixels → {"p2": …, "p6": …}, outside training also the map VLM."""
        with torch.no_grad():
            if self.scale != 1:
                images = F.interpolate(images, scale_factor=self.scale, mode="bilinear", align_corners=False)
            maps, vlm = self.encoder.taps(images)
        features = self.pyramid(maps)
        return features if self.training else features | {VLM: vlm}

    def embed_regions(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """The encoder's embeddings (ΣR, D) of each image's boxes in input pixels; not normalised."""
        scaled = [Boxes(of_image.tensor * self.scale) for of_image in boxes]
        (embeddings,) = self.encoder.embed_stages({"dense": features[VLM]}, scaled)
        return embeddings

    @property
    def size_divisibility(self) -> int:
        return self.pyramid.size_divisibility

    def output_shape(self):
        return self.pyramid.output_shape()


def build_on_encoder(cfg, pyramid: Callable[[TapLevels], Backbone]) -> ClipFPN:
    """The frozen encoder of MODEL.IMAGE_ENCODER, its taps at strides 4 to 32, and a ``pyramid`` on these levels."""
    encoder = build_image_encoder(cfg)
    levels = TapLevels(encoder.tap_shapes, upscaling=cfg.MODEL.FVLM.UPSCALING, norm=cfg.MODEL.FPN.NORM)
    return ClipFPN(encoder, pyramid(levels))


@BACKBONE_REGISTRY.register()
def build_clip_fpn_backbone(cfg, input_shape) -> ClipFPN:
    """The encoder of MODEL.IMAGE_ENCODER under the FPN of MODEL.FPN and MODEL.FVLM.UPSCALING."""
    fpn = cfg.MODEL.FPN
    options = {"norm": fpn.NORM, "top_block": LastLevelMaxPool(), "fuse_type": fpn.FUSE_TYPE}
    return build_on_encoder(cfg, lambda levels: FPN(levels, list(LEVELS), fpn.OUT_CHANNELS, **options))
