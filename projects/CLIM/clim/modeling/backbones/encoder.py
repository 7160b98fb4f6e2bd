"""The interface of image encoders of image-text models, and what they share.

Shapes: B images of H x W px, D embedding width, (h, w) locations of a map, R_i regions of image i, ΣR of all images.
"""

import logging
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from clim.errors import UserError

from ..region_pooling import pool_rois

logger = logging.getLogger(__name__)

IMAGE_ENCODER_REGISTRY = Registry("IMAGE_ENCODER")  # subclasses of ImageEncoder, built from the config alone


def build_image_encoder(cfg) -> "ImageEncoder":
    """The encoder of ``cfg.MODEL.IMAGE_ENCODER``; UserError for missing weights."""
    encoder = cfg.MODEL.IMAGE_ENCODER
    if encoder.CHECKPOINTING and encoder.NAME != "ClipViT":
        raise UserError(f"MODEL.IMAGE_ENCODER.CHECKPOINTING works with ClipViT, not with {encoder.NAME}: set it False.")
    return IMAGE_ENCODER_REGISTRY.get(encoder.NAME)(cfg)


class ImageEncoder(nn.Module):
    """Embeds images, regions and single locations in one space. Takes normalised pixels (B, 3, H, W).

    Embeddings are not L2-normalised, those of ``dense`` aside. Subclasses define what they can do:

    - ``embed_images(images)``: (B, D), as the image-text model embeds whole images;
    - ``features(images)``: {"dense": (B, C, h, w)}, the map that regions are pooled from;
    - ``dense(features)``: (B, D, h, w), one unit vector for each location;
    - ``pool_regions(features, rois)``: (R, D) of (R, 5), the encoder's last layers on RoIAligned features;
    - ``taps(images)``: maps of four depths, and ``features(images)["dense"]``, in one pass; ``tap_shapes``: their
      ShapeSpecs by the same names, finest first (F-VLM);
    - ``feature_map(images)``: the last map (B, C, h, w) before projection, and ``project(rows)``: the linear projection
      of vectors (R, C) of that map to (R, D) (OV-RCNN).
    """

    dim: int  # D
    native_size: int  # px, side of the square images that embed_images was trained on
    stride: int  # px between locations of features()
    regions = "v1"  # a region is RoIAligned from dense(); "v2": it is embedded by pool_regions() (clip_fvlm §1)
    has_unused_parameters = False  # whether a batch without whole images leaves weights that learn without gradient

    @property
    def dense_stride(self) -> int:
        """Px between locations of ``dense``."""
        return self.stride

    def embed_stages(self, features, boxes: list[Boxes], *, image_sizes=None, refine=None) -> Iterator[Tensor]:
        """Yields (ΣR, D) once, of :meth:`features`; boxes in input pixels, one ``Boxes`` an image."""
        rois = convert_boxes_to_pooler_format(boxes)
        if self.regions == "v2":
            yield self.pool_regions(features, rois)
        else:
            yield pool_rois(self.dense(features), rois, stride=self.dense_stride, size=1).flatten(1)

    def train(self, mode: bool = True) -> "ImageEncoder":
        """As nn.Module's, but modules whose weights are all frozen stay in evaluation mode."""
        super().train(mode)
        if mode:
            for module in self.modules():
                weights = list(module.parameters())
                if weights and not any(weight.requires_grad for weight in weights):
                    module.eval()
        return self


def clip_arguments(cfg) -> dict:
    """Arguments of every CLIP encoder: open_clip's ``visual`` half, and ``unlocked_blocks``."""
    from clim.text.clip import check_pixels, load_clip_visual  # open_clip takes seconds to import

    encoder = cfg.MODEL.IMAGE_ENCODER
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if not (encoder.PRETRAINED or cfg.MODEL.WEIGHTS):
        logger.warning("The image encoder %s starts with random weights.", encoder.ARCHITECTURE)
    check_pixels(encoder.ARCHITECTURE, encoder.PRETRAINED, mean=mean, std=std)
    visual = load_clip_visual(encoder.ARCHITECTURE, encoder.PRETRAINED)
    return {"visual": visual, "unlocked_blocks": encoder.UNLOCKED_BLOCKS}


def first_unlocked(unlocked: int, count: int) -> int:
    """Index of the first block that learns, if the last ``unlocked`` of ``count`` blocks learn."""
    if not 0 <= unlocked <= count:
        raise UserError(f"MODEL.IMAGE_ENCODER.UNLOCKED_BLOCKS is {unlocked}: set a number from 0 to {count}.")
    return count - unlocked


def resize_positions(positions: Tensor, grid: tuple[int, int], *, prefix: int = 1) -> Tensor:
    """Positional embeddings (P + g², C) → (P + h·w, C) for ``grid`` (h, w); the first P = ``prefix`` rows stay.

    Bicubic without antialiasing, as in the release (clip_fvlm §1); open_clip antialiases.
    """
    side = round((len(positions) - prefix) ** 0.5)
    if grid == (side, side):
        return positions
    square = positions[prefix:].T.reshape(1, -1, side, side)
    resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([positions[:prefix], resized[0].flatten(1).T])
