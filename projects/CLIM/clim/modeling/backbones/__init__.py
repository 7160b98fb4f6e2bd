"""Image encoders and backbones, registered by name."""

from .clip_vit import ClipViT
from .efficientnet import EfficientNetC4, EfficientNetLite0
from .encoder import IMAGE_ENCODER_REGISTRY, ImageEncoder, LocationEncoder, build_image_encoder
from .fpn import ClipFPN
from .resnet import ClipResNet, ResNetGrid

__all__ = [
    "IMAGE_ENCODER_REGISTRY",
    "ClipFPN",
    "ClipResNet",
    "ClipViT",
    "EfficientNetC4",
    "EfficientNetLite0",
    "ImageEncoder",
    "LocationEncoder",
    "ResNetGrid",
    "build_image_encoder",
]
