"""From command line to a frozen config, and what every entry point shares."""

import logging
import sys

import torch
from detectron2.config import get_cfg
from detectron2.engine import default_setup
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from clim.config import add_clim_config
from clim.errors import UserError

DETECTRON2_IMS_PER_BATCH = 16  # Detectron2's default: any other value was meant to be read
logger = logging.getLogger(__name__)


def load_config(config_file: str, overrides: list[str]):
    """The config of a YAML and command-line overrides, with the device that is really there; frozen."""
    cfg = get_cfg()
    add_clim_config(cfg)
    try:
        if config_file:
            cfg.merge_from_file(config_file)
        cfg.merge_from_list(overrides)
    except (FileNotFoundError, KeyError, ValueError, AssertionError) as error:
        raise UserError(f"{config_file or 'Overrides'} {' '.join(overrides)}: {error}") from error
    if cfg.SOLVER.IMS_PER_BATCH != DETECTRON2_IMS_PER_BATCH:
        raise UserError(
            "SOLVER.IMS_PER_BATCH is not read: batch sizes are per GPU here, in DATALOADER.DETECTION_PER_GPU, "
            "CAPTIONS_PER_GPU and MOSAICS_PER_GPU."
        )
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def setup(args):
    """Config, logging, seeds and output folder of a command that trains or evaluates."""
    cfg = load_config(args.config_file, args.opts)
    default_setup(cfg, args)
    if cfg.MODEL.DEVICE == "cpu":
        logging.getLogger("clim").info("No CUDA device is used: running on the CPU.")
    return cfg


def run_cleanly(function, *args, **kwargs):
    """Call; a :class:`UserError`, here or in a spawned process, becomes one line on stderr and exit code 2."""
    try:
        return function(*args, **kwargs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (ProcessRaisedException, ProcessExitedException) as error:
        if getattr(error, "exit_code", None) == 2:  # that process has said why
            sys.exit(2)
        raise
