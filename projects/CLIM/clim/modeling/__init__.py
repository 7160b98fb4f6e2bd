"""Meta-architecture, proposal generator, RoI heads, classifier, backbones, image encoders: registered by name."""

from .classifier import CosineClassifier
from .clip_resnet import ClipResNet
from .clip_vit import ClipViT
from .efficientnet import EfficientNetC4, EfficientNetC4ROIHeads
from .efficientnet_encoder import EfficientNetLite0
from .fvlm import FVLM
from .fvlm_backbone import ClipFPN
from .fvlm_heads import FVLMROIHeads
from .grid_encoder import GridEncoder, ResNetGrid
from .grid_text import GridTextModel
from .image_encoders import IMAGE_ENCODER_REGISTRY, ImageEncoder, build_image_encoder
from .image_text import ImageTextModel
from .meta_arch import OpenVocabRCNN
from .output_layers import BOX_PREDICTOR_REGISTRY, TextHeads, TextOutputLayers, build_box_predictor
from .ovrcnn import OVRCNNOutputLayers
from .region_pooling import embed_regions
from .roi_heads import OpenVocabOutputLayers, OpenVocabRes5ROIHeads
from .rounded_anchors import RoundedAnchorGenerator
from .rpn import ProposingRPN

__all__ = [
    "BOX_PREDICTOR_REGISTRY",
    "IMAGE_ENCODER_REGISTRY",
    "ClipFPN",
    "ClipResNet",
    "ClipViT",
    "CosineClassifier",
    "EfficientNetC4",
    "EfficientNetC4ROIHeads",
    "EfficientNetLite0",
    "FVLM",
    "FVLMROIHeads",
    "GridEncoder",
    "GridTextModel",
    "ImageEncoder",
    "ImageTextModel",
    "OVRCNNOutputLayers",
    "OpenVocabOutputLayers",
    "OpenVocabRCNN",
    "OpenVocabRes5ROIHeads",
    "ProposingRPN",
    "ResNetGrid",
    "RoundedAnchorGenerator",
    "TextHeads",
    "TextOutputLayers",
    "build_box_predictor",
    "build_image_encoder",
    "embed_regions",
]
