"""C4 RoI heads with a text classifier and class-agnostic boxes: official Detic's, by names and keys."""

import logging
from collections.abc import Iterator

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, Res5ROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import _log_classification_stats, fast_rcnn_inference
from detectron2.structures import Boxes
from fvcore.nn import c2_xavier_fill
from torch import Tensor, nn

from clim.losses import masked_class_bce

from .classifier import CosineClassifier
from .vocabulary import class_mask, classifier_type, is_configured, num_classes, vocabulary_embeddings

logger = logging.getLogger(__name__)


class OpenVocabOutputLayers(FastRCNNOutputLayers):
    """Cosine classifier, sigmoid scores, a two-layer class-agnostic box head (official Detic's shapes).

    Args:
        cls_score: the classifier.
        class_mask: (K,) zero where a class has no box annotations; such columns are left out of the loss.
        vocabulary_wins: True where the config names a vocabulary, which a checkpoint must not replace.
    """

    @configurable
    def __init__(
        self, input_shape, *, cls_score: CosineClassifier, class_mask: Tensor, vocabulary_wins: bool, **kwargs
    ):
        super().__init__(input_shape, **kwargs)
        width = input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
        self.cls_score = cls_score
        self.bbox_pred = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, 4))
        c2_xavier_fill(self.bbox_pred[0])
        nn.init.normal_(self.bbox_pred[2].weight, std=0.001)
        nn.init.zeros_(self.bbox_pred[2].bias)
        self.register_buffer("freq_weight", class_mask)
        self.vocabulary_wins = vocabulary_wins
        self.register_load_state_dict_pre_hook(_keep_vocabulary)

    @classmethod
    def from_config(cls, cfg, input_shape, *, text_encoder):
        ret = super().from_config(cfg, input_shape)
        ret.update(
            num_classes=num_classes(cfg),
            use_sigmoid_ce=True,
            cls_agnostic_bbox_reg=True,
            cls_score=classifier_type(cfg)(
                cfg,
                input_shape.channels,
                class_embeddings=vocabulary_embeddings(cfg, text_encoder),
                text_encoder=text_encoder,
            ),
            class_mask=class_mask(cfg),
            vocabulary_wins=is_configured(cfg),
        )
        return ret

    def losses(self, predictions, proposals):
        """As the parent's, with the classes that have no boxes masked."""
        scores, deltas = predictions
        gt_classes = torch.cat([p.gt_classes for p in proposals])
        _log_classification_stats(scores, gt_classes)
        proposal_boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        # A picture without ground truth has no gt_boxes; its proposals are all background and unused here.
        gt_boxes = torch.cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        )
        return {
            "loss_cls": self.class_loss(scores, gt_classes),
            "loss_box_reg": self.box_reg_loss(proposal_boxes, gt_boxes, deltas, gt_classes)
            * self.loss_weight.get("loss_box_reg", 1.0),
        }

    def class_loss(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Of logits (R, K + 1) and classes (R,) in [0, K], K being background."""
        mask = (self.freq_weight > 1e-4).to(logits.dtype)
        return masked_class_bce(logits[:, :-1], gt_classes, mask)

    def inference(self, predictions, proposals):
        """As the parent's, but ordered by logits: in float32 sigmoid is 1 from 17 on, and would tie.

        Instances carry ``scores`` (sigmoid, as official Detic) and ``logits``, by which evaluation ranks.
        """
        logits = predictions[0].split([len(p) for p in proposals])
        results, kept = fast_rcnn_inference(
            self.predict_boxes(predictions, proposals),
            logits,
            [p.image_size for p in proposals],
            torch.tensor(self.test_score_thresh).logit().item(),
            self.test_nms_thresh,
            self.test_topk_per_image,
        )
        for result in results:
            result.logits = result.scores
            result.scores = result.logits.sigmoid()
        return results, kept

    def set_vocabulary(self, class_embeddings: Tensor, class_mask: Tensor | None = None) -> None:
        """Detect other classes from now on: (K', D) text embeddings; (K',) mask as the constructor's, or ones."""
        self.cls_score.set_vocabulary(class_embeddings)
        self.num_classes = len(class_embeddings)
        mask = torch.ones(self.num_classes) if class_mask is None else class_mask
        self.freq_weight = mask.to(self.freq_weight)


def _keep_vocabulary(module: OpenVocabOutputLayers, state_dict, prefix, *_):
    """Loading must not silently replace the configured classes, nor fail on a file made for others."""
    key = prefix + "cls_score.zs_weight"
    mine = module.cls_score.zs_weight
    theirs = state_dict.get(key)
    if theirs is not None:
        if not module.vocabulary_wins and theirs.shape[0] == mine.shape[0]:
            if theirs.shape != mine.shape:
                module.set_vocabulary(theirs[:, :-1].T)
        elif theirs.shape != mine.shape or not torch.allclose(theirs.to(mine), mine, atol=1e-3):
            logger.warning(
                f"The checkpoint's class embeddings ({theirs.shape[1] - 1} classes) differ from the configured "
                f"vocabulary ({mine.shape[1] - 1} classes): the configured one is used."
            )
            state_dict[key] = mine.clone()
        else:
            state_dict[key] = mine.clone()
    freq = prefix + "freq_weight"
    if freq in state_dict and state_dict[freq].shape != module.freq_weight.shape:
        state_dict[freq] = module.freq_weight.clone()


@ROI_HEADS_REGISTRY.register()
class OpenVocabRes5ROIHeads(Res5ROIHeads):
    """Detectron2's C4 head with :class:`OpenVocabOutputLayers` and embeddings of any boxes."""

    @classmethod
    def from_config(cls, cfg, input_shape, *, text_encoder):
        ret = super().from_config(cfg, input_shape)
        # The parent has built a plain predictor; its width tells what the last stage yields.
        shape = ShapeSpec(channels=ret["box_predictor"].cls_score.in_features, height=1, width=1)
        ret["box_predictor"] = OpenVocabOutputLayers(cfg, shape, text_encoder=text_encoder)
        ret["num_classes"] = num_classes(cfg)
        return ret

    def embed_stages(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Iterator[Tensor]:
        """Un-normalised embeddings (ΣR, D) of boxes given picture by picture; a C4 head has one stage."""
        pooled = self._shared_roi_transform([features[name] for name in self.in_features], boxes)
        yield self.box_predictor.cls_score.project(pooled.mean(dim=[2, 3]))
