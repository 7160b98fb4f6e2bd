"""What two runs find, miss and confuse: exact on three objects, and the evaluator's AP50 on random boxes."""

import json
import math

import numpy as np
import pytest
import supervision as sv
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from clim.evaluation.ov_coco import box_figures
from reports.analysis import AREAS, Analysis, class_mean, precision
from reports.demo_report import _confusions, _difference_table, _precision_curves, _size_rows, found_by_one, most_novel

DOG, CAT, COW = [0, 0, 40, 40], [50, 50, 20, 20], [10, 10, 100, 100]  # XYWH
# (image, category id, box, probability); the learnt bias is -2
DETIC = [(7, 1, DOG, 0.9), (7, 2, DOG, 0.2), (7, 1, CAT, 0.8), (9, 3, COW, 0.5), (9, 1, DOG, 0.04)]
CLIM = [(7, 2, DOG, 0.3), (7, 1, [50, 50, 20, 9], 0.7), (9, 2, COW, 0.6)]


@pytest.fixture
def analysis(tmp_path):
    name, runs = "three_objects", {"base": DETIC, "detic": DETIC, "detic_clim": CLIM}
    objects = {7: [(DOG, 1), (CAT, 0)], 9: [(COW, 2)]}
    for image in objects:
        Image.new("RGB", (120, 120)).save(tmp_path / f"{image}.png")
    records = [
        {"image_id": i, "file_name": str(tmp_path / f"{i}.png"), "height": 120, "width": 120,
         "annotations": [{"bbox": box, "category_id": k} for box, k in of]}
        for i, of in objects.items()
    ]  # fmt: skip
    DatasetCatalog.register(name, lambda: records)
    metadata = {"thing_classes": ["cat", "dog", "cow"], "novel_classes": ["dog", "cow"]}
    MetadataCatalog.get(name).set(**metadata, thing_dataset_id_to_contiguous_id={1: 0, 2: 1, 3: 2})
    for run, rows in runs.items():
        folder = tmp_path / run / "inference" / name
        folder.mkdir(parents=True)
        torch.save({"model": {"x.cls_score.cls_bias": torch.tensor([-2.0])}}, tmp_path / run / "model_final.pth")
        logits = [math.log(p / (1 - p)) + 2 for *_, p in rows]
        results = [
            {"image_id": i, "category_id": c, "bbox": box, "score": 1 / (1 + math.exp(-logit))}
            for (i, c, box, _), logit in zip(rows, logits, strict=True)
        ]
        (folder / "coco_instances_results.json").write_text(json.dumps(results))
    yield Analysis(tmp_path, name, list(runs), threshold=0.05, overlap=0.3, top=8)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_what_is_shown_has_probabilities_and_one_name_for_one_place(analysis):
    first, second = analysis.shown["detic"]
    assert first.confidence.tolist() == pytest.approx([0.9, 0.8]) and first.class_id.tolist() == [0, 0]
    assert second.confidence.tolist() == pytest.approx([0.5]) and second.xyxy.tolist() == [[10, 10, 110, 110]]
    assert analysis.novel == {1, 2} and analysis.groups() == {"novel": [1, 2], "base": [0]}


def test_found_by_one_and_missed_by_the_other(analysis):
    assert [hits.tolist() for hits in analysis.hits("detic")] == [[False, True], [True]]
    assert [hits.tolist() for hits in analysis.hits("detic_clim")] == [[True, False], [False]]  # cat: IoU .45
    assert [found.tolist() for found in analysis.found_by_one("detic_clim", "detic")] == [[0], []]
    assert _difference_table(analysis)[1] == [["novel objects", 0, 1, 1, 0], ["base objects", 0, 1, 0, 0]]
    titles = [example.title for example in found_by_one(analysis, "detic", "detic_clim")]
    assert titles == ["Detic finds, Detic + CLIM misses: ★ cow", "Detic finds, Detic + CLIM misses: cat"]
    panels = found_by_one(analysis, "detic_clim", "detic")[0].panels
    assert [caption for caption, _ in panels] == ["Ground truth", "Detic", "Detic + CLIM"]
    assert len({image.tobytes() for _, image in panels}) == 3
    assert [example.title for example in most_novel(analysis)] == ["Image 7.png", "Image 9.png"]


def test_names_sizes_and_curves(analysis):
    assert _confusions(analysis) == [["★ dog → cat", 1, 1, 0], ["★ cow → ★ dog", 0, 0, 1]]
    rows = {row[0]: row[1:] for row in _size_rows(analysis)}
    assert [rows[f"novel, {size}"][0] for size in AREAS] == [2, 0, 1, 1]
    assert rows["novel, small"] == [0, None, None, None] and rows["base, small"] == [1, 100.0, 100.0, 0.0]
    # Detic's dog of score .2 is second to no other dog; its cow is right. Detic + CLIM's dog at the cow comes first.
    assert rows["novel, all"] == [2, 100.0, 100.0, pytest.approx(25.0)]
    recall, values = _precision_curves(analysis)["novel classes"]["Detic + CLIM"]
    assert len(recall) == len(values) == 101 and np.mean(values) == pytest.approx(25.0)


def test_precision_is_the_evaluators_and_small_boxes_count_as_small():
    generator = np.random.default_rng(0)

    def random_boxes(count, scored):
        corner, side = generator.uniform(0, 40, (count, 2)), generator.uniform(5, 31, (count, 2))
        scores = generator.random(count) if scored else None
        boxes = np.hstack([corner, corner + side])
        return sv.Detections(xyxy=boxes, class_id=generator.integers(0, 3, count), confidence=scores)

    truth, found = ([random_boxes(count, scored) for _ in range(20)] for count, scored in ((6, False), (30, True)))
    result = precision(truth, found, num_classes=4)
    assert (result[..., 0] == result[..., 1]).all() and (result[..., 2:] == -1).all()

    def rows(images):
        for i, boxes in enumerate(images):
            for (x0, y0, x1, y1), k, s in zip(boxes.xyxy, boxes.class_id, boxes.confidence, strict=True):
                yield {"image_id": i, "category_id": int(k), "bbox": [x0, y0, x1 - x0, y1 - y0], "score": s}

    for boxes in truth:
        boxes.confidence = np.ones(len(boxes))
    ground_truth = {"images": [{"id": i} for i in range(20)], "annotations": list(rows(truth))}
    figures = box_figures(ground_truth, list(rows(found)), category_ids=range(4))
    for k in range(3):
        assert class_mean(result[..., 0], [k, 3]).mean() == pytest.approx(figures[k]["AP50"])
    assert class_mean(result[..., 0], [3]) is None and math.isnan(figures[3]["AP50"])
