"""Models, their parts and image encoders. Importing this package registers all of them by name."""

from . import cascade, centernet, fvlm, image_text, proposals, roi_heads  # noqa: F401
from .backbones import ImageEncoder, build_image_encoder
from .box_predictors import BOX_PREDICTOR_REGISTRY, TextOutputLayers, build_box_predictor
from .open_vocab_rcnn import OpenVocabRCNN
from .region_pooling import embed_regions

__all__ = [
    "BOX_PREDICTOR_REGISTRY",
    "ImageEncoder",
    "OpenVocabRCNN",
    "TextOutputLayers",
    "build_box_predictor",
    "build_image_encoder",
    "embed_regions",
]
