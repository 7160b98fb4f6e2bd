"""Anchors as maskrcnn-benchmark makes them, for detectors that were trained with them."""

import torch
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor

BASE = 16  # px, side of the square that is reshaped and then enlarged: a C4 detector's stride


@ANCHOR_GENERATOR_REGISTRY.register()
class RoundedAnchorGenerator(DefaultAnchorGenerator):
    """Detectron2's, except that sides are whole pixels at 16 px and enlarged from there (ovrcnn §4).

    For ratios .5, 1, 2: 23 x 12, 16 x 16, 11 x 22 (width x height) times size / 16, where Detectron2's have
    22.6 x 11.3 and 11.3 x 22.6. With ANCHOR_GENERATOR.OFFSET .5 their centres are maskrcnn-benchmark's too.
    """

    def generate_cell_anchors(self, sizes, aspect_ratios) -> Tensor:
        """(len(sizes) · len(aspect_ratios), 4) boxes around (0, 0), ratios inside sizes."""
        anchors = []
        for size in sizes:
            for ratio in aspect_ratios:
                width = round((BASE**2 / ratio) ** 0.5)
                half = torch.tensor([width, round(width * ratio)]) * size / BASE / 2
                anchors.append(torch.cat([-half, half]))
        return torch.stack(anchors)
