"""Optimiser, learning rate and number of iterations for the processes and images that there are."""

import logging
from operator import attrgetter

import numpy as np
import torch
from detectron2.solver import build_lr_scheduler
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping

from clim.data.loader import batch_sizes, repeat_factors, source_records
from clim.errors import UserError

logger = logging.getLogger(__name__)

PRETRAINED = ("backbone.", "roi_heads.res5.", "image_encoder.")
_PERIODS = ("SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD")


def _changed(cfg, *overrides):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(list(overrides))
    cfg.freeze()
    return cfg


def build_solver(cfg, model: torch.nn.Module):
    """Optimiser and learning-rate schedule. Of SOLVER.STEPS those count that are within the training, each once."""
    steps = tuple(sorted({step for step in cfg.SOLVER.STEPS if 0 < step < cfg.SOLVER.MAX_ITER}))
    if steps != tuple(cfg.SOLVER.STEPS):  # few iterations, or rounded numbers
        logger.info("Of SOLVER.STEPS %s the training has %s.", list(cfg.SOLVER.STEPS), list(steps))
        cfg = _changed(cfg, "SOLVER.STEPS", steps)
    if cfg.SOLVER.WARMUP_ITERS >= cfg.SOLVER.MAX_ITER:  # warm-up only: there is nothing to rescale
        cfg = _changed(cfg, "SOLVER.RESCALE_INTERVAL", False)
    optimizer = build_optimizer(cfg, model)
    return optimizer, build_lr_scheduler(cfg, optimizer)


def build_optimizer(cfg, model: torch.nn.Module) -> torch.optim.Optimizer:
    """SGD as Detectron2 builds it, or AdamW with SOLVER.BACKBONE_MULTIPLIER on the pre-trained part."""
    solver = cfg.SOLVER
    if solver.OPTIMIZER == "SGD":
        return build_sgd(cfg, model)
    overrides = {"logit_scale": {"weight_decay": 0.0}}  # a factor, not a weight
    if solver.WEIGHT_DECAY_BIAS is not None:  # Detectron2 recognises biases by the name "bias" only
        overrides["in_proj_bias"] = {"weight_decay": solver.WEIGHT_DECAY_BIAS}
    groups = get_default_optimizer_params(
        model, base_lr=solver.BASE_LR, weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR, weight_decay_bias=solver.WEIGHT_DECAY_BIAS, overrides=overrides,
        lr_factor_func=lambda name: solver.BACKBONE_MULTIPLIER if name.startswith(PRETRAINED) else 1.0,
    )  # fmt: skip
    if next(model.parameters()).is_cuda:  # one kernel; SGD's fails if a weight has its first gradient in a later step
        groups = [group | {"fused": True} for group in groups]
    options = {"betas": tuple(solver.BETAS), "eps": solver.EPS, "weight_decay": solver.WEIGHT_DECAY}
    return maybe_add_gradient_clipping(cfg, torch.optim.AdamW(groups, lr=solver.BASE_LR, **options))


def scale_to_world(cfg, world_size: int):
    """The config for ``world_size`` processes in place of SOLVER.REFERENCE_WORLD_SIZE; unchanged if that is 0.

    A process counts SOLVER.ACCUMULATE times, once for each batch of a step. Batch sizes are per process. So the
    learning rate grows with the number of processes, and iteration counts shrink (Goyal et al., arXiv 1706.02677), as
    in Detectron2's ``DefaultTrainer.auto_scale_workers``. A period never becomes 0, which would switch it off.
    """
    reference, world_size = cfg.SOLVER.REFERENCE_WORLD_SIZE, world_size * cfg.SOLVER.ACCUMULATE
    if reference in (0, world_size):
        return cfg
    factor = reference / world_size
    new = {
        "SOLVER.BASE_LR": cfg.SOLVER.BASE_LR / factor,
        "SOLVER.STEPS": tuple(round(step * factor) for step in cfg.SOLVER.STEPS),
    }
    old = {key: attrgetter(key)(cfg) for key in (*new, *_PERIODS)}
    new |= {key: max(1, round(old[key] * factor)) for key in _PERIODS if old[key] > 0}
    shown = ", ".join(f"{key} {old[key]} -> {new[key]}" for key in new if old[key])
    logger.info(
        f"The config is for {reference} processes. With {world_size}, learning rate and iteration counts change: "
        f"{shown}. SOLVER.REFERENCE_WORLD_SIZE 0 switches this off."
    )
    changes = [part for item in new.items() for part in item]
    return _changed(cfg, *changes, "SOLVER.REFERENCE_WORLD_SIZE", world_size)


def count_epochs(cfg, world_size: int):
    """The config with SOLVER.MAX_ITER from SOLVER.EPOCHS, and SOLVER.STEPS from STEP_EPOCHS if there are any.

    Unchanged if EPOCHS is 0. An epoch is one pass over the first source there is: single images, images with labelled
    regions, images with boxes, mosaics. Images with boxes count as often as
    :func:`~clim.data.loader.repeat_factors` repeats them, so an epoch is as long as MMDetection's (clip_fvlm §4). An
    incomplete step, of ``world_size`` x ACCUMULATE batches, does not count. UserError for STEP_EPOCHS without EPOCHS.
    """
    epochs, drops = cfg.SOLVER.EPOCHS, cfg.SOLVER.STEP_EPOCHS
    if epochs <= 0:
        if drops:
            raise UserError(f"SOLVER.STEP_EPOCHS {list(drops)} needs SOLVER.EPOCHS: set it, or SOLVER.STEPS instead.")
        return cfg
    sizes = batch_sizes(cfg)
    source = next(name for name in ("captions", "regions", "detection", "mosaics") if name in sizes)
    records = source_records(cfg, source)
    factors = repeat_factors(cfg, records) if source == "detection" else None
    images = len(records) if factors is None else round(factors.sum(dtype=np.float64))
    step = sizes[source] * world_size * cfg.SOLVER.ACCUMULATE
    length = max(1, images // step)
    iterations = max(1, round(epochs * length))
    steps = tuple(round(drop * length) for drop in drops) or cfg.SOLVER.STEPS
    numbers = (epochs, images, source, step, iterations, steps)
    logger.info("%g epochs of %d images (%s), %d a step: MAX_ITER %d, STEPS %s", *numbers)
    return _changed(cfg, "SOLVER.MAX_ITER", iterations, "SOLVER.STEPS", steps)
