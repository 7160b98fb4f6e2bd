"""Learning rate and schedule for the processes and pictures that there are."""

import logging

from clim.data.loader import batch_sizes, source_records

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


def count_epochs(cfg, world_size: int):
    """The config with SOLVER.EPOCHS, if above 0, turned into SOLVER.MAX_ITER; a left-over batch is not counted.

    An epoch is one pass over the single pictures; where a run has none, over the pictures with labelled
    regions, else over those with boxes.
    """
    epochs = cfg.SOLVER.EPOCHS
    if epochs <= 0:
        return cfg
    sizes = batch_sizes(cfg)
    source = next(name for name in ("captions", "regions", "detection", "mosaics") if name in sizes)
    pictures = len(source_records(cfg, source))
    counted = cfg.clone()
    counted.defrost()
    steps = max(1, pictures // (sizes[source] * world_size))
    counted.SOLVER.MAX_ITER = max(1, round(epochs * steps))
    counted.freeze()
    logger.info(
        "%g epochs of %d pictures (%s), %d a step: SOLVER.MAX_ITER %d",
        epochs, pictures, source, sizes[source] * world_size, counted.SOLVER.MAX_ITER,
    )  # fmt: skip
    return counted


def _at(cfg, key: str):
    section, name = key.split(".")
    return cfg[section][name]
