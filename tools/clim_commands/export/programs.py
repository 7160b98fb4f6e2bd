"""A detector as two programs of torch.export, with the choice of proposals and of detections between and behind them.

``FILE.proposals.pt2``: image uint8 or float (H, W, 3) RGB → feature maps, and boxes (A, 4) and logits (A,) of all
anchors of each level. ``FILE.head.pt2``: feature maps, boxes (R, 4), logits (R,) → boxes (R, 4), log-odds (R, K + 1).
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling import poolers
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from clim.errors import UserError
from clim.files import replacing
from clim.modeling.classifier import PseudoWordClassifier
from clim.modeling.shortlist import detect_best

from .graph import rgb_to_model, traceable

HALVES = ("proposals", "head")
ENTRY = "description.json"  # in both files


class Proposals(nn.Module):
    """Backbone and RPN head: see the module's docstring."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone, self.rpn, self.used = model.backbone, model.proposal_generator, model.roi_heads.in_features
        self.register_buffer("mean", model.pixel_mean)
        self.register_buffer("std", model.pixel_std)
        self.input_format = model.input_format

    def forward(self, image: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        pixels = (rgb_to_model(self, image).contiguous() - self.mean) / self.std
        divisor = max(self.backbone.size_divisibility, 1)
        height, width = pixels.shape[1:]
        features = self.backbone(F.pad(pixels[None], (0, -width % divisor, 0, -height % divisor)))
        maps = [features[name] for name in self.rpn.in_features]
        logits, deltas = self.rpn.rpn_head(maps)
        deltas = [x.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in deltas]
        boxes = self.rpn._decode_proposals(self.rpn.anchor_generator(maps), deltas)
        logits = [x[0].permute(1, 2, 0).flatten() for x in logits]
        return [features[name] for name in self.used], [x[0] for x in boxes], logits


class Head(nn.Module):
    """RoIAlign, box head and predictor: see the module's docstring."""

    def __init__(self, heads: nn.Module):
        super().__init__()
        self.heads = heads

    def forward(self, features: list[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        raw = []

        def catch(boxes, logits, sizes, *_):
            raw.extend((boxes[0], logits[0]))
            nothing = boxes[0].new_zeros(0)
            found = Instances(sizes[0], pred_boxes=Boxes(nothing), scores=nothing, pred_classes=nothing.long())
            return [found], [nothing]

        def of_one_image(lists):  # rows of RoIAlign, without a look at their number
            return F.pad(lists[0].tensor, (1, 0))

        pooling = mock.patch.object(poolers, "convert_boxes_to_pooler_format", of_one_image)
        with traceable(catch), patch_builtin_len(["detectron2.structures.instances"]), pooling:
            proposals = Instances((0, 0), proposal_boxes=Boxes(boxes))
            self.heads(None, dict(zip(self.heads.in_features, features, strict=True)), [proposals])
        return tuple(raw)


def write_programs(model: nn.Module, path: Path, description: dict) -> list[Path]:
    """Write the two files of ``path`` and return their names. UserError for a head that torch.export cannot trace."""
    heads, rpn, training = model.roi_heads, model.proposal_generator, False
    words = any(isinstance(module, PseudoWordClassifier) for module in heads.modules())
    if not (isinstance(rpn, RPN) and isinstance(heads, Res5ROIHeads)) or words:
        reason = "torch.export can trace an RPN with a C4 head of cosines or dot products alone"
        raise UserError(f"This detector has no .pt2 form, because {reason}: write --output FILE.onnx.")
    competes = getattr(heads.box_predictor, "competes", torch.ones(len(description["names"])))
    limits = {
        "nms_thresh": rpn.nms_thresh, "pre_nms_topk": rpn.pre_nms_topk[training],
        "post_nms_topk": rpn.post_nms_topk[training], "min_box_size": rpn.min_box_size,
    }  # fmt: skip
    classes = competes.nonzero()[:, 0].tolist()  # of the columns of the head's odds
    extra = {ENTRY: json.dumps(description | {"rpn": limits, "classes": classes})}
    files = [path.with_suffix(f".{half}.pt2") for half in HALVES]
    with torch.no_grad():
        image, first = torch.zeros(96, 128, 3, dtype=torch.uint8), Proposals(model).eval()
        features, boxes, _ = first(image)
        free, any_number = {0: Dim.AUTO, 1: Dim.AUTO}, ([{2: Dim.AUTO, 3: Dim.AUTO} for _ in features], {0: Dim.AUTO})
        steps = (first, (image,), (free,)), (Head(heads).eval(), (features, boxes[0][:29]), any_number)
        for file, (half, inputs, shapes) in zip(files, steps, strict=True):
            program = torch.export.export(half, inputs, dynamic_shapes=shapes, strict=False)
            stream = io.BytesIO()  # torch's own file needs the ending .pt2, and a full disk would abort this process
            torch.export.save(program, stream, extra_files=extra)
            with replacing(file) as unfinished:
                unfinished.write_bytes(stream.getbuffer())
    return files


def load_programs(path: Path | str, *, trusted: bool = False) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """The detector that ``clim export --output path`` has written; ``path`` ends in .pt2.

    It takes an image of the size of the test, a uint8 tensor (H, W, 3) RGB, and returns boxes (N, 4), scores (N,) and
    classes (N,). Its attribute ``description`` is what an ONNX file has as metadata. UserError unless ``trusted``.
    """
    if not trusted:
        remedy = "give trusted=True if you or somebody whom you trust has written it"
        raise UserError(f"{path}: torch.export.load can run code that a .pt2 file holds: {remedy}.")
    extra = {ENTRY: ""}
    files = (Path(path).with_suffix(f".{half}.pt2") for half in HALVES)
    propose, head = (torch.export.load(file, extra_files=extra).module() for file in files)
    about = json.loads(extra[ENTRY])
    threshold = torch.tensor(about["score_threshold"]).logit().item()
    limits = threshold, about["nms_threshold"], about["max_detections"]

    @torch.no_grad()
    def detect(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, boxes, logits = propose(image)
        sizes = [tuple(image.shape[:2])]
        levels = [x[None] for x in boxes], [x[None] for x in logits]
        (proposals,) = find_top_rpn_proposals(*levels, sizes, **about["rpn"], training=False)
        boxes, odds = head(features, proposals.proposal_boxes.tensor)
        (found,), _ = detect_best([boxes], [odds], sizes, *limits)
        found = found[found.pred_boxes.nonempty()]
        classes = torch.tensor(about["classes"])[found.pred_classes]
        return found.pred_boxes.tensor, found.scores.sigmoid(), classes

    detect.description = about
    return detect
