"""OV-RCNN's detector (OVR-CNN, arXiv 2011.10678): dot products of a frozen projection with word embeddings.

Shape legend: R regions, K classes, D width of word embeddings; column K of (R, K + 1) is the background.
"""

import logging

from detectron2.config import configurable
from torch import Tensor, nn
from torch.nn import functional as F

from clim.errors import UserError
from clim.losses import masked_softmax_ce

from .fvlm import log_odds
from .output_layers import BOX_PREDICTOR_REGISTRY, TextOutputLayers, keep_vocabulary
from .vocabulary import class_mask, competing_classes, is_configured, needs_cosines, num_classes

logger = logging.getLogger(__name__)
_MEANINGLESS = (
    "emb_pred would stay random, as it is frozen, and the detector's classes mean nothing; start from OV-RCNN's "
    "pre-training."
)


@BOX_PREDICTOR_REGISTRY.register()
class OVRCNNOutputLayers(TextOutputLayers):
    """Softmax over emb_pred(x) · [classes; 0], un-normalised and without a scale; one layer for class-agnostic boxes.

    ``emb_pred`` is what pre-training has learned (its v2l projection) and stays frozen (ovrcnn §2). Classes
    without boxes take no part in the softmax of training: the official code loads none but the base classes then.

    Args:
        class_embeddings: (K, D) of any length. Stored with a last row of zeros, the background.
        class_mask: (K,) zero where a class has no box annotations.
        competes: (K,) bool, the classes in the softmax at test; other vocabularies compete as a whole.
        background_weight: of background regions in the classification loss.
        vocabulary_wins: True where the config names a vocabulary, which a checkpoint must not replace.
    """

    vocabulary_key, vocabulary_axis = "class_embeddings", 0

    @configurable
    def __init__(
        self,
        input_shape,
        *,
        class_embeddings: Tensor,
        class_mask: Tensor,
        competes: Tensor,
        background_weight: float,
        vocabulary_wins: bool,
        **kwargs,
    ):
        super().__init__(input_shape, **kwargs)
        del self.cls_score  # the parent's classifier of fixed classes
        width = input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
        self.emb_pred = nn.Linear(width, class_embeddings.shape[1]).requires_grad_(False)
        self.register_buffer("class_embeddings", _with_background(class_embeddings))
        # What the config alone decides is not part of a checkpoint.
        self.register_buffer("freq_weight", class_mask, persistent=False)
        self.register_buffer("competes", competes, persistent=False)
        self.background_weight = background_weight
        self.vocabulary_wins = vocabulary_wins
        self.register_load_state_dict_pre_hook(keep_vocabulary)
        self.register_load_state_dict_pre_hook(_miss_projection)

    @classmethod
    def from_config(cls, cfg, input_shape, *, text_encoder):
        needs_cosines(cfg, "OV-RCNN")
        if not cfg.MODEL.WEIGHTS:
            logger.warning("MODEL.WEIGHTS is empty: %s", _MEANINGLESS)
        return super().from_config(cfg, input_shape) | {
            "num_classes": num_classes(cfg),
            "cls_agnostic_bbox_reg": True,
            "class_embeddings": cls.read_vocabulary(cfg, text_encoder),
            "class_mask": class_mask(cfg),
            "competes": competing_classes(cfg),
            "background_weight": cfg.MODEL.OVRCNN.BACKGROUND_WEIGHT,
            "vocabulary_wins": is_configured(cfg),
        }

    @classmethod
    def text_features(cls, cfg):
        return "words"

    def set_class_embeddings(self, embeddings: Tensor) -> None:
        self.class_embeddings = _with_background(embeddings).to(self.class_embeddings)
        self.competes = self.competes.new_ones(len(embeddings))

    def project(self, x: Tensor) -> Tensor:
        return self.emb_pred(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1), the last column 0, and deltas (R, 4) of region features (R, in_features)."""
        return self.project(x) @ self.class_embeddings.T, self.bbox_pred(x)

    def class_loss(self, logits, gt_classes):
        return masked_softmax_ce(logits, gt_classes, self.freq_weight > 1e-4, background_weight=self.background_weight)

    def inference(self, predictions, proposals):
        """As the parent's; ``scores`` are the softmax, ``logits`` its log-odds, which do not tie near 1."""
        logits, deltas = predictions
        competing = logits[:, F.pad(self.competes, (0, 1), value=True)].double()
        odds = log_odds(competing.log_softmax(1)).float()
        results, kept = super().inference((odds, deltas), proposals)
        classes = self.competes.nonzero()[:, 0]
        for result in results:
            result.pred_classes = classes[result.pred_classes]
        return results, kept


def _with_background(class_embeddings: Tensor) -> Tensor:
    return F.pad(class_embeddings.float(), (0, 0, 0, 1))


def _miss_projection(module: OVRCNNOutputLayers, state_dict, prefix, *_):
    if f"{prefix}emb_pred.weight" not in state_dict:
        raise UserError(
            "MODEL.WEIGHTS: the file lacks the projection into the space of words, or has one of another width than "
            f"MODEL.TEXT.DIM: {_MEANINGLESS}"
        )
