"""The backbone of OV-LVIS: a ResNet-50 of ImageNet-21k under an FPN p3 to p7 (detic §3.1). It reads RGB."""

from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor
from torchvision.models import resnet50

from .fpn import build_p3_p7_fpn

IMAGENET_21K = 11221  # classes of ImageNet-21K-P
SHAPES = {f"layer{i}": ShapeSpec(channels=64 * 2**i, stride=2**i) for i in (3, 4, 5)}  # official Detic's names


@BACKBONE_REGISTRY.register()
def build_p67_timm_fpn_backbone(cfg, input_shape):
    """:class:`TorchvisionResNet50` under the FPN of MODEL.FPN, as in official Detic; MODEL.BACKBONE is not read."""
    return build_p3_p7_fpn(TorchvisionResNet50(), cfg.MODEL.FPN)


class TorchvisionResNet50(Backbone):
    """torchvision's network ``base`` with frozen batch norm; a block's stride is in its 3 x 3 convolution.

    Outputs "layer3" to "layer5" are torchvision's layer2 to layer4. ``base.fc`` is in files of weights, but not used.
    """

    def __init__(self):
        super().__init__()
        self.base = FrozenBatchNorm2d.convert_frozen_batchnorm(resnet50(num_classes=IMAGENET_21K))
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
