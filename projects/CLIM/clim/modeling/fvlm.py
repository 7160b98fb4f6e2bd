"""F-VLM (arXiv 2209.15639) on CLIP: Faster or Mask R-CNN with a frozen backbone, whose scores are fused with CLIP's.

Shapes: R regions, K classes, D width of text and region embeddings; column K of (R, K + 1) is the background.
"""

from functools import partial

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import ImageList
from fvcore.nn import c2_xavier_fill
from torch import Tensor, nn
from torch.nn import functional as F

from clim.losses import cosine_logits, masked_softmax_ce
from clim.text import require_width

from .box_predictors import OpenVocabOutputLayers, by_rows, log_odds
from .classifier import CosineClassifier
from .open_vocab_rcnn import OpenVocabRCNN
from .roi_heads import TextHeads
from .vocabulary import needs_cosines


@META_ARCH_REGISTRY.register()
class FVLM(OpenVocabRCNN):
    """Trains on boxes as its parent does; at test the encoder embeds every proposal, and both scores are fused.

    Images are padded to canvases of ``square`` px, or more if one is larger; ``pad_pixel`` has INPUT.FORMAT's channels.
    """

    @configurable
    def __init__(self, *, square: int, pad_pixel: list[float], **kwargs):
        super().__init__(**kwargs)
        self.square = square
        self.register_buffer("pad_pixel", torch.tensor(pad_pixel).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg):
        ret, architecture = super().from_config(cfg), cfg.MODEL.IMAGE_ENCODER.ARCHITECTURE
        require_width(ret["backbone"].encoder.dim, cfg, what=f"MODEL.IMAGE_ENCODER.ARCHITECTURE {architecture}")
        return ret | {"square": cfg.INPUT.LSJ.SIZE, "pad_pixel": cfg.MODEL.FVLM.PAD_PIXEL}

    @torch.no_grad()
    def inference(self, batched_inputs):
        """Detectron2's list of {"instances"}, with ``scores`` and, for ranking, ``logits``."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, _ = self.proposal_generator(images, features, None)
        # The encoder sees the proposals before the head refines them (release).
        embeddings = self.backbone.embed_regions(features, [p.proposal_boxes for p in proposals])
        for regions, part in zip(proposals, embeddings.split([len(p) for p in proposals]), strict=True):
            regions.vlm_embeddings = part
        results, _ = self.roi_heads(images, features, proposals)
        return self._postprocess(results, batched_inputs, images.image_sizes)

    def preprocess_image(self, batched_inputs) -> ImageList:
        """Put images in the upper left corners of square canvases, then normalise all, padding included."""
        images = [self._move_to_current_device(x["image"]) for x in batched_inputs]
        sizes = [tuple(image.shape[-2:]) for image in images]
        divisor = self.backbone.size_divisibility
        side = -(-max(self.square, *map(max, sizes)) // divisor) * divisor
        canvases = self.pad_pixel.expand(len(images), -1, side, side).clone()
        for canvas, image, (height, width) in zip(canvases, images, sizes, strict=True):
            canvas[:, :height, :width] = image
        return ImageList((canvases - self.pixel_mean) / self.pixel_std, sizes)


class FVLMOutputLayers(OpenVocabOutputLayers):
    """Softmax over all classes and background; at test fused with the frozen encoder's (:func:`fused_log_scores`).

    ``vlm_temperature`` is the scale of the encoder's cosines, ``background_weight`` a weight of the class loss.
    """

    @configurable
    def __init__(self, input_shape, *, alpha, beta, vlm_temperature, background_weight, **kwargs):
        super().__init__(input_shape, **kwargs)
        self.alpha, self.beta = alpha, beta
        self.vlm_temperature, self.background_weight = vlm_temperature, background_weight

    @classmethod
    def from_config(cls, cfg, input_shape, *, text_encoder):
        needs_cosines(cfg, "F-VLM")
        ret, fvlm = super().from_config(cfg, input_shape, text_encoder=text_encoder), cfg.MODEL.FVLM
        given = {"class_embeddings": ret["cls_score"].class_embeddings[:-1], "temperature": fvlm.DETECTOR_TEMPERATURE}
        return ret | {
            "cls_score": BackgroundClassifier(input_shape.channels, **given),
            "alpha": fvlm.ALPHA, "beta": fvlm.BETA,
            "vlm_temperature": fvlm.TEMPERATURE, "background_weight": fvlm.BACKGROUND_WEIGHT,
        }  # fmt: skip

    def class_loss(self, logits, gt_classes):
        return masked_softmax_ce(logits, gt_classes, self.freq_weight > 1e-4, background_weight=self.background_weight)

    def inference(self, predictions, proposals):
        """As the parent's, with the fused scores; ``proposals`` have ``vlm_embeddings`` (R, D)."""
        logits, deltas = predictions
        regions = torch.cat([p.vlm_embeddings for p in proposals])
        vlm = cosine_logits(regions, self.cls_score.class_embeddings, temperature=self.vlm_temperature)
        fuse = partial(fused_log_scores, has_boxes=self.freq_weight > 1e-4, alpha=self.alpha, beta=self.beta)
        odds = by_rows(lambda *rows: log_odds(fuse(*rows)).float(), logits, vlm)
        return super().inference((odds, deltas), proposals)


