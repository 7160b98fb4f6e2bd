"""Learning rate and schedule for another number of processes than the config was written for."""

import logging

logger = logging.getLogger(__name__)

_PERIODS = (
    ("SOLVER", "MAX_ITER"),
    ("SOLVER", "WARMUP_ITERS"),
    ("SOLVER", "CHECKPOINT_PERIOD"),
    ("TEST", "EVAL_PERIOD"),
)


def scale_to_world(cfg, world_size: int):
    """The config for ``world_size`` processes instead of SOLVER.REFERENCE_WORLD_SIZE; 0 there: as it is.

    Batch sizes are per process, so the total batch follows the number of processes. The learning rate follows
    in proportion, everything counted in iterations in inverse proportion (Goyal et al., arXiv 1706.02677), by
    the rule of Detectron2's ``DefaultTrainer.auto_scale_workers``, which also scales a total batch size that
    nothing here reads. A period never becomes 0, which would switch it off.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference in (0, world_size):
        return cfg
    scaled = cfg.clone()
    scaled.defrost()
    factor = reference / world_size
    scaled.SOLVER.BASE_LR = cfg.SOLVER.BASE_LR / factor
    scaled.SOLVER.STEPS = tuple(round(step * factor) for step in cfg.SOLVER.STEPS)
    for section, key in _PERIODS:
        if (period := cfg[section][key]) > 0:
            scaled[section][key] = max(1, round(period * factor))
    scaled.SOLVER.REFERENCE_WORLD_SIZE = world_size
    scaled.freeze()
    keys = ("SOLVER.BASE_LR", "SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.WARMUP_ITERS",
            "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD")  # fmt: skip
    logger.info(
        "The config is written for %d processes and runs on %d, so the learning rate and all iteration "
        "counts are scaled: %s. SOLVER.REFERENCE_WORLD_SIZE 0 switches this off.",
        reference,
        world_size,
        ", ".join(f"{key} {_at(cfg, key)} -> {_at(scaled, key)}" for key in keys if _at(cfg, key)),
    )
    return scaled


def _at(cfg, key: str):
    section, name = key.split(".")
    return cfg[section][name]
