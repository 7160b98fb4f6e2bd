"""evaluate(): each set by its own protocol, from the loader to evaluation.json."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from clim.engine.setup import check_datasets
from clim.errors import UserError
from clim.evaluation import OVCOCOEvaluator, RegionClassificationEvaluator, build_evaluators, evaluate
from mini.concepts import CONCEPTS


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


def test_the_order_of_words_and_of_categories_changes_no_figure(tiny_cfg, tiny_mini, tmp_path):
    """Of 66 words: rows of the embeddings with their names in another order; a json whose ids are in another order."""
    names, rng = [*(concept.name for concept in CONCEPTS), "yak"], np.random.default_rng(0)
    rows, order = rng.normal(size=(66, 384)).astype(np.float32), rng.permutation(65)
    for stem, rank in (("same", range(66)), ("mixed", rng.permutation(66))):
        np.save(tmp_path / f"{stem}.npy", rows[list(rank)])
        (tmp_path / f"{stem}.names.json").write_text(json.dumps([names[i] for i in rank]))
    content = json.loads((tiny_mini / "mini/annotations/instances_val_all.json").read_text())
    ids = {c["id"]: int(i) for c, i in zip(content["categories"], order, strict=True)}
    folder, figures, found = str(tiny_mini / "mini/val"), [], []
    own = [[name, "boxes", str(tmp_path / f"{name}.json"), folder] for name in ("order_same", "order_mixed")]
    for stem, test in (
        ("same", "mini_ov_val"), ("same", "order_same"), ("same", "order_mixed"), ("mixed", "order_mixed"),
    ):  # fmt: skip
        file = ("MODEL.VOCABULARY.EMBEDDINGS", str(tmp_path / f"{stem}.npy"), "MODEL.ROI_HEADS.NUM_CLASSES", 66)
        cfg = tiny_cfg("DATASETS.TEST", (test,), *file, "DATASETS.OWN", own, config="mini/base_stage.yaml")
        torch.manual_seed(0)
        figures.append(evaluate(cfg, build_model(cfg).eval())["bbox"])
        written = json.loads((Path(cfg.OUTPUT_DIR) / f"inference/{test}/coco_instances_results.json").read_text())
        back = {new: old for old, new in ids.items()} if test == "order_mixed" else {i: i for i in ids}
        found.append([(d["image_id"], back[d["category_id"]], *d["bbox"]) for d in written])
        if test == "mini_ov_val":  # what the untrained model finds is the ground truth of the other sets
            objects = [d | {"id": i, "iscrowd": 0, "area": 9} for i, d in enumerate(written[::7], start=1)]
            for (name, *_), index in zip(own, ({i: i for i in ids}, ids), strict=True):
                truth = [d | {"category_id": index[d["category_id"]]} for d in objects]
                listed = [c | {"id": index[c["id"]]} for c in content["categories"]]
                changed = content | {"annotations": truth, "categories": listed}
                (tmp_path / f"{name}.json").write_text(json.dumps(changed))
    for name in ("order_same", "order_mixed"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert figures[1] == figures[2] == figures[3] and min(figures[1].values()) > 0
    assert found[1] == found[2] and set(found[3]) == set(found[2])


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
    with pytest.raises(UserError, match="Class 1 of DATASETS.TEST coco_panoptic_val_regions .* is 'person'"):
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
