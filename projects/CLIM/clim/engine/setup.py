"""From command line to a frozen config, and what every entry point shares."""

import logging

import torch
import yaml
from detectron2.config import get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from clim.config import add_clim_config
from clim.data.datasets import register_own_sets
from clim.errors import UserError

from .checks import check_composition, check_datasets, check_device, check_keys, check_sources
from .ranges import check_ranges

logger = logging.getLogger(__name__)


def load_config(config_file: str, overrides: list):
    """The config of a YAML and KEY, VALUE, … overrides, with the device that is really there; frozen."""
    cfg = get_cfg()
    add_clim_config(cfg)
    try:
        if config_file:
            cfg.merge_from_file(config_file)
        cfg.merge_from_list(overrides)
    except (OSError, KeyError, ValueError, AssertionError, AttributeError, yaml.YAMLError) as error:
        where = " ".join(map(str, [config_file or "the defaults", *overrides]))
        raise UserError(f"The config cannot be read ({where}): {_one_line(error)}") from error
    check_device(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    check_keys(cfg)
    register_own_sets(cfg.DATASETS.OWN)
    cfg.freeze()
    return cfg


def setup(args):
    """Config, logging, seeds and output folder of a command that trains or evaluates."""
    cfg = load_config(args.config_file, args.opts)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="clim")
    if cfg.MODEL.DEVICE == "cpu":
        reason = "MODEL.DEVICE is cpu" if torch.cuda.is_available() else "no CUDA device was found"
        logger.info("Running on the CPU: %s.", reason)
    if not args.eval_only:
        check_ranges(cfg)
        check_sources(cfg)
        check_composition(cfg)
    check_datasets(cfg, training=not args.eval_only)
    return cfg


def _one_line(error: Exception) -> str:
    told = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(told).split())
