"""Detectron2's RPN for images without boxes, and the anchors of maskrcnn-benchmark."""

import torch
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

BASE = 16  # px, side of the square that becomes each anchor, first reshaped and then enlarged; a C4 map's stride


@PROPOSAL_GENERATOR_REGISTRY.register()
class ProposingRPN(RPN):
    """Detectron2's RPN with :meth:`propose`, which works in training without ground truth, and MODEL.RPN.NORM."""

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        if cfg.MODEL.RPN.NORM:
            normalise_convolutions(ret["head"].conv, cfg.MODEL.RPN.NORM)
        return ret

    @torch.no_grad()
    def propose(self, images: ImageList, features: dict[str, Tensor]) -> list[Instances]:
        """Proposals of each image, best first; as in RPN, their number depends on the module's mode."""
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        logits, deltas = self.rpn_head(maps)
        # (N, A, H, W) → (N, H·W·A) and (N, A·4, H, W) → (N, H·W·A, 4), the order of the anchors
        logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
        deltas = [x.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in deltas]
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes)


def normalise_convolutions(tower: nn.Module, norm: str) -> None:
    """Give every convolution of ``tower`` a norm, which all levels share, in place of its bias."""
    for conv in tower.modules():
        if isinstance(conv, Conv2d):
            conv.bias, conv.norm = None, get_norm(norm, conv.out_channels)


@ANCHOR_GENERATOR_REGISTRY.register()
class RoundedAnchorGenerator(DefaultAnchorGenerator):
    """Detectron2's anchors, but with sides that are rounded at 16 px and then enlarged (ovrcnn §4).

    Ratios .5, 1, 2 have 23 x 12, 16 x 16, 11 x 22 (width x height) times size / 16; Detectron2 has 22.6 x 11.3 and
    11.3 x 22.6. With ANCHOR_GENERATOR.OFFSET .5 the centres equal maskrcnn-benchmark's, too.
    """

    def generate_cell_anchors(self, sizes, aspect_ratios) -> Tensor:
        """(len(sizes) · len(aspect_ratios), 4) boxes around (0, 0); the ratio varies fastest."""
        anchors = []
        for size in sizes:
            for ratio in aspect_ratios:
                width = round((BASE**2 / ratio) ** 0.5)
                half = torch.tensor([width, round(width * ratio)]) * size / BASE / 2
                anchors.append(torch.cat([-half, half]))
        return torch.stack(anchors)
