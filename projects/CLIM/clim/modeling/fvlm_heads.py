"""F-VLM's RoI heads: Detectron2's conv-FC head, classes by text with a learned background, fused scores at test.

Shape legend: R regions, K classes, D width of text and region embeddings.
"""

import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads
from fvcore.nn import c2_xavier_fill
from torch import Tensor, nn
from torch.nn import functional as F

from clim.losses import cosine_logits, masked_softmax_ce

from .classifier import CosineClassifier
from .fvlm_scores import fused_log_scores, log_odds
from .output_layers import TextHeads
from .roi_heads import OpenVocabOutputLayers
from .vocabulary import needs_cosines, num_classes


class BackgroundClassifier(CosineClassifier):
    """temperature · cos(linear(relu(hidden(x))), [text; background]); background and temperature are learned.

    Args:
        in_features: width of region features.
        class_embeddings: (K, D).
        temperature: where the learned scale of the cosine starts.
    """

    def __init__(self, in_features: int, *, class_embeddings: Tensor, temperature: float):
        super().__init__(
            in_features, class_embeddings=class_embeddings, temperature=temperature, learned_background=True
        )
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))
        self.hidden = nn.Linear(in_features, in_features)
        c2_xavier_fill(self.hidden)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def project(self, x: Tensor) -> Tensor:
        """Region features (R, in_features) → un-normalised embeddings (R, D)."""
        return self.linear(F.relu(self.hidden(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (R, K + 1)."""
        return cosine_logits(self.project(x), self.class_embeddings, temperature=self.temperature)


class FVLMOutputLayers(OpenVocabOutputLayers):
    """Softmax over all classes and background; at test fused with the score of the frozen encoder.

    Args:
        alpha, beta: weights of the encoder's score, see :func:`clim.modeling.fvlm_scores.fused_log_scores`.
        vlm_temperature: scale of the encoder's cosines.
        background_weight: of background regions in the classification loss.
    """

    @configurable
    def __init__(
        self,
        input_shape,
        *,
        alpha: float,
        beta: float,
        vlm_temperature: float,
        background_weight: float,
        **kwargs,
    ):
        super().__init__(input_shape, **kwargs)
        self.alpha, self.beta, self.vlm_temperature = alpha, beta, vlm_temperature
        self.background_weight = background_weight

    @classmethod
    def from_config(cls, cfg, input_shape, *, text_encoder):
        needs_cosines(cfg, "F-VLM")
        ret = super().from_config(cfg, input_shape, text_encoder=text_encoder)
        fvlm = cfg.MODEL.FVLM
        ret.update(
            cls_score=BackgroundClassifier(
                input_shape.channels,
                class_embeddings=ret["cls_score"].class_embeddings[:-1],
                temperature=fvlm.DETECTOR_TEMPERATURE,
            ),
            alpha=fvlm.ALPHA,
            beta=fvlm.BETA,
            vlm_temperature=fvlm.TEMPERATURE,
            background_weight=fvlm.BACKGROUND_WEIGHT,
        )
        return ret

    def class_loss(self, logits, gt_classes):
        return masked_softmax_ce(
            logits, gt_classes, self.freq_weight > 1e-4, background_weight=self.background_weight
        )

    def inference(self, predictions, proposals):
        """As the parent's, of the fused scores; ``proposals`` carry ``vlm_embeddings`` (R, D)."""
        logits, deltas = predictions
        regions = torch.cat([p.vlm_embeddings for p in proposals])
        vlm = cosine_logits(regions, self.cls_score.class_embeddings, temperature=self.vlm_temperature)
        fused = fused_log_scores(logits, vlm, self.freq_weight > 1e-4, alpha=self.alpha, beta=self.beta)
        return super().inference((log_odds(fused).float(), deltas), proposals)


@ROI_HEADS_REGISTRY.register()
class FVLMROIHeads(TextHeads, StandardROIHeads):
    """Detectron2's heads with :class:`FVLMOutputLayers`. At test proposals need ``vlm_embeddings`` (R, D)."""

    @classmethod
    def from_config(cls, cfg, input_shape, *, text_encoder):
        ret = super().from_config(cfg, input_shape)
        # The parent has built a plain predictor; masks stay its own business.
        shape = ret["box_head"].output_shape
        ret["box_predictor"] = FVLMOutputLayers(cfg, shape, text_encoder=text_encoder)
        ret["num_classes"] = num_classes(cfg)
        return ret
