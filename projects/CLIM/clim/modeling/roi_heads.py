"""C4 RoI heads with a text classifier and class-agnostic boxes: official Detic's, by names and keys."""

from collections.abc import Iterator

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.structures import Boxes
from fvcore.nn import c2_xavier_fill
from torch import Tensor, nn

from clim.errors import UserError
from clim.losses import masked_class_bce

from .backbones.efficientnet import LAST_SHARED, OUT_CHANNELS, Blocks, folded_lite0
from .classifier import CosineClassifier
from .output_layers import BOX_PREDICTOR_REGISTRY, TextHeads, TextOutputLayers, build_box_predictor, keep_vocabulary
from .vocabulary import class_mask, classifier_type, is_configured, num_classes


@BOX_PREDICTOR_REGISTRY.register()
class OpenVocabOutputLayers(TextOutputLayers):
    """Cosine classifier, sigmoid scores, a two-layer class-agnostic box head (official Detic's shapes).

    Args:
        cls_score: the classifier.
        class_mask: (K,) zero where a class has no box annotations; such columns are left out of the loss.
        vocabulary_wins: True where the config names a vocabulary, which a checkpoint must not replace.
    """

    vocabulary_key, vocabulary_axis = "cls_score.zs_weight", 1

    @configurable
    def __init__(
        self, input_shape, *, cls_score: CosineClassifier, class_mask: Tensor, vocabulary_wins: bool, **kwargs
    ):
        super().__init__(input_shape, **kwargs)
        self.class_agnostic = kwargs.get("cls_agnostic_bbox_reg", False)
        width = input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
        self.cls_score = cls_score
        box_classes = 1 if self.class_agnostic else self.num_classes
        self.bbox_pred = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, 4 * box_classes)
        )
        c2_xavier_fill(self.bbox_pred[0])
        nn.init.normal_(self.bbox_pred[2].weight, std=0.001)
        nn.init.zeros_(self.bbox_pred[2].bias)
        self.register_buffer("freq_weight", class_mask)
        self.vocabulary_wins = vocabulary_wins
        self.register_load_state_dict_pre_hook(keep_vocabulary)

    @classmethod
    def from_config(cls, cfg, input_shape, *, text_encoder):
        ret = super().from_config(cfg, input_shape)
        ret.update(
            num_classes=num_classes(cfg),
            use_sigmoid_ce=True,
            cls_score=classifier_type(cfg)(
                cfg,
                input_shape.channels,
                class_embeddings=cls.read_vocabulary(cfg, text_encoder),
                text_encoder=text_encoder,
            ),
            class_mask=class_mask(cfg),
            vocabulary_wins=is_configured(cfg),
        )
        return ret

    def class_loss(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Of logits (R, K + 1) and classes (R,) in [0, K], K being background."""
        mask = (self.freq_weight > 1e-4).to(logits.dtype)
        if self.cls_score.learned_background:  # a class like others, that of background regions
            return masked_class_bce(logits, gt_classes, torch.cat([mask, mask.new_ones(1)]))
        return masked_class_bce(logits[:, :-1], gt_classes, mask)

    @classmethod
    def text_features(cls, cfg) -> str:
        return classifier_type(cfg).text_features

    def project(self, x: Tensor) -> Tensor:
        return self.cls_score.project(x)

    def embed(self, x: Tensor) -> Tensor:
        return self.cls_score.embed(x)

    def set_class_embeddings(self, embeddings: Tensor) -> None:
        if not self.class_agnostic and len(embeddings) != self.num_classes:
            raise UserError(
                "This detector's boxes are those of its own classes (MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG False): "
                f"it cannot go from {self.num_classes} classes to {len(embeddings)}."
            )
        self.cls_score.set_vocabulary(embeddings)


@ROI_HEADS_REGISTRY.register()
class OpenVocabRes5ROIHeads(TextHeads, Res5ROIHeads):
    """Detectron2's C4 head with the box predictor of the config and embeddings of any boxes."""

    @classmethod
    def from_config(cls, cfg, input_shape, *, text_encoder):
        ret = super().from_config(cfg, input_shape)
        # The parent has built a plain predictor; its width tells what the last stage yields.
        shape = ShapeSpec(channels=ret["box_predictor"].cls_score.in_features, height=1, width=1)
        ret["box_predictor"] = build_box_predictor(cfg, shape, text_encoder=text_encoder)
        ret["num_classes"] = num_classes(cfg)
        return ret

    def embed_stages(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Iterator[Tensor]:
        """Un-normalised embeddings (ΣR, D) of boxes given image by image; a C4 head has one stage."""
        pooled = self._shared_roi_transform([features[name] for name in self.in_features], boxes)
        (predictor,) = self.predictors
        yield predictor.project(pooled.mean(dim=[2, 3]))


@ROI_HEADS_REGISTRY.register()
class EfficientNetC4ROIHeads(OpenVocabRes5ROIHeads):
    """The last blocks of EfficientNet-Lite0 in the place of ResNet's res5."""

    @classmethod
    def _build_res5_block(cls, cfg):
        return Blocks(folded_lite0()._blocks[LAST_SHARED + 1 :]), OUT_CHANNELS
