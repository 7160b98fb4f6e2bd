"""SGD as Detectron2 builds it, or AdamW with a slower pre-trained part."""

import torch
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping

from clim.errors import UserError

PRETRAINED = ("backbone.", "roi_heads.res5.", "image_encoder.")


def build_optimizer(cfg, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimiser named by ``cfg.SOLVER.OPTIMIZER``."""
    solver = cfg.SOLVER
    if solver.OPTIMIZER == "SGD":
        return build_sgd(cfg, model)
    if solver.OPTIMIZER != "ADAMW":
        raise UserError(f'SOLVER.OPTIMIZER is "{solver.OPTIMIZER}": choose "SGD" or "ADAMW".')
    overrides = {"logit_scale": {"weight_decay": 0.0}}  # a factor, not a weight
    if solver.WEIGHT_DECAY_BIAS is not None:  # Detectron2 knows biases by the name "bias" alone
        overrides["in_proj_bias"] = {"weight_decay": solver.WEIGHT_DECAY_BIAS}
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: solver.BACKBONE_MULTIPLIER if name.startswith(PRETRAINED) else 1.0,
        overrides=overrides,
    )
    optimizer = torch.optim.AdamW(
        groups, lr=solver.BASE_LR, betas=tuple(solver.BETAS), eps=solver.EPS, weight_decay=solver.WEIGHT_DECAY
    )
    return maybe_add_gradient_clipping(cfg, optimizer)
