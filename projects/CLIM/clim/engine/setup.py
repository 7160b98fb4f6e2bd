"""From a command line to a frozen config, the checks of a config, and the config that a checkpoint holds.

The checks find mistakes that would otherwise show late, or give wrong results without an error. A mistake that
stops the program at once with a clear error has no check here.
"""

import argparse
import io
import logging
import threading
from functools import cache
from operator import attrgetter

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils import logger as d2_logger
from detectron2.utils.logger import setup_logger

from clim.checkpoints.reading import read_description
from clim.config import add_clim_config
from clim.config_files import entries, merge, override_entries, parse_yaml, read_config, shown
from clim.config_values import check_values
from clim.data.datasets import register_own_sets
from clim.data.loader import STREAMS, batch_sizes
from clim.data.names import matched, vocabulary_names
from clim.data.own_data import use_own_data
from clim.errors import UserError, near, require_packages, sentence
from clim.evaluation import EVALUATORS
from clim.files import naming
from clim.methods import METHOD_REGISTRY
from clim.modeling.vocabulary import class_mask, num_classes
from clim.processes import hold_folder

logger = logging.getLogger(__name__)

CHECKPOINTS = (".pth", ".pt")  # endings of a config_file that is a checkpoint
# Keys that name files, folders or sets of the training. The checkpoint holds what inference needs of them.
_OF_THE_TRAINING = """
    DATASETS.OWN DATASETS.DATA MODEL.WEIGHTS MODEL.TRUST_WEIGHTS MODEL.DEVICE MODEL.VOCABULARY.NAMES
    MODEL.VOCABULARY.EMBEDDINGS MODEL.OPEN_VOCAB.BASE_CLASSES MODEL.TEXT.CACHE MODEL.METHOD.VLDET.EMBEDDINGS
    OUTPUT_DIR"""


def load_config(config_file: str, overrides: list):
    """The frozen config of a YAML file and KEY, VALUE, … overrides; without CUDA on the CPU. UserError for bad ones.

    ``config_file`` may be a checkpoint of our trainer: its own config (:func:`merge_described`).
    """
    cfg, sources = get_cfg(), {}
    add_clim_config(cfg)
    if config_file.endswith(CHECKPOINTS):
        sources = merge_described(cfg, config_file)
    elif config_file and not config_file.endswith((".yaml", ".yml")):
        raise UserError(
            f"{config_file} is neither a checkpoint that holds its config ({', '.join(CHECKPOINTS)}) nor a YAML: name "
            "such a checkpoint, or for weights of another program their config too, as --config-file."
        )
    elif config_file:
        sources = merge(cfg, read_config(config_file))
    check_values(cfg, sources | merge(cfg, override_entries(overrides)))
    if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1 and torch.cuda.is_available():
        remedy = 'hide the GPUs with CUDA_VISIBLE_DEVICES="", or train on them'
        raise UserError(f"MODEL.DEVICE is cpu, but processes on a machine with GPUs communicate by NCCL: {remedy}.")
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    require_device(cfg.MODEL.DEVICE)
    register_own_sets(cfg.DATASETS.OWN)
    if cfg.DATASETS.DATA:
        use_own_data(cfg, overrides)
    cfg.freeze()
    return cfg


def require_device(name: str) -> None:
    """UserError where this machine has no device ``name``, as "cuda:1". No device is opened."""
    kind, _, number = name.partition(":")
    if int(number or 0) >= (count := torch.get_device_module(kind).device_count()):
        raise UserError(f"The device is {name}, but this machine has {count or 'no'} {kind.upper()}: name another one.")


def describe(cfg) -> dict:
    """A checkpoint's entry about itself, as :func:`clim.checkpoints.read_description` returns it."""
    names, base = vocabulary_names(cfg), None
    if cfg.MODEL.OPEN_VOCAB.BASE_CLASSES:
        base = [name for name, count in zip(names, class_mask(cfg).tolist(), strict=True) if count > 0]
    return {
        "config": cfg.dump(), "class_names": names, "base_classes": base, "train_sets": list(cfg.DATASETS.TRAIN),
        "rows": num_classes(cfg),
    }  # fmt: skip


