"""Meta-architecture, proposal generator, RoI heads, classifier, backbones, image encoders: registered by name."""

from .backbones import (
    IMAGE_ENCODER_REGISTRY,
    ClipFPN,
    ClipResNet,
    ClipViT,
    EfficientNetC4,
    EfficientNetLite0,
    ImageEncoder,
    LocationEncoder,
    ResNetGrid,
    build_image_encoder,
)
from .classifier import CosineClassifier
from .fvlm import FVLM, FVLMROIHeads
from .grid_text import GridTextModel
from .image_text import ImageTextModel
from .meta_arch import OpenVocabRCNN
from .output_layers import BOX_PREDICTOR_REGISTRY, TextHeads, TextOutputLayers, build_box_predictor
from .ovrcnn import OVRCNNOutputLayers
from .proposals import ProposingRPN, RoundedAnchorGenerator
from .region_pooling import embed_regions
from .roi_heads import EfficientNetC4ROIHeads, OpenVocabOutputLayers, OpenVocabRes5ROIHeads

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
    "GridTextModel",
    "ImageEncoder",
    "ImageTextModel",
    "LocationEncoder",
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
