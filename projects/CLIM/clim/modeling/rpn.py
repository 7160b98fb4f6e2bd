"""Detectron2's RPN, able to propose regions on pictures that have no boxes."""

import torch
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import ImageList, Instances
from torch import Tensor


@PROPOSAL_GENERATOR_REGISTRY.register()
class ProposingRPN(RPN):
    """RPN whose :meth:`propose` works in training without ground truth (Detectron2's forward asserts it)."""

    @torch.no_grad()
    def propose(self, images: ImageList, features: dict[str, Tensor]) -> list[Instances]:
        """Proposals of each picture, best first: the training or test numbers by the module's mode."""
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
