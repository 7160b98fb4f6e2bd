"""RoI heads with a text classifier: their common part, and official Detic's C4 head, with its state-dict keys."""

from collections.abc import Iterator

from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.structures import Boxes
from torch import Tensor, nn

from .backbones.efficientnet import LAST_SHARED, OUT_CHANNELS, chain, folded_lite0
from .box_predictors import TextOutputLayers, build_box_predictor, configured_embeddings
from .vocabulary import num_classes


class TextHeads:
    """Mixin of RoI heads. ``box_predictor`` is a :class:`TextOutputLayers`, or a ModuleList with one for each stage."""

    build_predictor = staticmethod(build_box_predictor)

    @classmethod
    def from_config(cls, cfg, input_shape, *, text_encoder):
        plain_cfg = cfg.clone()
        plain_cfg.defrost()
        plain_cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = False  # Detectron2's needs a data set with counts of images
        ret = super().from_config(plain_cfg, input_shape) | {"num_classes": num_classes(cfg)}

        def build(plain, **given) -> TextOutputLayers:  # it replaces a plain predictor, which the parent has built
            shape = ShapeSpec(channels=plain.cls_score.in_features, height=1, width=1)
            return cls.build_predictor(cfg, shape, text_encoder=text_encoder, **given)

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

    def set_vocabulary(self, embeddings: Tensor, class_mask: Tensor | None = None) -> None:
        """As :meth:`TextOutputLayers.set_vocabulary`, for all stages."""
        for predictor in self.predictors:
            predictor.set_vocabulary(embeddings, class_mask)


@ROI_HEADS_REGISTRY.register()
class OpenVocabRes5ROIHeads(TextHeads, Res5ROIHeads):
    """Detectron2's C4 head with a text predictor; it also embeds any boxes."""

    def embed_stages(
        self, features: dict[str, Tensor], boxes: list[Boxes], *, image_sizes=None, refine=None
    ) -> Iterator[Tensor]:
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
