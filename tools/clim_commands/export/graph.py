"""A detector as a graph of tensors, which torch.onnx and torch.export can trace: one image, no lists, no Instances.

Shapes: N detections, R regions, K classes, D width of text embeddings, L levels of proposals. Boxes are x0, y0, x1, y1
in pixels of the image that the graph gets.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

import clim
from clim.errors import UserError
from clim.modeling import box_predictors
from clim.modeling.fvlm import FVLM

# modules that call len() and by_rows()
_HEADS = [f"clim.modeling.{name}" for name in ("box_predictors", "roi_heads", "fvlm")]
_LOWEST = torch.finfo(torch.float32).min


class DetectorGraph(nn.Module):
    """``forward(image)`` → boxes (N, 4), scores (N,), classes (N,), and masks (N, M, M) where the head has them.

    ``image`` is uint8 or float (H, W, 3) RGB of the size of the test. Masks are probabilities inside their boxes. With
    ``class_embeddings`` (K, D) these are the model's classes from then on.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, image: Tensor, class_embeddings: Tensor | None = None) -> tuple[Tensor, ...]:
        with traceable():
            if class_embeddings is not None:
                self.model.roi_heads.set_vocabulary(class_embeddings)
            found = self.model.inference([{"image": rgb_to_model(self.model, image)}])[0]
        found = found[found.pred_boxes.nonempty()]
        masks = (found.pred_masks[:, 0],) if found.has("pred_masks") else ()
        return found.pred_boxes.tensor, found.scores, found.pred_classes, *masks


def prepare(detector, *, dynamic_classes: bool) -> None:
    """Give an F-VLM canvas one size. UserError for a detector that the graph would not equal."""
    model, sizes = detector.model, detector.cfg.INPUT
    last = list(model.roi_heads.predictors[-1].bbox_pred.modules())[-1]
    if last.out_features > 4:
        reason = "it has a box for each class (MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG False)"
        raise UserError(f"This detector cannot be exported: {reason}, and ONNX's NMS takes one box for all classes.")
    if dynamic_classes and isinstance(model, FVLM):
        reason = "F-VLM's scores depend on which classes had boxes in training"
        raise UserError(f"--dynamic-classes does not fit this detector, because {reason}: name --vocabulary instead.")
    if dynamic_classes and model.roi_heads.predictors[-1].synonyms is not None:
        raise UserError(
            "--dynamic-classes takes one word a class, and these classes have synonyms: change --vocabulary."
        )
    if isinstance(model, FVLM) and model.square < sizes.MAX_SIZE_TEST:
        if sizes.MIN_SIZE_TEST != sizes.MAX_SIZE_TEST:
            remedy = f"set INPUT.LSJ.SIZE to at least INPUT.MAX_SIZE_TEST {sizes.MAX_SIZE_TEST}"
            raise UserError(f"The canvas of an exported F-VLM has one size, which must hold every image: {remedy}.")
        model.square = sizes.MAX_SIZE_TEST  # the longer side of every image


def describe(detector, weights: Path) -> dict:
    """What a client must know of ``detector``, whose checkpoint is ``weights``: json values."""
    cfg, predictor = detector.cfg, detector.model.roi_heads.predictors[-1]
    with open(weights, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "names": list(detector.names), "novel": sorted(detector.novel),
        "channels": "RGB", "min_size": cfg.INPUT.MIN_SIZE_TEST, "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "score_threshold": detector.score_threshold, "nms_threshold": predictor.test_nms_thresh,
        "max_detections": predictor.test_topk_per_image,
        "text": {
            "tower": cfg.MODEL.TEXT.NAME, "pretrained": cfg.MODEL.TEXT.PRETRAINED,
            "prompt": cfg.MODEL.VOCABULARY.PROMPT, "features": predictor.text_features,
        },
        "weights": {"file": weights.name, "sha256": digest},
        "versions": {"clim": clim.__version__, "torch": torch.__version__},
    }  # fmt: skip


def rgb_to_model(model: nn.Module, image: Tensor) -> Tensor:
    """RGB (H, W, 3) → (3, H, W) in the order of the model's channels."""
    channels = image.permute(2, 0, 1)
    return channels if model.input_format == "RGB" else channels.flip(0)


