"""Image encoders and backbones. Importing this package registers all of them by name."""

from . import clip_vit, efficientnet, fpn, nas_fpn, resnet  # noqa: F401
from .encoder import ImageEncoder, build_image_encoder

__all__ = ["ImageEncoder", "build_image_encoder"]
