"""Evaluate a model on every set of DATASETS.TEST, each with the evaluator of its kind."""

from operator import attrgetter
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm

from clim.data.names import matched
from clim.files import write_json

from .base import ImageEvaluator, without_task
from .lvis import LVISEvaluator
from .ov_coco import OVCOCOEvaluator
from .regions import RegionClassificationEvaluator

__all__ = ["LVISEvaluator", "OVCOCOEvaluator", "RegionClassificationEvaluator", "build_evaluators", "evaluate"]

# ``evaluator_type`` of a set's metadata -> its evaluator. Sets of other types, or of none, get OVCOCOEvaluator.
EVALUATORS = {"ov_coco": OVCOCOEvaluator, "lvis": LVISEvaluator, "regions": RegionClassificationEvaluator}


def build_evaluators(cfg) -> dict[str, ImageEvaluator]:
    """{data set: its evaluator}. Raises an error for a set that cannot be scored, so call it before training too."""
    evaluators = {}
    for name in cfg.DATASETS.TEST:
        evaluator = EVALUATORS.get(MetadataCatalog.get(name).get("evaluator_type"), OVCOCOEvaluator)
        options = {argument: attrgetter(key)(cfg) for argument, key in evaluator.keys.items()}
        options["indices"] = matched(cfg, "TEST", name)
        evaluators[name] = evaluator(name, output_dir=Path(cfg.OUTPUT_DIR, "inference", name), **options)
    return evaluators


@torch.no_grad()
def evaluate(cfg, model) -> dict:
    """{task: {figure: value}} for one set, e.g. {"bbox": {"AP50_novel": …}}; {set: {task: {…}}} for several.

    The main process also writes OUTPUT_DIR/evaluation.json, a single task without its name. The others return {}.
    """
    results = {}
    for name, evaluator in build_evaluators(cfg).items():
        loader = evaluator.build_loader(cfg, name, on_skip=evaluator.skip)
        results[name] = inference_on_dataset(model, loader, evaluator)
        if comm.is_main_process():
            print_csv_format(results[name])
    if not (comm.is_main_process() and results):
        return {}
    figures = {name: without_task(result) for name, result in results.items()}
    if len(results) == 1:
        (results,), (figures,) = results.values(), figures.values()
    write_json(Path(cfg.OUTPUT_DIR) / "evaluation.json", figures, indent=1)
    return results
