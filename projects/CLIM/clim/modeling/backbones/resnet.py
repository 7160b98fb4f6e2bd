"""ResNets as image encoders: CLIP's, with its attention pool (clip_fvlm §1), and OV-RCNN's (ovrcnn §1.1, §1.3).

Shapes: B images, C channels and (h, w) locations of the last layer, D embedding width.
"""

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ResNet, build_resnet_backbone
from torch import Tensor, nn

from clim.errors import UserError

from ..region_pooling import pool_rois
from .encoder import IMAGE_ENCODER_REGISTRY, ImageEncoder, clip_arguments, first_unlocked, resize_positions

LAYERS = ("layer1", "layer2", "layer3", "layer4")
ROIS_AT_ONCE = 256  # a 14 x 14 RoI of RN50x64 takes 13 MB, with its tokens, keys and values


@IMAGE_ENCODER_REGISTRY.register()
class ClipResNet(ImageEncoder):
    """Regions "v2": RoIAlign of layer4 to the attention pool's grid, then the pool; "v1": RoIAlign of the dense map.

    Batch norm, stem to layer3, and the pool's value and output projections are always frozen.
    """

    stride = 32

    @configurable
    def __init__(self, *, visual: nn.Module, unlocked_blocks: int, regions: str):
        """``unlocked_blocks``: 0, or 1 for layer4 and the pool's query, key and positional embedding."""
        super().__init__()
        if not hasattr(visual, "attnpool"):
            remedy = "choose one such as RN50x64-quickgelu, or another MODEL.IMAGE_ENCODER.NAME"
            raise UserError(f"MODEL.IMAGE_ENCODER.ARCHITECTURE does not name a CLIP ResNet: {remedy}.")
        self.visual, self.regions, self.dim = visual, regions, visual.output_dim
        pool = visual.attnpool
        self.grid = round((len(pool.positional_embedding) - 1) ** 0.5)
        self.native_size = self.grid * self.stride
        channels = [getattr(visual, name)[-1].bn3.num_features for name in LAYERS]
        self.tap_shapes = {name: ShapeSpec(channels=channels[i], stride=4 << i) for i, name in enumerate(LAYERS)}
        learns = first_unlocked(unlocked_blocks, 1) == 0
        self.has_unused_parameters = learns and regions == "v1"  # the pool's queries and keys
        visual.requires_grad_(False)
        for module in (visual.layer4, pool.q_proj, pool.k_proj):
            module.requires_grad_(learns)
        pool.positional_embedding.requires_grad_(learns)
        for module in visual.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False).eval()

    @classmethod
    def from_config(cls, cfg):
        return clip_arguments(cfg) | {"regions": cfg.MODEL.IMAGE_ENCODER.REGIONS}

    def embed_images(self, images: Tensor) -> Tensor:
        return attention_pool(self.visual.attnpool, self.taps(images)[1])

    def features(self, images: Tensor) -> dict[str, Tensor]:
        return {"dense": self.taps(images)[1]}

    def taps(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """{"layer1": …, "layer4": …} at strides 4 to 32, and layer4 again."""
        result = self.visual.forward_intermediates(images, indices=len(LAYERS), intermediates_only=True)
        maps = dict(zip(LAYERS, result["image_intermediates"], strict=True))
        return maps, maps["layer4"]

    def dense(self, features: dict[str, Tensor]) -> Tensor:
        # The pool without attention: the projected value of each location, without the mean token.
        pool, layer4 = self.visual.attnpool, features["dense"]
        grid = layer4.shape[2:]
        positions = resize_positions(pool.positional_embedding, tuple(grid))[1:]
        values = pool.c_proj(pool.v_proj(layer4.flatten(2).transpose(1, 2) + positions))  # (B, h·w, D)
        return F.normalize(values.transpose(1, 2).unflatten(2, grid).float(), dim=1)

    def pool_regions(self, features: dict[str, Tensor], rois: Tensor) -> Tensor:
        layer4, parts = features["dense"], rois.split(ROIS_AT_ONCE)
        pooled = (pool_rois(layer4, part, stride=self.stride, size=self.grid) for part in parts)
        return torch.cat([attention_pool(self.visual.attnpool, maps) for maps in pooled])


def attention_pool(pool: nn.Module, maps: Tensor) -> Tensor:
    """(B, D): open_clip's AttentionPool2d ``pool`` on maps (B, C, h, w) of any size; only the mean token is a query."""
    positions = resize_positions(pool.positional_embedding, tuple(maps.shape[2:]))
    locations = maps.flatten(2).transpose(1, 2)
    tokens = torch.cat([locations.mean(1, keepdim=True), locations], dim=1) + positions
    parts = pool.q_proj(tokens[:, :1]), pool.k_proj(tokens), pool.v_proj(tokens)
    heads = [x.unflatten(2, (pool.num_heads, -1)).transpose(1, 2) for x in parts]  # (B, heads, N, -1)
    return pool.c_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(1))


@IMAGE_ENCODER_REGISTRY.register()
class ResNetGrid(ImageEncoder):
    """Detectron2's ResNet (MODEL.RESNETS), and ``emb_pred``, which projects locations; no images, no boxes."""

    stride = 32

    @configurable
    def __init__(self, *, backbone: ResNet, dim: int):
        super().__init__()
        self.backbone, self.dim = backbone, dim
        self.emb_pred = nn.Linear(backbone.output_shape()["res5"].channels, dim)

    @classmethod
    def from_config(cls, cfg):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
        return {"backbone": build_resnet_backbone(cfg, ShapeSpec(channels=3)), "dim": cfg.MODEL.TEXT.DIM}

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, C, H / 32, W / 32), the output of res5."""
        return self.backbone(images)["res5"]

    def project(self, rows: Tensor) -> Tensor:
        return self.emb_pred(rows)
