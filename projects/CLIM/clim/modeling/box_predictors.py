"""Box predictors that compare regions with text embeddings of classes: Detic's by cosines, OV-RCNN's by dot products.

Shapes: R regions, K classes, D width of text embeddings; column K of (R, K + 1) is the background.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from detectron2.utils.registry import Registry
from fvcore.nn import c2_xavier_fill
from torch import Tensor, nn
from torch.nn import functional as F

from clim.errors import UserError
from clim.losses import federated_class_bce, masked_class_bce, masked_softmax_ce

from .classifier import CLASSIFIERS, CosineClassifier
from .shortlist import detect_best
from .vocabulary import class_mask, competing_classes, is_configured, needs_cosines, num_classes, vocabulary_embeddings

logger = logging.getLogger(__name__)

BOX_PREDICTOR_REGISTRY = Registry("BOX_PREDICTOR")  # subclasses of TextOutputLayers


def configured_embeddings(cfg, text_encoder) -> Tensor:
    """(K, D) text embeddings of the configured classes, for the configured classifier."""
    return vocabulary_embeddings(cfg, text_encoder, features=CLASSIFIERS[cfg.MODEL.OPEN_VOCAB.CLASSIFIER].text_features)


class TextOutputLayers(FastRCNNOutputLayers):
    """Detectron2's predictor with text classes: users can exchange them, and some have no boxes.

    ``class_mask`` (K,), the buffer ``freq_weight``, is zero where a class has no box annotations. A checkpoint does
    not replace the vocabulary if ``vocabulary_wins``, because the config gives it; ``warns``: say so where the file has
    another one. A list of names is the user's own, but a file of embeddings may be a default. Subclasses define
    ``project(x)``: region features (…, in_features) → un-normalised embeddings (…, D);
    ``class_loss(logits, gt_classes)``: the loss of logits (R, K + 1) and classes (R,) in [0, K], K the background;
    ``set_class_embeddings(embeddings)``: replace the buffer of class embeddings by one of (K', D) others.
    """

    vocabulary_key: str  # name of the buffer of class embeddings and the background
    vocabulary_axis: int  # its axis of classes; the other one is D
    text_features: str  # what class names become: a key of clim.text.CLASS_FEATURES
    stores_mask = True  # whether checkpoints hold freq_weight

    def __init__(self, input_shape, *, class_mask: Tensor, vocabulary_wins: bool, warns: bool = True, **kwargs):
        super().__init__(input_shape, **kwargs | {"use_sigmoid_ce": True})
        self.register_buffer("freq_weight", class_mask, persistent=self.stores_mask)
        self.register_buffer("synonyms", None)  # of set_vocabulary
        self.vocabulary_wins, self.warns = vocabulary_wins, warns
        self.register_load_state_dict_pre_hook(_keep_vocabulary)

    @classmethod
    def from_config(cls, cfg, input_shape, *, text_encoder):
        vocabulary = {"num_classes": num_classes(cfg), "class_mask": class_mask(cfg)}
        vocabulary |= {"vocabulary_wins": is_configured(cfg), "warns": not cfg.MODEL.VOCABULARY.NAMES}
        return super().from_config(cfg, input_shape) | vocabulary

    def before_load(self, weights: dict[str, Tensor], *, prefix: str) -> None:
        """Replace the file's classes by the configured ones before their shapes are compared."""
        if self.vocabulary_wins:
            _keep_vocabulary(self, weights, prefix)

    def set_vocabulary(self, embeddings: Tensor, class_mask: Tensor | None = None, synonyms: Tensor | None = None):
        """Detect other classes: new buffers with (K', D) text embeddings and (K',) ``freq_weight``, by default ones.

        ``synonyms`` (C, S) are indices of embeddings: the score of class c of C is the highest of its S rows'.
        """
        self.set_class_embeddings(embeddings)
        self.synonyms = None if synonyms is None else synonyms.to(self.freq_weight.device)
        self.num_classes = len(embeddings)
        mask = torch.ones(self.num_classes) if class_mask is None else class_mask
        self.freq_weight = mask.to(self.freq_weight)

    def sigmoid_cross_entropy_loss(self, pred_class_logits, gt_classes):
        """The classification loss of the parent's ``losses``, where ``use_sigmoid_ce``."""
        return self.class_loss(pred_class_logits, gt_classes)

    def inference(self, predictions, proposals):
        """As the parent's, by :meth:`detect`."""
        logits = predictions[0].split([len(p) for p in proposals])
        return self.detect(self.predict_boxes(predictions, proposals), logits, [p.image_size for p in proposals])

    def detect(self, boxes: Sequence[Tensor], logits: Sequence[Tensor], image_sizes) -> tuple[list[Instances], list]:
        """Detectron2's ``fast_rcnn_inference``, ordered by logits: in float32 all logits above 17 have the sigmoid 1.

        Instances have ``logits`` and ``scores``, their sigmoids (as official Detic) in float64, which differ up to 36.
        """
        if self.synonyms is not None:
            logits = [torch.cat([of[:, self.synonyms].amax(dim=2), of[:, -1:]], dim=1) for of in logits]
        threshold = torch.tensor(self.test_score_thresh).logit().item()
        limits = threshold, self.test_nms_thresh, self.test_topk_per_image
        results, kept = detect_best(boxes, logits, image_sizes, *limits)
        for result in results:
            result.logits = result.scores
            result.scores = result.logits.double().sigmoid()
        return results, kept


@BOX_PREDICTOR_REGISTRY.register()
class OpenVocabOutputLayers(TextOutputLayers):
    """Cosine classifier, sigmoid scores, class-agnostic box head of two layers (official Detic's shapes).

    Federated loss: of ``fed_loss_num_classes`` drawn classes alone (detic §3.1). ``freq_weight`` holds square roots of
    image counts, and classes are drawn in proportion to the counts to the power of ``fed_loss_power``.
    """

    vocabulary_key, vocabulary_axis = "cls_score.zs_weight", 1

    @configurable
    def __init__(self, input_shape, *, cls_score: CosineClassifier, use_fed_loss=False, fed_loss_power=0.5, **kwargs):
        super().__init__(input_shape, **kwargs)
        self.use_fed_loss, self.fed_loss_power = use_fed_loss, fed_loss_power
        width, box_values = self.bbox_pred.in_features, self.bbox_pred.out_features
        self.cls_score, self.text_features = cls_score, cls_score.text_features
        self.bbox_pred = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, box_values))
        c2_xavier_fill(self.bbox_pred[0])
        nn.init.normal_(self.bbox_pred[2].weight, std=0.001)
        nn.init.zeros_(self.bbox_pred[2].bias)

    @classmethod
    def from_config(cls, cfg, input_shape, *, text_encoder, class_embeddings: Tensor | None = None):
        if class_embeddings is None:
            class_embeddings = configured_embeddings(cfg, text_encoder)
        given = {"class_embeddings": class_embeddings, "text_encoder": text_encoder}
        return super().from_config(cfg, input_shape, text_encoder=text_encoder) | {
            "cls_score": CLASSIFIERS[cfg.MODEL.OPEN_VOCAB.CLASSIFIER](cfg, input_shape.channels, **given),
            "fed_loss_power": cfg.MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER,
        }

    def class_loss(self, logits, gt_classes):
        if not self.cls_score.learned_background:  # a learned one counts as one more class
            logits = logits[:, :-1]
        if self.use_fed_loss:
            return federated_class_bce(logits, gt_classes, self.draw_classes(gt_classes))
        mask = (self.freq_weight > 1e-4).to(logits.dtype)
        return masked_class_bce(logits, gt_classes, F.pad(mask, (0, logits.shape[1] - len(mask)), value=1.0))

    def draw_classes(self, gt_classes: Tensor) -> Tensor:
        """Classes of the federated loss, in [0, K]: those of the regions, and random ones up to the wanted number."""
        weights = self.freq_weight ** (2 * self.fed_loss_power)
        candidates = torch.cat([gt_classes, weights.nonzero()[:, 0]]).unique()  # fewer than wanted: all of them
        number = min(self.fed_loss_num_classes, len(candidates))
        return self.get_fed_loss_classes(gt_classes, number, self.num_classes, weights)

    def project(self, x):
        return self.cls_score.project(x)

    def set_class_embeddings(self, embeddings):
        if len(embeddings) != self.num_classes and self.bbox_pred[2].out_features > 4:
            reason = "it has a box for each of its own (MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG False)"
            raise UserError(f"This detector cannot go from {self.num_classes} classes to {len(embeddings)}: {reason}.")
        self.cls_score.set_vocabulary(embeddings)