def merge_described(cfg: CfgNode, path: str) -> dict[str, str]:
    """Merge into ``cfg``, which has the defaults, the config that the checkpoint ``path`` describes, as ``merge`` does.

    Classes and weights come from the file itself. Paths of the training, which may be gone, get their defaults, and so
    does the device. UserError if the file has no description.
    """
    description = read_description(path)
    if description is None:
        raise UserError(
            f"{path} does not hold the config of its training (an older file, or another program's): name its config "
            "too, as --config-file or Detector(path, config=…); docs/checkpoints.md lists those of published files."
        )
    defaults = {key: attrgetter(key)(cfg) for key in _OF_THE_TRAINING.split()}
    source = f"the config inside {path}"
    content = parse_yaml(description["config"], source=source)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {shown(content)} as its config, not sections of keys: take another file.")
    sources = merge(cfg, entries(content, source=source))
    of_the_file = {
        "MODEL.WEIGHTS": str(path), "MODEL.VOCABULARY.STORED": description["class_names"],
        "MODEL.ROI_HEADS.NUM_CLASSES": description["rows"], "MODEL.IMAGE_ENCODER.PRETRAINED": "",
    }  # fmt: skip
    return sources | merge(cfg, ((key, value, source) for key, value in (defaults | of_the_file).items()))


def setup(args):
    """The checked config; also prepares the log, the seeds and the output folder."""
    cfg = load_config(args.config_file, args.opts)
    if not args.eval_only and comm.is_main_process():  # before the first file; the run before may still be saving
        hold_folder(cfg.OUTPUT_DIR, wait=60.0 if args.resume else 0.0)
    quiet_writing()
    shown = {"config_file": ""} if args.config_file.endswith(CHECKPOINTS) else {}  # the log shows the file's text
    with naming(cfg.OUTPUT_DIR):
        default_setup(cfg, argparse.Namespace(**vars(args) | shown))
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="clim")
    if cfg.MODEL.DEVICE == "cpu":
        reason = "MODEL.DEVICE is cpu" if torch.cuda.is_available() else "no CUDA device was found"
        logger.info("Running on the CPU: %s.", reason)
    if not args.eval_only:
        check_training(cfg)
        check_hooks(cfg)
    check_datasets(cfg, training=not args.eval_only)
    for name in () if args.eval_only else cfg.DATASETS.TEST:  # a mistake shows before the training, not after it
        if not DatasetCatalog.get(name):
            raise UserError(f"DATASETS.TEST {name} has no image.")
    return cfg


def quiet_writing() -> None:
    """Let lines of the log that do not fit on the disk be lost without a traceback, and TensorBoard's thread end so.

    The main thread gets the same error from metrics.json, a checkpoint or TensorBoard's writer, and tells it.
    """
    logging.raiseExceptions = False
    d2_logger._cached_log_stream = _log_stream
    threading.excepthook = lambda args: None if sentence(args.exc_value) else threading.__excepthook__(args)


@cache
def _log_stream(filename: str) -> io.TextIOWrapper:
    """Holds nothing back that would be written when the program ends; names that are no UTF-8 are escaped."""
    file = open(filename, "ab", buffering=0)
    return io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", write_through=True)


