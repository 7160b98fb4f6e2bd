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


def embed_regions(
    roi_heads, features: dict[str, Tensor], regions: dict[str, Regions], *, image_sizes=None, refine=None
) -> Iterator[tuple[dict[str, Regions], dict[str, Tensor]]]:
    """For each stage of the head: every role's regions, and their embeddings (R, D), not L2-normalised.

    ``roi_heads``, which may be an image encoder, embeds all roles together from its ``features`` (B, C, h, w). Between
    two stages of a cascade it regresses the boxes and clips them to ``image_sizes`` (height, width). Then ``refine``
    makes the next stage's regions of this stage's and each role's regressed boxes (R, 4), as ``Method.refine``.
    """
    num_canvases = next(iter(features.values())).shape[0]
    boxes, order = _by_canvas(regions, num_canvases)

    def by_role(rows: Tensor) -> dict[str, Tensor]:
        parts = rows[order.argsort()].split([len(r) for r in regions.values()])
        return dict(zip(regions, parts, strict=True))

    def next_boxes(refined: list[Boxes]) -> list[Boxes]:
        nonlocal regions, order
        regions = refine(regions, by_role(Boxes.cat(refined).tensor))
        boxes, order = _by_canvas(regions, num_canvases)
        return boxes

    for rows in roi_heads.embed_stages(features, boxes, image_sizes=image_sizes, refine=next_boxes):
        yield regions, by_role(rows)


def _by_canvas(regions: dict[str, Regions], num_canvases: int) -> tuple[list[Boxes], Tensor]:
    """The boxes of all roles canvas by canvas, as heads take them, and the rows (ΣR,) that they come from."""
    boxes = torch.cat([r.boxes for r in regions.values()])
    canvas = torch.cat([r.canvas for r in regions.values()])
    order = torch.argsort(canvas, stable=True)
    counts = (canvas[:, None] == torch.arange(num_canvases, device=canvas.device)).sum(0)
    return [Boxes(part) for part in boxes[order].split(counts.tolist())], order


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

    Locations count that the mask covers by half; if there is none, those covered most. An empty mask gives zeros.
    """
    h, w = features.shape[1:]
    # Padding on the right and below; negative where the masks are larger.
    missing = (0, w * stride - masks.shape[2], 0, h * stride - masks.shape[1])
    cover = F.avg_pool2d(F.pad(masks.float(), missing)[:, None], stride)[:, 0]  # (R, h, w)
    inside = (cover >= cover.amax((1, 2), keepdim=True).clamp(max=0.5)) & (cover > 0)
    weights = inside.flatten(1).to(features.dtype)
    return weights @ features.flatten(1).T / weights.sum(1, keepdim=True).clamp(min=1)