_MEANINGLESS = "emb_pred is frozen, so it would stay random, and classes would mean nothing: start from pre-training."


@BOX_PREDICTOR_REGISTRY.register()
class OVRCNNOutputLayers(TextOutputLayers):
    """Softmax over emb_pred(x) · [classes; 0], un-normalised and without a scale; one layer for class-agnostic boxes.

    ``emb_pred`` comes from pre-training (its v2l projection) and stays frozen (ovrcnn §2; OVR-CNN, arXiv 2011.10678).
    Classes without boxes are outside the softmax in training; at test it has those of ``competes`` (K,) bool, or all
    of a new vocabulary. ``class_embeddings`` (K, D) have rows of any length; a last row of zeros is the background.
    """

    vocabulary_key, vocabulary_axis, text_features = "class_embeddings", 0, "words"
    stores_mask = False  # it depends on the config alone

    @configurable
    def __init__(self, input_shape, *, class_embeddings: Tensor, competes: Tensor, background_weight: float, **kwargs):
        super().__init__(input_shape, **kwargs)
        del self.cls_score  # the parent's classifier of fixed classes
        self.emb_pred = nn.Linear(self.bbox_pred.in_features, class_embeddings.shape[1]).requires_grad_(False)
        self.register_buffer("class_embeddings", F.pad(class_embeddings.float(), (0, 0, 0, 1)))
        self.register_buffer("competes", competes, persistent=False)
        self.background_weight = background_weight
        self.register_load_state_dict_pre_hook(_require_projection)

    @classmethod
    def from_config(cls, cfg, input_shape, *, text_encoder):
        needs_cosines(cfg, "OV-RCNN")
        if not cfg.MODEL.WEIGHTS:
            logger.warning("MODEL.WEIGHTS is empty: %s", _MEANINGLESS)
        return super().from_config(cfg, input_shape, text_encoder=text_encoder) | {
            "cls_agnostic_bbox_reg": True,
            "class_embeddings": vocabulary_embeddings(cfg, text_encoder, features="words"),
            "competes": competing_classes(cfg),
            "background_weight": cfg.MODEL.OVRCNN.BACKGROUND_WEIGHT,
        }

    def set_class_embeddings(self, embeddings):
        self.class_embeddings = F.pad(embeddings.float(), (0, 0, 0, 1)).to(self.class_embeddings)
        self.competes = self.competes.new_ones(len(embeddings))

    def project(self, x):
        return self.emb_pred(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Region features (R, in_features) → logits (R, K + 1), the last column 0, and deltas (R, 4)."""
        return self.project(x) @ self.class_embeddings.T, self.bbox_pred(x)

    def class_loss(self, logits, gt_classes):
        return masked_softmax_ce(logits, gt_classes, self.freq_weight > 1e-4, background_weight=self.background_weight)

    def inference(self, predictions, proposals):
        """As the parent's; ``scores`` are the softmax, ``logits`` its log-odds, which do not round to one value."""
        logits, deltas = predictions
        competing = logits[:, F.pad(self.competes, (0, 1), value=True)]
        odds = by_rows(lambda rows: log_odds(rows.double().log_softmax(1)).float(), competing)
        results, kept = super().inference((odds, deltas), proposals)
        classes = self.competes.nonzero()[:, 0]
        for result in results:
            result.pred_classes = classes[result.pred_classes]
        return results, kept


def by_rows(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function`` of ``tensors`` (R, …), a few rows at a time, so that its double-precision tensors stay small."""
    rows = max(2**20 // max(tensors[0].shape[1], 1), 1)
    return torch.cat([function(*parts) for parts in zip(*(t.split(rows) for t in tensors), strict=True)])


def log_odds(log_scores: Tensor) -> Tensor:
    """log(s / (1 - s)) of log s <= 0, the inverse of sigmoid. Finite also where s rounds to 1."""
    log_scores = log_scores.clamp(max=-torch.finfo(log_scores.dtype).tiny)
    return log_scores - torch.log(-torch.expm1(log_scores))


def _keep_vocabulary(module: TextOutputLayers, state_dict, prefix, *_):
    """Keep the configured classes if a checkpoint has others; take the checkpoint's if none are configured."""
    key, axis = prefix + module.vocabulary_key, module.vocabulary_axis
    mine, theirs = module.get_buffer(module.vocabulary_key), state_dict.get(key)
    if theirs is not None:
        same = theirs.shape == mine.shape
        if module.vocabulary_wins or theirs.shape[1 - axis] != mine.shape[1 - axis]:
            if module.warns and not (same and torch.allclose(theirs.to(mine), mine, atol=1e-3)):
                logger.warning(
                    f"The checkpoint's class embeddings ({theirs.shape[axis] - 1} classes) differ from the configured "
                    f"vocabulary ({mine.shape[axis] - 1} classes): the configured one is used."
                )
            state_dict[key] = mine.clone()
        elif not same:
            module.set_vocabulary(theirs.movedim(axis, 0)[:-1])
    if module.vocabulary_wins:
        state_dict.pop(prefix + "synonyms", None)
    elif prefix + "synonyms" in state_dict:
        module.synonyms = state_dict[prefix + "synonyms"].to(module.freq_weight.device)
    mine, theirs = module.freq_weight, state_dict.get(prefix + "freq_weight")
    if theirs is not None and (module.vocabulary_wins or theirs.shape != mine.shape):
        comparable = module.warns and theirs.shape == mine.shape
        if comparable and not torch.equal(theirs.cpu() > 1e-4, mine.cpu() > 1e-4):
            logger.warning("The checkpoint masks other classes than the config: the configured mask is used.")
        state_dict[prefix + "freq_weight"] = mine.clone()


def _require_projection(module: OVRCNNOutputLayers, state_dict, prefix, *_):
    if f"{prefix}emb_pred.weight" not in state_dict:
        raise UserError(f"MODEL.WEIGHTS: the file lacks a projection of width MODEL.TEXT.DIM: {_MEANINGLESS}")
