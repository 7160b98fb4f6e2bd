"""Losses as pure functions of tensors.

Shapes: R regions, T tiles of the batch, C candidate texts, K classes, D embedding width. A loss without regions is a 0
that keeps the graph, so that DDP finds a gradient for every parameter.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def cosine_logits(regions: Tensor, texts: Tensor, *, temperature: Tensor | float, bias: Tensor | float = 0.0) -> Tensor:
    """``temperature * cos(regions (R, D), texts (C, D)) + bias`` as (R, C) float32, also inside autocast.

    A text row of zeros (Detic's background) gives the logit ``bias``.
    """
    with torch.autocast(regions.device.type, enabled=False):  # half precision has steps of 1/64 at -20
        regions = F.normalize(regions.float(), dim=-1)
        texts = F.normalize(texts.float(), dim=-1)
        return temperature * regions @ texts.T + bias


def positives_by_id(members: Tensor, tile_ids: Tensor, text_ids: Tensor) -> Tensor:
    """(R, C) bool: a text is positive if its image id is one of the region's (CLIM release, Detic's caption loss).

    ``members`` (R, T) bool are the tiles that a region stands for, ``tile_ids`` (T,) and ``text_ids`` (C,) image ids.
    A text with a negative id is never positive.
    """
    same = (tile_ids[:, None] == text_ids[None, :]) & (text_ids[None, :] >= 0)
    return (members.float() @ same.float()) > 0


def matched_bce(logits: Tensor, positive: Tensor, *, negative_weight: float) -> Tensor:
    """Σ_c w_rc · BCE(logits_rc, positive_rc) of every region: (R,).

    w is 1 / (number of the region's positives) for positives and ``negative_weight`` for the others (CLIM release).
    With one positive a row and weight 1, this is official Detic's caption loss.
    """
    target = positive.float()
    weight = torch.where(positive, 1 / target.sum(1, keepdim=True).clamp(min=1), negative_weight)
    return (weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")).sum(1)


def multi_hot_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Σ_k BCE(logits_rk, targets_rk) of every region: (R,), for targets (R, K) of 0 and 1 (CLIM release)."""
    return F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").sum(1)


def one_hot_per_tag_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over a region's tags t of Σ_k BCE(logits_rk, 1[k = t]): (R,), zero for a region without tags.

    An image's other tags are negatives (official Detic). As BCE(s, 1) = BCE(s, 0) - s: Σ_k softplus(s_k) - mean_t s_t.
    """
    targets = targets.float()
    count = targets.sum(1)
    mean_positive = (logits * targets).sum(1) / count.clamp(min=1)
    return (F.softplus(logits).sum(1) - mean_positive) * (count > 0)


def noun_contrast(logits: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
    """softplus(-z_rp) + Σ_v n_rv · softplus(z_rv) of every region, p = positive_r: (R,) (VLDet, vldet §4).

    ``logits`` z (R, V) of V nouns, ``positive`` (R,) the noun of each region, and ``negatives`` n (R, V), how often
    each noun is a negative.
    """
    own = logits.gather(1, positive[:, None])[:, 0]
    return F.softplus(-own) + (negatives * F.softplus(logits)).sum(1)


def sampled_class_bce(regions: Tensor, labels: Tensor, classes: Tensor, sampled: Tensor, *, scale: float) -> Tensor:
    """Mean over regions of Σ_s BCE(scale · cos(region_r, class_s), 1[s = label_r]), a scalar (CLIPSelf's RegionCLIP).

    Regions (R, D), labels (R,) in [0, K), classes (K, D); the ``sampled`` classes (S,) include every label.
    """
    logits = cosine_logits(regions, classes[sampled], temperature=scale)
    return multi_hot_bce(logits, labels[:, None] == sampled).sum() / max(len(regions), 1)


def masked_class_bce(logits: Tensor, gt_classes: Tensor, class_mask: Tensor) -> Tensor:
    """Box-supervised class loss: Σ_r Σ_k m_k · BCE(logits_rk, 1[k = gt_r]) / R, a scalar.

    ``logits`` (R, K) may have a column for the background. ``gt_classes`` (R,) are in [0, K]; a region of K has no
    positive column. ``class_mask`` (K,) is 1 for base classes and 0 for classes without boxes (detic §1.1).
    """
    num_classes = logits.shape[1]
    target = F.one_hot(gt_classes, num_classes + 1)[:, :num_classes].to(logits.dtype)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (bce * class_mask).sum() / max(len(logits), 1)


def federated_class_bce(logits: Tensor, gt_classes: Tensor, classes: Tensor) -> Tensor:
    """Σ_r Σ_{k in classes} BCE(logits_rk, 1[k = gt_r]) / R, a scalar: the federated loss (detic §3.1).

    ``logits`` and ``gt_classes`` as for :func:`masked_class_bce`. ``classes`` (S,) in [0, K] are those that were
    drawn; the background K among them counts if ``logits`` have a column for it.
    """
    classes = classes[classes < logits.shape[1]].unique()
    return multi_hot_bce(logits[:, classes], gt_classes[:, None] == classes).sum() / max(len(logits), 1)


def masked_softmax_ce(logits: Tensor, gt_classes: Tensor, has_boxes: Tensor, *, background_weight: float) -> Tensor:
    """Box-supervised class loss of F-VLM: Σ_r w_r · (-log softmax(logits_r)[gt_r]) / R, a scalar.

    The softmax runs over the classes with boxes and the background. w is ``background_weight`` for background
    regions, 1 for the classes with boxes and 0 for the others (clip_fvlm §4). ``logits`` (R, K + 1), ``gt_classes``
    (R,) in [0, K], where K is the background, and ``has_boxes`` (K,) bool.
    """
    weight = torch.cat([has_boxes.to(logits.dtype), logits.new_tensor([background_weight])])
    masked = logits.masked_fill(F.pad(~has_boxes, (0, 1)), -torch.inf)
    nll = F.cross_entropy(masked, gt_classes, reduction="none")
    weight = weight[gt_classes]
    return torch.where(weight > 0, weight * nll, 0.0).sum() / max(len(logits), 1)


def symmetric_info_nce(
    images: Tensor, texts: Tensor, all_images: Tensor, all_texts: Tensor, *, scale: Tensor | float, start: int = 0
) -> Tensor:
    """½ [CE(scale · images · all_textsᵀ, y) + CE(scale · texts · all_imagesᵀ, y)], y_r = r + ``start``, a scalar.

    ``images`` and ``texts`` (R, D) are unit rows of this process; among the (N, D) rows of all processes they start at
    row ``start``. Each CE is a mean over R, in float32, also inside autocast (clip_fvlm §2).
    """
    if len(images) == 0:
        return (images.sum() + all_images.sum()) * 0.0 * scale
    with torch.autocast(images.device.type, enabled=False):
        target = torch.arange(len(images), device=images.device) + start
        to_texts = F.cross_entropy(scale * images @ all_texts.T, target)
        to_images = F.cross_entropy(scale * texts @ all_images.T, target)
    return (to_texts + to_images) / 2


def matched_contrast(regions: Tensor, region_ids: Tensor, texts: Tensor, text_ids: Tensor, *, scale: float) -> Tensor:
    """½ [ℓ(S, Y) + ℓ(Sᵀ, Yᵀ)], S = scale · regions · textsᵀ, Y = 1 where image ids match, a scalar (BARON, baron §5).

    ℓ(S, Y) is the mean over rows of -Σ_c Y_rc · log softmax(S_r)_c / (Σ_c Y_rc + 1e-6), in float32, also inside
    autocast. With one positive a row it is InfoNCE; a row without positives counts as 0. Regions (R, D) and texts
    (C, D) are unit rows of the batch and of the queues, with image ids >= 0.
    """
    if len(regions) == 0 or len(texts) == 0:
        return (regions.sum() + texts.sum()) * 0.0
    with torch.autocast(regions.device.type, enabled=False):
        logits = scale * regions.float() @ texts.float().T
        same = (region_ids[:, None] == text_ids[None, :]).float()
        return (_mean_positive_nll(logits, same) + _mean_positive_nll(logits.T, same.T)) / 2


def _mean_positive_nll(logits: Tensor, positive: Tensor) -> Tensor:
    nll = -(positive * logits.log_softmax(1)).sum(1)
    return (nll / (positive.sum(1) + 1e-6)).mean()


# ---- CenterNet's proposals (detic §3.1): N locations of all levels, P of them positive


def heat_map_losses(
    logits: Tensor, heat_map: Tensor, positives: Tensor, *, alpha: float, beta: float, gamma: float, clamp: float,
    ignore_above: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """-α·Σ_positives log(p)·(1 - p)^γ and -(1 - α)·Σ_{p < ignore_above} log(1 - p)·p^γ·(1 - h)^β: two float32 scalars.

    p = sigmoid(``logits``) stays ``clamp`` away from 0 and 1, without gradient beyond; h = ``heat_map``, both (N,).
    ``positives`` (P,) int64 are locations; one that comes twice counts twice.
    """
    p = logits.float().sigmoid().clamp(clamp, 1 - clamp)
    hits = p[positives]
    positive = (hits.log() * (1 - hits) ** gamma).sum()
    negative = ((1 - p).log() * p**gamma * (1 - heat_map) ** beta * (p < ignore_above)).sum()
    return -alpha * positive, -(1 - alpha) * negative


def ltrb_giou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU (P,) of boxes given by distances (P, 4) from a location to left, top, right, bottom; float32.

    IoU is (intersection + 1) / (union + 1); the enclosing box has no such 1. Target boxes have an area.
    """

    def area(distances):
        left, top, right, bottom = distances.float().unbind(1)
        return (left + right) * (top + bottom)

    intersection, enclosing = area(torch.minimum(predicted, target)), area(torch.maximum(predicted, target))
    union = area(predicted) + area(target) - intersection
    return 1 - (intersection + 1) / (union + 1) + (enclosing - union) / enclosing


# ---- OV-RCNN's grounding: words of captions against locations of images (ovrcnn §1.3, §3)
# T tiles, each with a caption; L words and N locations, both padded; D width.

# MODEL.METHOD.GROUNDING.LOCAL_METRIC -> what words and locations become before their dot products.
LOCAL_METRICS = {"dot": lambda vectors: vectors, "cosine": lambda vectors: F.normalize(vectors, dim=-1)}


def aligned_local(words: Tensor, is_word: Tensor, locations: Tensor, is_location: Tensor, *, temperature: float):
    """Scores of every caption (row) with every tile (column), in float32, also inside autocast.

    With s_cn = ⟨word c of caption i, location n of tile j⟩ / ``temperature``:

        words: S_ij = mean_c Σ_n softmax_n(s_cn) · s_cn        cells: S_ij = mean_n Σ_c softmax_c(s_cn) · s_cn

    Official OVR-CNN uses dot products and temperature 10. A caption without words or a tile without locations scores 0.
    Words (T, L, D), locations (T, N, D), L and N at least 1; ``is_word`` (T, L) and ``is_location`` (T, N) are False
    for padding and hidden words. Returns {"words": (T, T), "cells": (T, T)}; the losses in the logs have these names.
    """
    with torch.autocast(words.device.type, enabled=False):
        scores = torch.einsum("icd,jnd->ijcn", words.float(), locations.float()) / temperature
        pairs = is_word[:, None, :, None] & is_location[None, :, None, :]
        # As in the official code. -inf would give nan where no pair is left.
        candidates = torch.where(pairs, scores, scores.detach().min() - 100)
        of_words = (candidates.softmax(3) * scores * pairs).sum((2, 3))
        of_locations = (candidates.softmax(2) * scores * pairs).sum((2, 3))
        num_words, num_locations = is_word.sum(1).clamp(min=1), is_location.sum(1).clamp(min=1)
        return {"words": of_words / num_words[:, None], "cells": of_locations / num_locations[None, :]}


def mean_of_pairs(words: Tensor, is_word: Tensor, locations: Tensor, is_location: Tensor, *, temperature: float):
    """{"pairs": (T, T)}, S_ij = mean over c, n of ⟨word c of caption i, location n of tile j⟩ / ``temperature``.

    CLIM's paper has it for OV-RCNN, with cosines and no temperature. Arguments as in :func:`aligned_local`.
    """
    with torch.autocast(words.device.type, enabled=False):
        return {"pairs": _mean(words.float(), is_word) @ _mean(locations.float(), is_location).T / temperature}


# MODEL.METHOD.GROUNDING.GLOBAL_METRIC -> the function that computes the matrices of scores.
GLOBAL_METRICS = {"aligned_local": aligned_local, "mean": mean_of_pairs}


def choices(scores: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropies of the rows of ``scores`` (T, T), where captions choose images, and of the columns.

    ``ids`` (T,) are image ids. Another tile of the same image is not a candidate.
    """
    again = (ids[:, None] == ids).fill_diagonal_(False)
    scores = scores.masked_fill(again, -torch.inf)
    target = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(scores, target), F.cross_entropy(scores.T, target)


def _mean(vectors: Tensor, real: Tensor) -> Tensor:
    return (vectors * real[..., None]).sum(1) / real.sum(1).clamp(min=1)[:, None]
