"""From boxes and masks to region embeddings: :func:`embed_regions` for methods, RoIAlign and masks for encoders.

Shapes: B images of H x W pixels, C channels and (h, w) locations of a map, R regions.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes
from torch import Tensor
from torchvision.ops import roi_align

from clim.methods import Regions


def embed_regions(roi_heads, features: dict[str, Tensor], regions: dict[str, Regions]) -> Iterator[dict[str, Tensor]]:
    """Embeddings (R, D) of every role's regions, not L2-normalised; one dict for each stage of the head.

    ``roi_heads``, which may be an image encoder, embeds all roles together from its ``features`` (B, C, h, w).
    """
    boxes = torch.cat([r.boxes for r in regions.values()])
    canvas = torch.cat([r.canvas for r in regions.values()])
    num_canvases = next(iter(features.values())).shape[0]
    order = torch.argsort(canvas, stable=True)  # heads take boxes canvas by canvas
    back = torch.argsort(order)
    per_canvas = [Boxes(boxes[canvas == i]) for i in range(num_canvases)]
    for stage in roi_heads.embed_stages(features, per_canvas):
        parts = stage[back].split([len(r) for r in regions.values()])
        yield dict(zip(regions, parts, strict=True))


def pool_rois(features: Tensor, rois: Tensor, *, stride: int, size: int) -> Tensor:
    """(R, C, size, size): RoIAlign of ``rois`` (R, 5), index of the image and box in px, on ``features`` (B, C, h, w).

    It has the half-pixel offset, and as many samples as a bin has locations (clip_fvlm §1).
    """
    pooled = roi_align(  # in float32: half precision rounds pixels beyond 2048 to even numbers
        features.float(), rois.float(), size, spatial_scale=1 / stride, sampling_ratio=-1, aligned=True
    )
    return pooled.to(features)


def pool_masks(features: Tensor, masks: Tensor, *, stride: int) -> Tensor:
    """(R, C): the mean of one image's ``features`` (C, h, w) inside each of ``masks`` (R, H, W).

    A location counts if the mask covers half of it; if there is none, the locations with the largest cover count.
    An empty mask gives zeros.
    """
    h, w = features.shape[1:]
    # Padding on the right and below; negative where the masks are larger.
    missing = (0, w * stride - masks.shape[2], 0, h * stride - masks.shape[1])
    cover = F.avg_pool2d(F.pad(masks.float(), missing)[:, None], stride)[:, 0]  # (R, h, w)
    inside = (cover >= cover.amax((1, 2), keepdim=True).clamp(max=0.5)) & (cover > 0)
    weights = inside.flatten(1).to(features.dtype)
    return weights @ features.flatten(1).T / weights.sum(1, keepdim=True).clamp(min=1)