def check_training(cfg) -> None:
    """UserError where the model cannot learn from the configured sources, or would not use one of them."""
    method, architecture = cfg.MODEL.METHOD.NAME, cfg.MODEL.META_ARCHITECTURE
    sizes = batch_sizes(cfg)
    pairs = [f"DATALOADER.{source.upper()}_PER_GPU {size}" for source, size in sizes.items() if source != "detection"]
    if bool(pairs) != bool(method):
        raise UserError(
            f"MODEL.METHOD.NAME is {method!r}, with {pairs[0] if pairs else 'no image-text pairs'}: a method needs "
            "DATALOADER.CAPTIONS_PER_GPU, MOSAICS_PER_GPU or REGIONS_PER_GPU, and each of these needs a method."
        )
    model = META_ARCH_REGISTRY.get(architecture)
    readers = {f"MODEL.META_ARCHITECTURE {architecture}": getattr(model, "sources", STREAMS)}
    if method:
        readers[f"MODEL.METHOD.NAME {method}"] = {"detection", *METHOD_REGISTRY.get(method).sources}
    for reader, read in readers.items():
        for source in sizes.keys() - read:
            key = f"DATALOADER.{source.upper()}_PER_GPU"
            raise UserError(f"{key} is {sizes[source]}, but {reader} does not learn from {source}: set it to 0.")
    if cfg.INPUT.MOSAIC.COMPOSE == "device" and (architecture != "ImageTextModel" or sizes.keys() - {"captions"}):
        remedy = 'set MOSAICS_PER_GPU and REGIONS_PER_GPU to 0, or COMPOSE to "loader"'
        raise UserError(f"INPUT.MOSAIC.COMPOSE device needs ImageTextModel and CAPTIONS_PER_GPU alone: {remedy}.")
    section, other = ("VLDET", "NOUN_WEIGHT") if method == "VLDet" else ("DETIC", "TAG_WEIGHT")
    weights = cfg.MODEL.METHOD[section]
    if method in ("Detic", "OfficialDetic", "VLDet") and not any((weights.CAPTION_WEIGHT, weights[other])):
        raise UserError(f"MODEL.METHOD.{section}.CAPTION_WEIGHT and {other} are both 0: pairs give no loss.")


def check_hooks(cfg) -> None:
    """UserError for an event writer without its package, and for hooks that would do nothing or contradict others."""
    for name in cfg.SOLVER.WRITERS:
        require_packages(f'SOLVER.WRITERS "{name}"', [name])
    if cfg.SOLVER.EMA > 0 and cfg.SOLVER.WEIGHT_ENSEMBLE < 1:
        remedy = "set SOLVER.EMA 0.0 or SOLVER.WEIGHT_ENSEMBLE 1.0"
        raise UserError(f"SOLVER.EMA and SOLVER.WEIGHT_ENSEMBLE would both replace the trained weights: {remedy}.")
    if cfg.TEST.BEST_METRIC and not (cfg.DATASETS.TEST and cfg.TEST.EVAL_PERIOD > 0):
        remedy = 'set DATASETS.TEST and TEST.EVAL_PERIOD (iterations), or TEST.BEST_METRIC ""'
        raise UserError(f"TEST.BEST_METRIC {cfg.TEST.BEST_METRIC} needs evaluations during the training: {remedy}.")


def check_datasets(cfg, *, training: bool) -> None:
    """UserError for a data set that is unknown, does not suit the model or has other words, or if none is left."""
    architecture = cfg.MODEL.META_ARCHITECTURE
    kinds = getattr(META_ARCH_REGISTRY.get(architecture), "evaluated_on", None)
    if kinds == () and (cfg.DATASETS.TEST or not training):
        remedy = "set DATASETS.TEST (), and evaluate a detector that starts from it"
        raise UserError(f"MODEL.META_ARCHITECTURE {architecture} cannot be evaluated: {remedy}.")
    if not training and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: there is nothing to evaluate on.")
    for key in ("TRAIN", "CAPTIONS", "REGIONS", "TEST") if training else ("TEST",):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog.list():
                hint = near(name, DatasetCatalog.list()) or "."
                raise UserError(f"DATASETS.{key} names {name}, which is not registered{hint}")
            kind = MetadataCatalog.get(name).get("evaluator_type")
            kind = kind if kind in EVALUATORS else "ov_coco"
            if key == "TEST" and kinds is not None and kind not in kinds:
                suits = f"MODEL.META_ARCHITECTURE {architecture} is evaluated on {' and '.join(kinds)}"
                raise UserError(f"DATASETS.TEST {name} has the type {kind}, but {suits}: choose another set.")
            if key in ("TRAIN", "TEST"):
                matched(cfg, key, name)
