"""Image encoders and backbones, registered by name."""

from .clip_vit import ClipViT
from .efficientnet import EfficientNetC4, EfficientNetLite0
from .encoder import IMAGE_ENCODER_REGISTRY, GridEncoder, ImageEncoder, build_image_encoder
from .fpn import ClipFPN
from .resnet import ClipResNet, ResNetGrid

__all__ = [
    "IMAGE_ENCODER_REGISTRY",
    "ClipFPN",
    "ClipResNet",
    "ClipViT",
    "EfficientNetC4",
    "EfficientNetLite0",
    "GridEncoder",
    "ImageEncoder",
    "ResNetGrid",
    "build_image_encoder",
]
