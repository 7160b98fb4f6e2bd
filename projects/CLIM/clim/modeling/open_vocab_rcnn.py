"""The open-vocabulary detector: boxes by Detectron2's Faster R-CNN, image-text pairs by mosaic → pool → align."""

from functools import partial

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_backbone, build_proposal_generator
from detectron2.modeling.roi_heads.roi_heads import ROI_HEADS_REGISTRY
from torch import Tensor, nn

from clim.checkpoints.keys import take_pretrained_trunk
from clim.data.tiles import Tiles
from clim.errors import UserError
from clim.methods import Method, Texts, build_method
from clim.text import HasTextEncoder, build_text_encoder

from .region_pooling import embed_regions

PAIR_SOURCES = {"captions": "", "mosaics": "_mosaic"}  # source of a joint batch: suffix of its losses


@META_ARCH_REGISTRY.register()
class OpenVocabRCNN(HasTextEncoder, GeneralizedRCNN):
    """Faster R-CNN with a text classifier, and a method that learns from image-text pairs.

    Training takes a joint batch {"detection": […], "captions": […], "mosaics": […]} (data/loader.py), where each list
    may be empty or missing; without a method also Detectron2's list of dicts. Inference takes that list.
    """

    sources = ("detection", "captions", "mosaics")
    evaluated_on = ("ov_coco", "lvis")  # types of test sets

    @configurable
    def __init__(self, *, method: Method | None, text_encoder, fp32_heads: bool, **kwargs):
        super().__init__(**kwargs)
        if method is not None:
            self.method = method
        self.text_encoder = text_encoder
        if fp32_heads:
            autocast_backbone(self)
        self.register_load_state_dict_pre_hook(_drop_unused)
        self.register_load_state_dict_pre_hook(take_pretrained_trunk)

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        for part in ("ROI_HEADS", "CENTERNET" if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "CenterNet" else "RPN"):
            if unknown := [name for name in cfg.MODEL[part].IN_FEATURES if name not in shapes]:
                known = f"the features of MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} are {', '.join(shapes)}"
                raise UserError(f"MODEL.{part}.IN_FEATURES names {unknown[0]!r}, but {known}: choose among them.")
        encoder = build_text_encoder(cfg)
        proposal_generator = build_proposal_generator(cfg, shapes)
        roi_heads = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, shapes, text_encoder=encoder)
        embeds = hasattr(roi_heads, "embed_stages") and all(hasattr(p, "cls_score") for p in roi_heads.predictors)
        if cfg.MODEL.METHOD.NAME and not (embeds and hasattr(proposal_generator, "propose")):
            raise UserError(
                f"MODEL.PROPOSAL_GENERATOR.NAME {cfg.MODEL.PROPOSAL_GENERATOR.NAME} and MODEL.ROI_HEADS.NAME "
                f"{cfg.MODEL.ROI_HEADS.NAME} with MODEL.ROI_BOX_HEAD.PREDICTOR "
                f'{cfg.MODEL.ROI_BOX_HEAD.PREDICTOR} learn from boxes alone: set MODEL.METHOD.NAME to "".'
            )
        return {
            "backbone": backbone, "proposal_generator": proposal_generator, "roi_heads": roi_heads,
            "method": build_method(cfg), "text_encoder": encoder, "fp32_heads": cfg.MODEL.OPEN_VOCAB.FP32_HEADS,
            "input_format": cfg.INPUT.FORMAT, "vis_period": cfg.VIS_PERIOD,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN, "pixel_std": cfg.MODEL.PIXEL_STD,
        }  # fmt: skip

    def forward(self, batch):
        """Losses of a joint batch in training, otherwise Detectron2's list of {"instances"}."""
        if not self.training:
            return self.inference(batch)
        if isinstance(batch, list):  # Detectron2's own loaders give images with boxes alone
            if hasattr(self, "method"):
                remedy = 'train with train_net.py or clim.engine.Trainer, or set MODEL.METHOD.NAME ""'
                raise UserError(f"{type(self.method).__name__} learns from pairs, but this batch has none: {remedy}.")
            batch = {"detection": batch}
        losses = super().forward(batch["detection"]) if batch.get("detection") else {}
        texts = {source: self.texts(batch[source]) for source in PAIR_SOURCES if batch.get(source)}
        for source, own in texts.items():
            own.others = [other for other in texts.values() if other is not own]
            aligned = self.align(batch[source], own)
            losses |= {name + PAIR_SOURCES[source]: loss for name, loss in aligned.items()}
        return losses

    def _move_to_current_device(self, x):
        return x.to(self.device, non_blocking=True)  # Detectron2 waits for each image

    def visualize_training(self, batched_inputs, proposals):
        """Detectron2's image of boxes and proposals; NumPy's random state stays, from which it draws colours."""
        state = np.random.get_state()
        super().visualize_training(batched_inputs, proposals)
        np.random.set_state(state)

    def texts(self, canvases: list[dict]) -> Texts:
        tiles = Tiles.cat([c["tiles"] for c in canvases]).to(self.device)
        return Texts(tiles, encoder=self.text_encoder, class_embeddings=self.classifier.class_embeddings)

    def align(self, canvases: list[dict], texts: Texts) -> dict[str, Tensor]:
        """Mosaic → pool → align: the losses of one batch of canvases, summed over the stages of a cascade."""
        images, tiles = self.preprocess_image(canvases), texts.tiles
        features = self.backbone(images.tensor)
        proposals = self.proposal_generator.propose(images, features) if self.method.needs_proposals else None
        regions = self.method.select(tiles, proposals)
        options = {"image_sizes": images.image_sizes, "refine": partial(self.method.refine, tiles)}
        return self.method.align(embed_regions(self.roi_heads, features, regions, **options), texts)

    def has_unused_parameters(self, loader) -> bool:
        """Whether an iteration of ``loader`` (cfg.DATALOADER) can leave parameters without gradient."""
        return loader.DETECTION_PER_GPU == 0

    @property
    def classifier(self):
        """The classifier of the last stage; all stages have the same classes."""
        return self.roi_heads.predictors[-1].cls_score


def _drop_unused(module, state_dict, prefix, *_):
    """Ignore the text tower that official Detic stores, as the config defines ours; a method's state without one."""
    unused = ("text_encoder.",) if hasattr(module, "method") else ("text_encoder.", "method.")
    for key in [k for k in state_dict if k.startswith(tuple(prefix + name for name in unused))]:
        del state_dict[key]


def autocast_backbone(model: nn.Module) -> None:
    """Official Detic's mixed precision: autocast covers the backbone only. Wraps ``forward`` of both instances."""
    backbone_forward, model_forward = model.backbone.forward, model.forward
    enabled = [False]

    def backbone(x):
        with torch.autocast(x.device.type, enabled=enabled[0]):
            features = backbone_forward(x)
        return {name: f.float() for name, f in features.items()}

    def forward(batch):
        enabled[0] = torch.is_autocast_enabled(model.device.type)
        with torch.autocast(model.device.type, enabled=False):
            return model_forward(batch)

    model.backbone.forward, model.forward = backbone, forward
