"""The best detections of an image without a search among all pairs of region and class.

Whether a pair is suppressed depends on pairs of higher or equal scores alone. So the pairs above any score give the
first detections of the full search, in its order, and a few thousand of millions of pairs are enough.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import nms

LENGTH = 1024  # pairs of the first try
GROWTH = 8
TOGETHER = 2**14  # boxes for one call of CUDA's NMS, whose memory grows with the square: 32 MiB


def detect_best(
    boxes: Sequence[Tensor], scores: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]],
    threshold: float, overlap: float, number: int,
) -> tuple[list[Instances], list[Tensor]]:  # fmt: skip
    """Arguments and results of Detectron2's ``fast_rcnn_inference``, one entry an image, equal to the bit.

    Equal scores are ordered by region, then by class; Detectron2 orders them as it comes. ``boxes`` (R, 4) or (R, 4K),
    ``scores`` (R, K + 1) in any form that keeps their order, ``number`` of detections or -1 for all.
    """
    found = [_detect_in_image(*of, threshold, overlap, number) for of in zip(boxes, scores, image_sizes, strict=True)]
    return [instances for instances, _ in found], [regions for _, regions in found]


def _detect_in_image(boxes, scores, size, threshold, overlap, number):
    usable = boxes.isfinite().all(1) & scores.isfinite().all(1)
    if not usable.all():
        boxes, scores = boxes[usable], scores[usable]
    clipped = Boxes(boxes.reshape(-1, 4))
    clipped.clip(size)
    boxes, scores = clipped.tensor.view(len(boxes), boxes.shape[1] // 4, 4), scores[:, :-1]
    ranked, length = scores.flatten(), scores.numel() if number < 0 else LENGTH
    while True:
        cut = threshold if length >= len(ranked) else max(ranked.topk(length).values[-1].item(), threshold)
        regions, classes = (scores > cut).nonzero(as_tuple=True)
        of_pairs, scores_of_pairs = boxes[regions, classes % boxes.shape[1]], scores[regions, classes]
        kept = nms_by_class(of_pairs, scores_of_pairs, classes, overlap)
        if cut == threshold or len(kept) >= number:
            break
        length *= GROWTH
    kept = kept[:number] if number >= 0 else kept
    found = Instances(size, pred_boxes=Boxes(of_pairs[kept]), scores=scores_of_pairs[kept], pred_classes=classes[kept])
    return found, regions[kept]


def nms_by_class(boxes: Tensor, scores: Tensor, classes: Tensor, overlap: float) -> Tensor:
    """Indices of the ``boxes`` (N, 4) that stay, by falling score, equal ones in their order.

    A box goes where its IoU with a better one of its class is above ``overlap``.
    """
    if boxes.is_cuda and 0 < len(boxes) <= TOGETHER:
        # All classes at once, moved apart, in double precision: their IoUs stay the same up to its rounding.
        moved = boxes.double() + (classes.double() * (boxes.max() + 1))[:, None]
        return nms(moved, scores.double(), overlap)
    order = classes.argsort(stable=True)
    groups = order.split(classes[order].unique_consecutive(return_counts=True)[1].tolist())
    kept = [g if len(g) == 1 else g[nms(boxes[g].float(), scores[g], overlap)] for g in groups]
    kept = torch.cat([order[:0], *kept]).sort()[0]
    return kept[scores[kept].argsort(descending=True, stable=True)]
