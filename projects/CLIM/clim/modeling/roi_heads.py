"""RoI heads with a text classifier: official Detic's C4 head, with its state-dict keys, and the cascade of OV-LVIS.

The cascade has stages with boxes refined in between, a text classifier in each, and masks (detic §3). Shapes: S stages,
R regions of an image, ΣR those of a batch, K classes, D width of text embeddings.
"""

from collections.abc import Iterator, Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.modeling.roi_heads.cascade_rcnn import CascadeROIHeads, _ScaleGradient
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from clim.errors import UserError

from .backbones.efficientnet import LAST_SHARED, OUT_CHANNELS, chain, folded_lite0
from .box_predictors import BOX_PREDICTOR_REGISTRY, TextOutputLayers, by_rows, configured_embeddings, log_odds
from .vocabulary import num_classes


class TextHeads:
    """Mixin of RoI heads. ``box_predictor`` is a :class:`TextOutputLayers`, or a ModuleList with one for each stage."""

    predictor: type[TextOutputLayers] | None = None  # None: the one that MODEL.ROI_BOX_HEAD.PREDICTOR names

    @classmethod
    def from_config(cls, cfg, input_shape, *, text_encoder):
        plain_cfg = cfg.clone()
        plain_cfg.defrost()
        plain_cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = False  # Detectron2's needs a data set with counts of images
        ret = super().from_config(plain_cfg, input_shape) | {"num_classes": num_classes(cfg)}

        predictor = cls.predictor or BOX_PREDICTOR_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.PREDICTOR)

        def build(plain, **given) -> TextOutputLayers:  # it replaces a plain predictor, which the parent has built
            shape = ShapeSpec(channels=plain.cls_score.in_features, height=1, width=1)
            return predictor(cfg, shape, text_encoder=text_encoder, **given)

        if "box_predictors" not in ret:
            return ret | {"box_predictor": build(ret["box_predictor"])}
        shared = {"class_embeddings": configured_embeddings(cfg, text_encoder)}  # read once for all stages
        stages = [build(p, box2box_transform=p.box2box_transform, **shared) for p in ret["box_predictors"]]
        return ret | {"box_predictors": stages}

    @property
    def predictors(self) -> list[TextOutputLayers]:
        """One box predictor for each stage, in order."""
        predictor = self.box_predictor
        return list(predictor) if isinstance(predictor, nn.ModuleList) else [predictor]

    def set_vocabulary(self, embeddings: Tensor, class_mask: Tensor | None = None, synonyms: Tensor | None = None):
        """As :meth:`TextOutputLayers.set_vocabulary`, for all stages."""
        for predictor in self.predictors:
            predictor.set_vocabulary(embeddings, class_mask, synonyms)


@ROI_HEADS_REGISTRY.register()
class OpenVocabRes5ROIHeads(TextHeads, Res5ROIHeads):
    """Detectron2's C4 head with a text predictor; it also embeds any boxes."""

    def embed_stages(self, features, boxes: list[Boxes], *, image_sizes=None, refine=None) -> Iterator[Tensor]:
        """Un-normalised embeddings (ΣR, D) of each image's boxes; a C4 head has one stage."""
        pooled = self._shared_roi_transform([features[name] for name in self.in_features], boxes)
        (predictor,) = self.predictors
        yield predictor.project(pooled.mean(dim=[2, 3]))


@ROI_HEADS_REGISTRY.register()
class EfficientNetC4ROIHeads(OpenVocabRes5ROIHeads):
    """The same with the last blocks of EfficientNet-Lite0 instead of ResNet's res5."""

    @classmethod
    def _build_res5_block(cls, cfg):
        return chain(folded_lite0()._blocks[LAST_SHARED + 1 :]), OUT_CHANNELS


