"""F-VLM's score: the geometric mean of what the trained head and what the frozen CLIP says of a region.

Shape legend: R regions, K classes; column K of (R, K + 1) is the background.
"""

import torch
from torch import Tensor


def fused_log_scores(
    detection: Tensor, vlm: Tensor, has_boxes: Tensor, *, alpha: float, beta: float
) -> Tensor:
    """log(p^(1 - w) · q^w), float64 (R, K + 1), p and q being the softmax of two sets of logits.

    w is ``alpha`` for classes with boxes and for the background, ``beta`` for the other classes. Nothing is
    masked before the softmax and nothing renormalised after it, so a row does not sum to one (F-VLM, arXiv
    2209.15639; clip_fvlm §4). In double precision, because a sure head's p rounds to 1 in float32.

    Args:
        detection: (R, K + 1) logits of the head, temperature included.
        vlm: (R, K + 1) logits of the frozen encoder, temperature included.
        has_boxes: (K,) bool, the classes that had boxes in training.
    """
    weight = torch.full((detection.shape[1],), alpha, dtype=torch.float64, device=detection.device)
    weight[:-1][~has_boxes] = beta
    return (1 - weight) * detection.double().log_softmax(1) + weight * vlm.double().log_softmax(1)


def log_odds(log_scores: Tensor) -> Tensor:
    """log(s / (1 - s)) of log s <= 0: what sigmoid turns into s again. Finite also where s rounds to 1."""
    log_scores = log_scores.clamp(max=-torch.finfo(log_scores.dtype).tiny)
    return log_scores - torch.log(-torch.expm1(log_scores))
