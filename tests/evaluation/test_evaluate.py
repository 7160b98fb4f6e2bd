"""evaluate(): each set by its own protocol, from the loader to evaluation.json."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from clim.engine.setup import check_datasets
from clim.errors import UserError
from clim.evaluation import OVCOCOEvaluator, RegionClassificationEvaluator, build_evaluators, evaluate


class Knowing(nn.Module):
    """Classifies every region right but those of class 0, and detects nothing."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, batch):
        return [self.answer(sample) for sample in batch]

    def answer(self, sample):
        assert not self.training
        self.seen.append(sample)
        if "gt_classes" not in sample:
            nothing = Instances((sample["height"], sample["width"]))
            nothing.pred_boxes, nothing.scores = Boxes(torch.zeros(0, 4)), torch.zeros(0)
            nothing.pred_classes = torch.zeros(0, dtype=torch.int64)
            return {"instances": nothing}
        scores = nn.functional.one_hot(sample["gt_classes"], 65).float()
        scores[:, 0] = -1
        return {"region_scores": {variant: scores for variant in ("boxes", "crops")}}


def written(cfg):
    return json.loads((Path(cfg.OUTPUT_DIR) / "evaluation.json").read_text())


def test_a_region_set_from_the_loader_to_the_file(tiny_cfg):
    cfg = tiny_cfg("DATASETS.TEST", "('mini_val_regions',)", "INPUT.REGIONS.SIZE", 64)
    model = Knowing()
    results = evaluate(cfg, model)
    classes = torch.cat([sample["gt_classes"] for sample in model.seen])
    assert all(sample["image"].shape == (3, 64, 64) for sample in model.seen) and len(classes) > 4
    figures = written(cfg)
    assert results == {"regions": figures} and len(figures) == 2 * 2 * 3
    assert figures["Top1_micro"] == pytest.approx(100 * (classes > 0).float().mean().item())
    report = json.loads((Path(cfg.OUTPUT_DIR) / "inference/mini_val_regions/region_results.json").read_text())
    assert report["num_regions"] == len(classes) and report["unreadable"] == []


def test_sets_of_both_kinds_in_one_evaluation(tiny_cfg):
    cfg = tiny_cfg("DATASETS.TEST", "('mini_ov_val', 'mini_val_regions')", "TEST.REGIONS", "['crops']")
    kinds = {name: type(evaluator) for name, evaluator in build_evaluators(cfg).items()}
    assert kinds == {"mini_ov_val": OVCOCOEvaluator, "mini_val_regions": RegionClassificationEvaluator}
    model = Knowing()
    results = evaluate(cfg, model)
    assert list(results["mini_ov_val"]) == ["bbox"] and list(results["mini_val_regions"]) == ["regions"]
    figures = written(cfg)
    assert figures["mini_ov_val"]["AP50_all"] == 0
    assert figures["mini_val_regions"]["crops.Top5_micro_novel"] == 100
    assert {"image", "boxes", "gt_classes", "crops"} < set(model.seen[-1])


def test_stuff_counts_among_the_classes_of_a_set(tiny_cfg):
    clip = {"config": "mini/clip_clim.yaml"}
    cfg = tiny_cfg("DATASETS.TEST", "('coco_panoptic_val_regions',)", **clip)
    with pytest.raises(UserError, match="coco_panoptic_val_regions has 133 classes, but the detector 65"):
        check_datasets(cfg, training=False)
    check_datasets(tiny_cfg("DATASETS.TEST", "('mini_val_regions',)", **clip), training=False)


@pytest.mark.parametrize("overrides, error, message", [
    (["DATASETS.TEST", "('mini_val_regions',)", "TEST.REGIONS", "['rois']"], UserError, "TEST.REGIONS"),
    (["TEST.PROTOCOL", "mine"], UserError, "TEST.PROTOCOL"),
    (["DATASETS.TEST", "('keypoints_coco_2017_val',)"], UserError, "not found: check the paths of data set keyp"),
])  # fmt: skip
def test_a_set_that_cannot_be_scored_is_found_before_training(tiny_cfg, overrides, error, message):
    with pytest.raises(error, match=message):
        build_evaluators(tiny_cfg(*overrides))
