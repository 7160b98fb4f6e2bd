"""Detect and score: every set of DATASETS.TEST, in the trainer's process or alone."""

import json
import logging
import math
import os
from pathlib import Path

import torch
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm

from clim.evaluation import OVCOCOEvaluator

from .rank_state import random_states_kept

EVALUATION_FILE = "evaluation.json"
logger = logging.getLogger(__name__)


def build_evaluators(cfg) -> dict[str, OVCOCOEvaluator]:
    """{data set: its evaluator}; UserError where a set cannot be scored, best asked before training."""
    return {
        name: OVCOCOEvaluator(
            name, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference", name), protocol=cfg.TEST.PROTOCOL
        )
        for name in cfg.DATASETS.TEST
    }


@torch.no_grad()
def evaluate(cfg, model) -> dict:
    """AP50 novel / base / all on every set of DATASETS.TEST; leaves random states alone.

    Returns {"bbox": {"AP50_novel": …}} for one set and {set: {"bbox": {…}}} for several, on the main process;
    there OUTPUT_DIR/evaluation.json holds the newest figures, {"AP50_novel": …} or {set: {"AP50_novel": …}}.
    """
    results = {}
    with random_states_kept():  # training must not notice what the loader draws
        for name, evaluator in build_evaluators(cfg).items():
            results[name] = inference_on_dataset(model, build_detection_test_loader(cfg, name), evaluator)
            if comm.is_main_process():
                print_csv_format(results[name])
    if not (comm.is_main_process() and results):
        return {}
    figures = {name: _without_nan(result["bbox"]) for name, result in results.items()}
    if len(results) == 1:
        (results,), (figures,) = results.values(), figures.values()
    _write_json(Path(cfg.OUTPUT_DIR) / EVALUATION_FILE, figures)
    return results


def _without_nan(figures: dict) -> dict:
    return {key: None if math.isnan(value) else value for key, value in figures.items()}


def _write_json(path: Path, value) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)
