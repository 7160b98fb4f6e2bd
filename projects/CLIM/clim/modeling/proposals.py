"""Proposals: Detectron2's RPN for images without boxes, and the anchors of maskrcnn-benchmark."""

import torch
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import ImageList, Instances
from torch import Tensor

BASE = 16  # px, side of the square that is reshaped and then enlarged: a C4 detector's stride


@PROPOSAL_GENERATOR_REGISTRY.register()
class ProposingRPN(RPN):
    """RPN whose :meth:`propose` works in training without ground truth, which Detectron2's forward demands."""

    @torch.no_grad()
    def propose(self, images: ImageList, features: dict[str, Tensor]) -> list[Instances]:
        """Proposals of each image, best first; how many there are depends on the module's mode, as in RPN."""
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        logits, deltas = self.rpn_head(maps)
        return self.predict_proposals(
            anchors,
            # (N, A, H, W) → (N, H·W·A) and (N, A·4, H, W) → (N, H·W·A, 4), the order of the anchors
            [x.permute(0, 2, 3, 1).flatten(1) for x in logits],
            [x.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in deltas],
            images.image_sizes,
        )


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
