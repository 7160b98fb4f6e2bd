"""Detect or classify, and score: every set of DATASETS.TEST, in the trainer's process or alone."""

import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm

from clim.data.regions import build_region_test_loader
from clim.data.test_loader import detection_test_loader
from clim.evaluation import OVCOCOEvaluator, RegionClassificationEvaluator
from clim.files import write_json

from .rank_state import random_states_kept

EVALUATION_FILE = "evaluation.json"
logger = logging.getLogger(__name__)


class Protocol(NamedTuple):
    """How a kind of data set is scored: ``evaluator(cfg, name)``, then ``loader(cfg, name, evaluator)``."""

    evaluator: Callable[..., DatasetEvaluator]
    loader: Callable


def _detections(cfg, name: str) -> OVCOCOEvaluator:
    return OVCOCOEvaluator(name, output_dir=_output_dir(cfg, name), protocol=cfg.TEST.PROTOCOL)


def _regions(cfg, name: str) -> RegionClassificationEvaluator:
    return RegionClassificationEvaluator(
        name, output_dir=_output_dir(cfg, name), variants=tuple(cfg.TEST.REGIONS)
    )


def _output_dir(cfg, name: str) -> str:
    return os.path.join(cfg.OUTPUT_DIR, "inference", name)


# By the ``evaluator_type`` of a set's metadata. Sets of any other type have to be OV-COCO's kind.
PROTOCOLS = {
    "ov_coco": Protocol(_detections, lambda cfg, name, _: detection_test_loader(cfg, name)),
    "regions": Protocol(
        _regions, lambda cfg, name, evaluator: build_region_test_loader(cfg, name, on_skip=evaluator.skip)
    ),
}


def protocol_of(name: str) -> Protocol:
    """How the registered data set ``name`` is scored."""
    return PROTOCOLS.get(MetadataCatalog.get(name).get("evaluator_type"), PROTOCOLS["ov_coco"])


def build_evaluators(cfg) -> dict[str, DatasetEvaluator]:
    """{data set: its evaluator}; UserError where a set cannot be scored, best asked before training."""
    return {name: protocol_of(name).evaluator(cfg, name) for name in cfg.DATASETS.TEST}


@torch.no_grad()
def evaluate(cfg, model) -> dict:
    """Score every set of DATASETS.TEST; leaves random states alone.

    Returns {task: {figure: value}} for one set, e.g. {"bbox": {"AP50_novel": …}} or {"regions": {"Top1_macro":
    …}}, and {set: {task: {…}}} for several, on the main process; there OUTPUT_DIR/evaluation.json holds the
    newest figures, {"AP50_novel": …} or {set: {"AP50_novel": …}}.
    """
    results = {}
    with random_states_kept():  # training must not notice what the loader draws
        for name, evaluator in build_evaluators(cfg).items():
            loader = protocol_of(name).loader(cfg, name, evaluator)
            results[name] = inference_on_dataset(model, loader, evaluator)
            if comm.is_main_process():
                print_csv_format(results[name])
    if not (comm.is_main_process() and results):
        return {}
    figures = {name: flat_figures(result) for name, result in results.items()}
    if len(results) == 1:
        (results,), (figures,) = results.values(), figures.values()
    write_json(Path(cfg.OUTPUT_DIR) / EVALUATION_FILE, figures, indent=1)
    return results


def flat_figures(result: Mapping[str, Mapping[str, float]]) -> dict[str, float | None]:
    """{figure: value, None for nan} of an evaluator's {task: {figure: value}}; "task/figure" of several tasks."""
    return {
        key if len(result) == 1 else f"{task}/{key}": None if math.isnan(value) else value
        for task, figures in result.items()
        for key, value in figures.items()
    }
