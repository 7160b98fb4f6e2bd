"""The pooling hook: from chosen regions to embeddings, in the head's own path."""

from collections.abc import Iterator

import torch
from detectron2.structures import Boxes
from torch import Tensor

from clim.methods import Regions


def embed_regions(
    roi_heads, features: dict[str, Tensor], regions: dict[str, Regions]
) -> Iterator[dict[str, Tensor]]:
    """Embeddings (R, D) of every role's regions, one dict for each stage of the head.

    All roles go through the head together, as un-normalised projections.
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
