"""What every image encoder of an image-text model offers, and what they share: region pooling and freezing.

Shapes: B pictures of H x W pixels, D embedding width, (h, w) cells of a map, R_i regions of picture i,
ΣR regions of all pictures, picture by picture.
"""

from collections.abc import Hashable, Iterator, Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torchvision.ops import roi_align

from clim.errors import registered

IMAGE_ENCODER_REGISTRY = Registry("IMAGE_ENCODER")
IMAGE_ENCODER_REGISTRY.__doc__ = """
Image encoders by name (``MODEL.IMAGE_ENCODER.NAME``): ``from_config(cfg)`` of an :class:`ImageEncoder`.
"""


def build_image_encoder(cfg) -> "ImageEncoder":
    """The encoder that ``cfg.MODEL.IMAGE_ENCODER`` describes. UserError for an unknown name or missing weights."""
    key = "MODEL.IMAGE_ENCODER.NAME"
    return registered(IMAGE_ENCODER_REGISTRY, cfg.MODEL.IMAGE_ENCODER.NAME, key=key)(cfg)


class ImageEncoder(nn.Module):
    """Embeds pictures, regions of pictures and single locations in one space.

    Takes normalised pixels (B, 3, H, W). What is frozen stays in evaluation mode, and what comes before
    the first learning layer runs without a graph.

    Attributes:
        dim: D.
        native_size: px, side of the square pictures that :meth:`embed_images` was trained on.
        stride: px per cell of the map that boxes are pooled from.
        dense_stride: px per cell of :meth:`dense`.
        idle_without_singles: whether some weights that learn are met by :meth:`embed_images` alone.
    """

    dim: int
    native_size: int
    stride: int
    idle_without_singles = False

    @property
    def dense_stride(self) -> int:
        return self.stride

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, D) from the encoder's ordinary path, not L2-normalised."""
        raise NotImplementedError

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """{"dense": (B, C, h, w)}, the map that regions are pooled from."""
        raise NotImplementedError

    def embed_stages(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Iterator[Tensor]:
        """Yields (ΣR, D) once, not L2-normalised; boxes in input pixels, one ``Boxes`` a picture."""
        raise NotImplementedError

    def dense(self, features: dict[str, Tensor]) -> Tensor:
        """(B, D, h, w), a unit vector for each location."""
        raise NotImplementedError

    @property
    def tap_shapes(self) -> dict[Hashable, ShapeSpec]:
        """Channels and stride of the maps of :meth:`taps`, finest first."""
        raise NotImplementedError

    def taps(self, images: Tensor) -> tuple[dict[Hashable, Tensor], Tensor]:
        """Maps from several depths, for a pyramid, and ``features(images)["dense"]``, in one pass."""
        raise NotImplementedError

    def embed_masks(self, features: dict[str, Tensor], masks: Sequence[Tensor]) -> Tensor:
        """(ΣR, D): mean over the unit vectors of :meth:`dense` inside each mask, not L2-normalised.

        Args:
            masks: (R_i, H, W) bool a picture, in input pixels; may end before the padding does.

        A mask holds the cells that it covers by half or, if there are none, those it covers most. An empty
        mask gives zeros.
        """
        dense = self.dense(features)
        means = [
            _mean_inside(cells, picture.to(cells.device), self.dense_stride)
            for cells, picture in zip(dense, masks, strict=True)
        ]
        return torch.cat(means) if means else dense.new_zeros(0, self.dim)

    def train(self, mode: bool = True) -> "ImageEncoder":
        """As nn.Module's, except that modules with nothing to learn stay in evaluation mode."""
        super().train(mode)
        if mode:
            for module in self.modules():
                weights = list(module.parameters())
                if weights and not any(weight.requires_grad for weight in weights):
                    module.eval()
        return self


def as_rois(boxes: list[Boxes]) -> Tensor:
    """(ΣR, 5): the index of the picture before each of its boxes."""
    return convert_boxes_to_pooler_format(boxes)


def pool_rois(features: Tensor, rois: Tensor, *, stride: int, size: int) -> Tensor:
    """(R, C, size, size): RoIAlign of ``rois`` (R, 5), in pixels, on ``features`` (B, C, h, w).

    Half-pixel correct, with as many samples as a bin has cells (clip_fvlm §1).
    """
    pooled = roi_align(  # pixels beyond 2048 are whole even numbers in half precision
        features.float(), rois.float(), size, spatial_scale=1 / stride, sampling_ratio=-1, aligned=True
    )
    return pooled.to(features)


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positional embeddings (1 + g², C) for a grid of other size: (1 + h·w, C), the first row untouched.

    Bicubic without antialiasing, as in the release (clip_fvlm §1); open_clip antialiases.
    """
    side = round((len(positions) - 1) ** 0.5)
    if grid == (side, side):
        return positions
    square = positions[1:].T.reshape(1, -1, side, side)
    resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], resized[0].flatten(1).T])


def _mean_inside(cells: Tensor, masks: Tensor, stride: int) -> Tensor:
    h, w = cells.shape[1:]
    # Right of the masks and below them; negative where they are larger.
    missing = (0, w * stride - masks.shape[2], 0, h * stride - masks.shape[1])
    cover = F.avg_pool2d(F.pad(masks.float(), missing)[:, None], stride)[:, 0]  # (R, h, w)
    inside = (cover >= cover.amax((1, 2), keepdim=True).clamp(max=0.5)) & (cover > 0)
    weights = inside.flatten(1).to(cells.dtype)
    return weights @ cells.flatten(1).T / weights.sum(1, keepdim=True).clamp(min=1)