@contextlib.contextmanager
def traceable(detect=None) -> Iterator[None]:
    """Replace what depends on values by operators that a graph has. ``detect`` replaces detect_best."""
    replaced = [
        mock.patch.object(GeneralizedRCNN, "_postprocess", staticmethod(lambda results, *_: results)),
        mock.patch.object(FVLM, "preprocess_image", on_canvas),
        mock.patch.object(proposal_utils, "batched_nms", nms_of_levels),
        mock.patch.object(box_predictors, "detect_best", detect or detections),
        patch_builtin_len(_HEADS),
        *(mock.patch(f"{name}.by_rows", lambda function, *rows: function(*rows)) for name in _HEADS),
    ]
    with contextlib.ExitStack() as stack:
        for patch in replaced:
            stack.enter_context(patch)
        yield


def on_canvas(model: FVLM, batched_inputs):
    """As FVLM.preprocess_image of one image, whose canvas has a constant size."""
    (image,) = (x["image"] for x in batched_inputs)
    height, width = image.shape[1:]
    side = -(-model.square // model.backbone.size_divisibility) * model.backbone.size_divisibility
    canvas = F.pad(image - model.pad_pixel, (0, side - width, 0, side - height)) + model.pad_pixel
    return ImageList(((canvas - model.pixel_mean) / model.pixel_std)[None], [image.shape[1:]])


def nms_of_levels(boxes: Tensor, scores: Tensor, levels: Tensor, iou_threshold: float) -> Tensor:
    """As Detectron2's ``batched_nms``; exact, where a traced one shifts boxes of other levels by large numbers."""
    own = torch.arange(8, device=levels.device)[:, None] == levels  # (L, R), more levels than any detector has
    kept = ClassNMS.apply(boxes, torch.where(own, scores, -torch.inf), iou_threshold, _LOWEST)[:, 1]
    return kept[scores[kept].argsort(descending=True)]


def detections(boxes, logits, image_sizes, threshold: float, nms_threshold: float, topk: int):
    """As :func:`clim.modeling.shortlist.detect_best` of one image with class-agnostic boxes (R, 4)."""
    (boxes,), (logits,), (size,) = boxes, logits, image_sizes
    clipped = Boxes(boxes)
    clipped.clip(size)
    classes, rows = ClassNMS.apply(clipped.tensor, logits[:, :-1].T, nms_threshold, threshold).unbind(1)
    best = logits[rows, classes].argsort(descending=True)[:topk]
    classes, rows = classes[best], rows[best]
    found = Instances(size, pred_boxes=clipped[rows], scores=logits[rows, classes], pred_classes=classes)
    return [found], [rows]


class ClassNMS(torch.autograd.Function):
    """Boxes (R, 4), scores (K, R), IoU threshold, score threshold → (M, 2): class and row of what NMS leaves."""

    @staticmethod
    def forward(ctx, boxes, scores, iou_threshold, score_threshold):
        pairs = (scores > score_threshold).nonzero()
        return pairs[batched_nms(boxes[pairs[:, 1]], scores[pairs[:, 0], pairs[:, 1]], pairs[:, 0], iou_threshold)]

    @staticmethod
    def symbolic(g, boxes, scores, iou_threshold, score_threshold):
        def constant(value, dtype=torch.float32):
            return g.op("Constant", value_t=torch.tensor([value], dtype=dtype))

        one = constant(0, torch.int64)
        boxes, scores = (g.op("Unsqueeze", x, one) for x in (boxes, scores))
        every = constant(torch.iinfo(torch.int64).max, torch.int64)
        found = g.op("NonMaxSuppression", boxes, scores, every, constant(iou_threshold), constant(score_threshold))
        return g.op("Gather", found, g.op("Constant", value_t=torch.tensor([1, 2])), axis_i=1)


def class_rows(model: nn.Module) -> Tensor:
    """(K, D) embeddings of the model's classes, without the background."""
    predictor = model.roi_heads.predictors[-1]
    return predictor.get_buffer(predictor.vocabulary_key).movedim(predictor.vocabulary_axis, 0)[:-1].contiguous()
