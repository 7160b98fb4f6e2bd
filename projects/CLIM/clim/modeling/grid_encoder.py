"""Image encoders that are read cell by cell, and OV-RCNN's: a ResNet up to C5 with a projection (ovrcnn §1.1, §1.3)."""

from typing import Protocol, runtime_checkable

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ResNet, build_resnet_backbone
from torch import Tensor, nn

from .image_encoders import IMAGE_ENCODER_REGISTRY, ImageEncoder


@runtime_checkable
class GridEncoder(Protocol):
    """What a model needs that grounds words in cells."""

    def cells(self, images: Tensor) -> Tensor:
        """(B, C, h, w), the last map of normalised pictures (B, 3, H, W), not projected."""

    def project(self, rows: Tensor) -> Tensor:
        """(R, D) of cells (R, C), linear."""


@IMAGE_ENCODER_REGISTRY.register()
class ResNetGrid(ImageEncoder):
    """Detectron2's ResNet and ``emb_pred``; neither pictures as a whole nor boxes are embedded.

    The ResNet is MODEL.RESNETS' and MODEL.BACKBONE.FREEZE_AT's; its weights come from MODEL.WEIGHTS, such as
    detectron2://ImageNetPretrained/MSRA/R-50.pkl.
    """

    stride = 32

    @configurable
    def __init__(self, *, backbone: ResNet, dim: int):
        super().__init__()
        self.backbone, self.dim = backbone, dim
        self.last = list(backbone.output_shape())[-1]
        self.emb_pred = nn.Linear(backbone.output_shape()[self.last].channels, dim)

    @classmethod
    def from_config(cls, cfg):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
        return {"backbone": build_resnet_backbone(cfg, ShapeSpec(channels=3)), "dim": cfg.MODEL.TEXT.DIM}

    def cells(self, images: Tensor) -> Tensor:
        return self.backbone(images)[self.last]

    def project(self, rows: Tensor) -> Tensor:
        return self.emb_pred(rows)