@ROI_HEADS_REGISTRY.register()
class OpenVocabCascadeROIHeads(TextHeads, CascadeROIHeads):
    """Detectron2's cascade with text predictors; it also embeds any boxes at every stage (detic §3.1).

    The arguments are the config's keys. ``gradient_scale`` is for embedded boxes too, not for masks. With
    ``mult_proposal_score``, the proposals' ``objectness_logits`` are scores in [0, 1], as CenterNet gives them.
    """

    @configurable
    def __init__(self, *, gradient_scale: float, resample: bool, keep_empty: bool, mult_proposal_score: bool, **kwargs):
        super().__init__(**kwargs)
        self.gradient_scale, self.mult_proposal_score = gradient_scale, mult_proposal_score
        self.resample, self.keep_empty = resample, keep_empty

    @classmethod
    def from_config(cls, cfg, input_shape, *, text_encoder):
        cascade, generator = cfg.MODEL.ROI_BOX_CASCADE_HEAD, cfg.MODEL.PROPOSAL_GENERATOR.NAME
        multiplies = cfg.MODEL.ROI_BOX_HEAD.MULT_PROPOSAL_SCORE
        if multiplies and issubclass(PROPOSAL_GENERATOR_REGISTRY.get(generator), RPN):
            remedy = "set MODEL.ROI_BOX_HEAD.MULT_PROPOSAL_SCORE to False"
            raise UserError(f"MODEL.PROPOSAL_GENERATOR.NAME {generator} gives logits, not probabilities: {remedy}.")
        keys = {key.lower(): cascade[key] for key in ("GRADIENT_SCALE", "RESAMPLE", "KEEP_EMPTY")}
        ret = super().from_config(cfg, input_shape, text_encoder=text_encoder)
        return ret | keys | {"mult_proposal_score": multiplies}

    def embed_stages(self, features, boxes: list[Boxes], *, image_sizes=None, refine=None) -> Iterator[Tensor]:
        """Un-normalised embeddings (ΣR, D) of each image's boxes, for each stage.

        Between two stages the boxes are refined, without gradient, and clipped to ``image_sizes`` (height, width).
        ``refine`` takes this list of Boxes and returns that of the next stage; None: the refined boxes themselves.
        """
        for predictor, x, _ in self._stages(features, boxes, image_sizes, refine):
            yield predictor.project(x)

    def _stages(self, features, boxes, image_sizes, refine=None) -> Iterator[tuple[TextOutputLayers, Tensor, list]]:
        """Predictor, region features (ΣR, C) and boxes of each stage."""
        maps = [features[name] for name in self.box_in_features]
        for stage, predictor in enumerate(self.predictors):
            x = self._region_features(maps, boxes, stage)
            yield predictor, x, boxes
            if stage + 1 < len(self.predictors):
                boxes = _refined(predictor, x, boxes, image_sizes)
                boxes = refine(boxes) if refine else boxes

    def _region_features(self, maps: list[Tensor], boxes: list[Boxes], stage: int) -> Tensor:
        x = self.box_pooler(maps, boxes)
        if self.training:
            x = _ScaleGradient.apply(x, self.gradient_scale)
        return self.box_head[stage](x)

    # Steps of the parent's training:

    def _run_stage(self, features, proposals, stage):
        boxes = [p.proposal_boxes for p in proposals]
        return self.predictors[stage](self._region_features(features, boxes, stage))

    def _create_proposals_from_boxes(self, boxes, image_sizes):
        if not self.keep_empty:
            return super()._create_proposals_from_boxes(boxes, image_sizes)
        clipped = clip_boxes([b.detach() for b in boxes], image_sizes)
        return [Instances(size, proposal_boxes=b) for size, b in zip(image_sizes, clipped, strict=True)]

    def _match_and_label_boxes(self, proposals, stage, targets):
        labelled = super()._match_and_label_boxes(proposals, stage, targets)
        if not self.resample:
            return labelled
        sizes = self.batch_size_per_image, self.positive_fraction, self.num_classes
        return [p[torch.cat(subsample_labels(p.gt_classes, *sizes))] for p in labelled]

    def _forward_box(self, features, proposals, targets=None):
        """Losses in training; at test the parent's instances, with ``logits`` (:meth:`TextOutputLayers.detect`)."""
        if self.training:
            return super()._forward_box(features, proposals, targets)
        sizes, logits = [p.image_size for p in proposals], []
        for last in self._stages(features, [p.proposal_boxes for p in proposals], sizes):
            predictor, x, _ = last
            logits.append(predictor.cls_score(x)[:, :-1].split([len(p) for p in proposals]))
        count, odds = len(logits), []
        for p, *of_image in zip(proposals, *logits, strict=True):
            of_image += [p.objectness_logits] if self.mult_proposal_score else []
            fused = by_rows(lambda *rows: log_odds(fused_scores(rows[:count], *rows[count:]).log()).float(), *of_image)
            odds.append(F.pad(fused, (0, 1)))
        return predictor.detect([b.tensor for b in _refined(*last, sizes)], odds, sizes)[0]


@torch.no_grad()
def _refined(predictor: TextOutputLayers, x: Tensor, boxes: list[Boxes], image_sizes) -> list[Boxes]:
    return refine_boxes(predictor.bbox_pred(x), boxes, image_sizes, transform=predictor.box2box_transform)


def fused_scores(logits: Sequence[Tensor], proposal_scores: Tensor | None = None) -> Tensor:
    """sqrt(mean over stages of sigmoid(logits) · proposal score) as (R, K) float64, detic §3.1.

    ``logits`` are S tensors (R, K). Without ``proposal_scores`` (R,), it is the mean of the sigmoids itself. Double
    precision, because in float32 the sigmoids of all logits above 17 are 1.
    """
    scores = sum(stage.double().sigmoid() for stage in logits) / len(logits)
    return scores if proposal_scores is None else (scores * proposal_scores.double()[:, None]).sqrt()


def refine_boxes(
    deltas: Tensor, boxes: list[Boxes], image_sizes: Sequence[tuple[int, int]], *, transform: Box2BoxTransform
) -> list[Boxes]:
    """Class-agnostic ``deltas`` (ΣR, 4) applied to each image's boxes, without gradient, clipped to (height, width)."""
    moved = transform.apply_deltas(deltas.detach(), torch.cat([b.tensor for b in boxes]))
    return clip_boxes(moved.split([len(b) for b in boxes]), image_sizes)


def clip_boxes(boxes: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]) -> list[Boxes]:
    """New boxes of each image, from (R, 4), inside its (height, width)."""
    clipped = [Boxes(of_image) for of_image in boxes]
    for of_image, size in zip(clipped, image_sizes, strict=True):
        of_image.clip(size)
    return clipped
