"""Meta-architecture, proposal generator, RoI heads, classifier and backbones, registered with Detectron2."""

from .classifier import CosineClassifier
from .efficientnet import EfficientNetC4, EfficientNetC4ROIHeads
from .meta_arch import OpenVocabRCNN
from .region_pooling import embed_regions
from .roi_heads import OpenVocabOutputLayers, OpenVocabRes5ROIHeads
from .rpn import ProposingRPN

__all__ = [
    "CosineClassifier",
    "EfficientNetC4",
    "EfficientNetC4ROIHeads",
    "OpenVocabOutputLayers",
    "OpenVocabRCNN",
    "OpenVocabRes5ROIHeads",
    "ProposingRPN",
    "embed_regions",
]
