"""Meta-architecture, proposal generator, RoI heads, classifier, backbones, image encoders: registered by name."""

from .classifier import CosineClassifier
from .clip_resnet import ClipResNet
from .clip_vit import ClipViT
from .efficientnet import EfficientNetC4, EfficientNetC4ROIHeads
from .efficientnet_encoder import EfficientNetLite0
from .image_encoders import IMAGE_ENCODER_REGISTRY, ImageEncoder, build_image_encoder
from .meta_arch import OpenVocabRCNN
from .region_pooling import embed_regions
from .roi_heads import OpenVocabOutputLayers, OpenVocabRes5ROIHeads
from .rpn import ProposingRPN

__all__ = [
    "IMAGE_ENCODER_REGISTRY",
    "ClipResNet",
    "ClipViT",
    "CosineClassifier",
    "EfficientNetC4",
    "EfficientNetC4ROIHeads",
    "EfficientNetLite0",
    "ImageEncoder",
    "OpenVocabOutputLayers",
    "OpenVocabRCNN",
    "OpenVocabRes5ROIHeads",
    "ProposingRPN",
    "build_image_encoder",
    "embed_regions",
]