@ROI_HEADS_REGISTRY.register()
class FVLMROIHeads(TextHeads, StandardROIHeads):
    """Detectron2's heads with :class:`FVLMOutputLayers`. At test, proposals need ``vlm_embeddings`` (R, D)."""

    predictor = FVLMOutputLayers

    @classmethod
    def from_config(cls, cfg, input_shape, *, text_encoder):
        ret, heads = super().from_config(cfg, input_shape, text_encoder=text_encoder), cfg.MODEL.ROI_HEADS
        if cfg.MODEL.FVLM.MATCH_BEST:
            appended = heads.PROPOSAL_APPEND_GT
            ret["proposal_matcher"] = BestMatcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS, appended=appended)
        return ret


class BestMatcher(Matcher):
    """Detectron2's, then :func:`own_best` with its highest threshold.

    ``appended``: the objects' own boxes are the last proposals. Each belongs to its object, also where two objects have
    the same box. The rule ignores them, because MMDetection applies it before it adds them.
    """

    def __init__(self, thresholds, labels, *, appended: bool):
        super().__init__(thresholds, labels)
        self.appended = appended

    def __call__(self, overlaps: Tensor) -> tuple[Tensor, Tensor]:
        """IoUs (M, P) of objects and proposals → each proposal's object, and its label (P,)."""
        matches, labels = super().__call__(overlaps)
        proposed = overlaps.shape[1] - len(overlaps) * self.appended
        if len(overlaps) and proposed:
            best = own_best(overlaps[:, :proposed], matches[:proposed], min_iou=self.thresholds[-2])
            matches[:proposed] = best  # its label is 1 already, since its best object has at least this IoU
        if self.appended:
            matches[proposed:] = torch.arange(len(overlaps), device=matches.device)
        return matches, labels


def own_best(overlaps: Tensor, matches: Tensor, *, min_iou: float) -> Tensor:
    """``matches`` (P,), but an object's best proposals are its own if their IoU is at least ``min_iou``.

    Of several objects with the same best proposal the last one has it (MMDetection's Mask R-CNN; clip_fvlm §4).
    ``overlaps`` (M, P) are IoUs of objects and proposals, M and P at least 1.
    """
    owns = (overlaps == overlaps.amax(1, keepdim=True)) & (overlaps >= min_iou)
    owner = torch.where(owns, torch.arange(len(overlaps), device=owns.device)[:, None], -1).amax(0)
    return torch.where(owner >= 0, owner, matches)


class BackgroundClassifier(CosineClassifier):
    """temperature · cos(linear(relu(hidden(x))), [text; background]); background and temperature are learned."""

    def __init__(self, in_features: int, *, temperature: float, **kwargs):
        super().__init__(in_features, temperature=temperature, learned_background=True, **kwargs)
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))
        self.hidden = nn.Linear(in_features, in_features)
        c2_xavier_fill(self.hidden)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def project(self, x):
        return self.linear(F.relu(self.hidden(x)))


def fused_log_scores(detection: Tensor, vlm: Tensor, has_boxes: Tensor, *, alpha: float, beta: float) -> Tensor:
    """F-VLM's score log(p^(1 - w) · q^w), (R, K + 1) float64; p and q are the softmax of ``detection`` and of ``vlm``.

    w is ``alpha`` for classes with boxes and for the background, ``beta`` for the other classes. No class is masked
    before the softmax and no row is renormalised after it, so rows do not sum to one (F-VLM, arXiv 2209.15639;
    clip_fvlm §4). Double precision, because the p of a confident head rounds to 1 in float32.

    ``detection`` and ``vlm`` are logits (R, K + 1), temperature included; ``has_boxes`` (K,) bool.
    """
    trained = F.pad(has_boxes, (0, 1), value=True).double()
    weight = alpha * trained + beta * (1 - trained)
    return (1 - weight) * detection.double().log_softmax(1) + weight * vlm.double().log_softmax(1)
