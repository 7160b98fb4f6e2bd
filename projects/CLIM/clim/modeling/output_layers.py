"""What the box predictors of open-vocabulary heads share; chosen by name (``MODEL.ROI_BOX_HEAD.PREDICTOR``).

Shape legend: R regions, K classes, D width of text embeddings; column K of (R, K + 1) is the background.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.fast_rcnn import _log_classification_stats, fast_rcnn_inference
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from clim.errors import registered

from .vocabulary import vocabulary_embeddings

logger = logging.getLogger(__name__)

BOX_PREDICTOR_REGISTRY = Registry("BOX_PREDICTOR")
BOX_PREDICTOR_REGISTRY.__doc__ = """
Box predictors by name: ``from_config(cfg, input_shape, text_encoder=…)`` of :class:`TextOutputLayers`.
"""


def build_box_predictor(cfg, input_shape, *, text_encoder) -> "TextOutputLayers":
    """The predictor named by ``cfg.MODEL.ROI_BOX_HEAD.PREDICTOR``; UserError for a name that nothing has."""
    key = "MODEL.ROI_BOX_HEAD.PREDICTOR"
    predictor = registered(BOX_PREDICTOR_REGISTRY, cfg.MODEL.ROI_BOX_HEAD.PREDICTOR, key=key)
    return predictor(cfg, input_shape, text_encoder=text_encoder)


class TextOutputLayers(FastRCNNOutputLayers):
    """Detectron2's predictor with classes that are texts: they can be exchanged, and some have no boxes.

    A subclass registers two buffers: ``freq_weight`` (K,), zero where a class has no box annotations, and its
    class embeddings under ``vocabulary_key``.

    Attributes:
        vocabulary_wins: True where the config names a vocabulary, which a checkpoint must not replace.
        vocabulary_key: name of the buffer of class embeddings, background included.
        vocabulary_axis: its axis that counts classes; the other one is D.
    """

    vocabulary_wins: bool
    vocabulary_key: str
    vocabulary_axis: int

    @classmethod
    def text_features(cls, cfg) -> str:
        """What a class name becomes, a key of :data:`clim.text.CLASS_FEATURES`."""
        raise NotImplementedError

    @classmethod
    def read_vocabulary(cls, cfg, text_encoder) -> Tensor:
        """(K, D) of the configured vocabulary, as :meth:`set_vocabulary` takes it."""
        return vocabulary_embeddings(cfg, text_encoder, features=cls.text_features(cfg))

    def set_vocabulary(self, embeddings: Tensor, class_mask: Tensor | None = None) -> None:
        """Detect other classes from now on: (K', D) text embeddings; (K',) mask as ``freq_weight``, or ones."""
        self.set_class_embeddings(embeddings)
        self.num_classes = len(embeddings)
        mask = torch.ones(self.num_classes) if class_mask is None else class_mask
        self.freq_weight = mask.to(self.freq_weight)

    @contextmanager
    def vocabulary(self, embeddings: Tensor) -> Iterator[None]:
        """In this block detect (K', D) other classes, afterwards the same as before."""
        count, buffers = self.num_classes, dict(self.named_buffers())
        try:
            self.set_vocabulary(embeddings)
            yield
        finally:  # set_vocabulary exchanges buffers and writes into none, so that these are still the old ones
            self.num_classes = count
            for name, buffer in buffers.items():
                owner, _, key = name.rpartition(".")
                setattr(self.get_submodule(owner), key, buffer)

    def set_class_embeddings(self, embeddings: Tensor) -> None:
        """Exchange the buffer of class embeddings for that of (K', D) others."""
        raise NotImplementedError

    def project(self, x: Tensor) -> Tensor:
        """Region features (…, in_features) → un-normalised embeddings (…, D)."""
        raise NotImplementedError

    def embed(self, x: Tensor) -> Tensor:
        """Region features (R, in_features) → (R, D'), what is compared with class embeddings."""
        return self.project(x)

    def class_loss(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Of logits (R, K + 1) and classes (R,) in [0, K], K being background."""
        raise NotImplementedError

    def losses(self, predictions, proposals):
        """As the parent's, with :meth:`class_loss`."""
        scores, deltas = predictions
        gt_classes = torch.cat([p.gt_classes for p in proposals])
        _log_classification_stats(scores, gt_classes)
        proposal_boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        # A picture without ground truth has no gt_boxes; its proposals are all background and unused here.
        gt_boxes = torch.cat([(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals])
        return {
            "loss_cls": self.class_loss(scores, gt_classes),
            "loss_box_reg": self.box_reg_loss(proposal_boxes, gt_boxes, deltas, gt_classes)
            * self.loss_weight.get("loss_box_reg", 1.0),
        }

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


class TextHeads:
    """Mixin of RoI heads whose ``box_predictor`` is a :class:`TextOutputLayers`, or a ModuleList of one for each stage.

    Methods here act on the predictors of all stages, so that these never detect different classes.
    """

    @property
    def predictors(self) -> list[TextOutputLayers]:
        """One box predictor for each stage, the last stage's last."""
        predictor = self.box_predictor
        return list(predictor) if isinstance(predictor, nn.ModuleList) else [predictor]

    def set_vocabulary(self, embeddings: Tensor, class_mask: Tensor | None = None) -> None:
        """As :meth:`TextOutputLayers.set_vocabulary`, for every predictor."""
        for predictor in self.predictors:
            predictor.set_vocabulary(embeddings, class_mask)

    @contextmanager
    def vocabulary(self, embeddings: Tensor) -> Iterator[None]:
        """As :meth:`TextOutputLayers.vocabulary`, for every predictor."""
        with ExitStack() as stack:
            for predictor in self.predictors:
                stack.enter_context(predictor.vocabulary(embeddings))
            yield


def keep_vocabulary(module: TextOutputLayers, state_dict, prefix, *_):
    """Loading must not silently replace the configured classes, nor fail on a file made for others."""
    key, axis = prefix + module.vocabulary_key, module.vocabulary_axis
    mine = module.get_buffer(module.vocabulary_key)
    theirs = state_dict.get(key)
    if theirs is not None:
        if not module.vocabulary_wins and theirs.shape[1 - axis] == mine.shape[1 - axis]:
            if theirs.shape != mine.shape:
                module.set_vocabulary(theirs.movedim(axis, 0)[:-1])
        elif theirs.shape != mine.shape or not torch.allclose(theirs.to(mine), mine, atol=1e-3):
            logger.warning(
                f"The checkpoint's class embeddings ({theirs.shape[axis] - 1} classes) differ from the configured "
                f"vocabulary ({mine.shape[axis] - 1} classes): the configured one is used."
            )
            state_dict[key] = mine.clone()
        else:
            state_dict[key] = mine.clone()
    freq = prefix + "freq_weight"
    if freq in state_dict:
        theirs, mine = state_dict[freq], module.freq_weight
        if theirs.shape != mine.shape:
            state_dict[freq] = mine.clone()
        elif module.vocabulary_wins and not torch.equal(theirs.cpu() > 1e-4, mine.cpu() > 1e-4):
            logger.warning("The checkpoint masks other classes than the config: the configured mask is used.")
            state_dict[freq] = mine.clone()
