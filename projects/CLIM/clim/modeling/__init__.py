"""Models, their parts and image encoders. Importing this package registers all of them by name."""

from . import centernet, fvlm, image_text, proposals, roi_heads  # noqa: F401
from .backbones import ImageEncoder, build_image_encoder
from .open_vocab_rcnn import OpenVocabRCNN
from .region_pooling import embed_regions

__all__ = ["ImageEncoder", "OpenVocabRCNN", "build_image_encoder", "embed_regions"]
