"""LVISEvaluator and lvis_precision against the lvis package, and against cases counted by hand.

Run as a script (`test_lvis.py RANK FOLDER`) this file is one process of the two-process test.
"""

import copy
import json
import logging
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_util
from torch import nn

from clim.data.loader import build_detection_loader
from clim.errors import UserError
from clim.evaluation import LVISEvaluator, build_evaluators, evaluate
from clim.evaluation.base import pack, unpack
from clim.evaluation.lvis import best_of_images, lvis_figures, lvis_precision
from clim.files import nan_to_none
from clim.processes import leave_group

np.float = float  # lvis 0.5.3 uses NumPy's old name
from lvis import LVIS, LVISEval, LVISResults  # noqa: E402

# id: name. No image shows or excludes the last class.
NAMES = {2: "cat", 3: "apple", 7: "barge", 9: "vodka", 12: "sink", 40: "egg"}
IDS, FREQUENCIES = list(NAMES), "fcrrfc"
SIDE = 240  # of all images
FIGURES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]


def shape(box):
    """{bbox, segmentation} of a box XYWH: the polygon is its triangle."""
    x, y, w, h = (float(v) for v in box)
    return {"bbox": [x, y, w, h], "segmentation": [[x, y, x + w, y + h / 3, x + w / 4, y + h]]}


def with_rle(found):
    mask = mask_util.merge(mask_util.frPyObjects(found["segmentation"], SIDE, SIDE))
    return found | {"segmentation": mask | {"counts": mask["counts"].decode()}}


def ground_truth_of(annotations, images):
    """``images``: {id: (absent classes, not exhaustive classes)}."""
    keys = ("neg_category_ids", "not_exhaustive_category_ids")
    size = {"height": SIDE, "width": SIDE}
    return {
        "images": [{"id": i, **size, **dict(zip(keys, lists, strict=True))} for i, lists in images.items()],
        "categories": [{"id": i, "name": NAMES[i], "frequency": f} for i, f in zip(IDS, FREQUENCIES, strict=True)],
        "annotations": [{"id": i, "area": a["bbox"][2] * a["bbox"][3] / 2} | a for i, a in enumerate(annotations, 1)],
    }


def thing(image, category, box, **more):
    return {"image_id": image, "category_id": category, **shape(box), **more}


def make_world(seed, num_images=8):
    """Ground truth with polygons and both kinds of run lengths, and detections with ties in mixed order."""
    rng = np.random.default_rng(seed)
    images, annotations, detections = {}, [], []
    for image in (rng.permutation(50)[:num_images] + 1).tolist():
        shown, *rest = (rng.permutation(IDS[:5])[i : i + 2].tolist() for i in (0, 2))
        images[image] = (rest[0], rng.permutation(shown)[: rng.integers(0, 2)].tolist())
        for _ in range(int(rng.integers(0, 5))):
            box = rng.uniform((0, 0, 4, 4), (60, 60, 180, 180))
            annotations.append(thing(image, int(rng.choice(shown)), box))
            for _ in range(int(rng.integers(0, 4))):
                near = np.add(box, rng.normal(0, 0.06, 4) * np.tile(box[2:], 2)).clip(1)
                category = annotations[-1]["category_id"] if rng.random() < 0.7 else int(rng.choice(IDS))
                detections.append(thing(image, category, near))
        for _ in range(int(rng.integers(0, 8))):
            detections.append(thing(image, int(rng.choice(IDS)), rng.uniform((0, 0, 4, 4), (60, 60, 180, 180))))
    for i, annotation in enumerate(annotations):
        if i % 3:
            annotations[i] = with_rle(annotation)
        if i % 3 == 2:
            mask = mask_util.decode(annotations[i]["segmentation"]).T.reshape(-1)
            edges = np.flatnonzero(np.diff(mask)) + 1
            counts = np.diff([0, *([0] if mask[0] else []), *edges, len(mask)]).tolist()
            annotations[i]["segmentation"] = {"size": [SIDE, SIDE], "counts": counts}
    rng.shuffle(detections)
    detections = [with_rle(d | {"score": int(rng.integers(1, 12)) / 16}) for d in detections]
    return ground_truth_of(annotations, images), detections


def official(folder, ground_truth, detections, task, *, max_dets=300):
    """(T, R, K, A) precision and {figure: percent or -1} of the lvis package, as Detectron2 calls it."""
    (folder / "lvis.json").write_text(json.dumps(ground_truth))
    other = "segmentation" if task == "bbox" else "bbox"
    found = [{key: copy.copy(value) for key, value in d.items() if key != other} for d in detections]
    truth = LVIS(str(folder / "lvis.json"))
    evaluation = LVISEval(truth, LVISResults(truth, found, max_dets=max_dets), task)
    evaluation.run()
    figures = {key: 100 * value if value > -1 else -1 for key, value in evaluation.results.items() if key in FIGURES}
    return evaluation.eval["precision"], figures


GROUPS = {f: [frequency == f for frequency in FREQUENCIES] for f in "rcf"}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), task=st.sampled_from(["bbox", "segm"]), max_dets=st.sampled_from([5, 12, 300]))
def test_random_worlds_score_as_lvis_says(seed, task, max_dets, tmp_path_factory):
    ground_truth, detections = make_world(seed)
    detections = detections or [with_rle(thing(ground_truth["images"][0]["id"], 2, [0, 0, 9, 9], score=0.5))]
    before = copy.deepcopy((ground_truth, detections))
    precision = lvis_precision(ground_truth, detections, iou_type=task, max_dets=max_dets)
    assert (ground_truth, detections) == before
    expected, figures = official(tmp_path_factory.mktemp("lvis"), ground_truth, detections, task, max_dets=max_dets)
    np.testing.assert_allclose(precision, expected, rtol=0, atol=1e-12)
    assert (precision[:, :, -1] == -1).all()  # no image shows an egg
    found = lvis_figures(precision, GROUPS)
    assert list(found) == FIGURES and found == pytest.approx(figures, abs=1e-10)


@pytest.mark.slow
def test_several_processes_equal_one():
    ground_truth, detections = make_world(3, num_images=30)
    one, two = (lvis_precision(ground_truth, detections, iou_type="segm", processes=n) for n in (1, 2))
    assert (one == two).all() and one.max() > 0.5


CAT = thing(1, 2, [10, 10, 60, 60])
AWAY = [90, 90, 40, 40]


@pytest.mark.parametrize("extra, absent, lacking, expected", [
    ([], [], [], 100),
    ([thing(1, 2, AWAY)], [], [], 50),  # a false positive above the hit
    ([thing(1, 2, AWAY)], [], [2], 100),  # ignored: not all cats are annotated
    ([thing(2, 2, AWAY)], [], [], 100),  # dropped: image 2 says nothing about cats
    ([thing(2, 2, AWAY)], [2], [], 50),  # image 2 has no cats
    ([thing(2, 2, AWAY)] * 300, [], [], 100),
    ([thing(1, 12, AWAY)] * 299, [], [], 100),
    ([thing(1, 12, AWAY)] * 300, [], [], 0),  # dropped only after they took all 300 places
])  # fmt: skip
def test_rules_by_hand(tmp_path, extra, absent, lacking, expected):
    ground_truth = ground_truth_of([CAT], {1: ([], lacking), 2: (absent, [])})
    detections = [with_rle(found | {"score": 0.9}) for found in extra] + [with_rle(CAT | {"score": 0.5})]
    for task in ("bbox", "segm"):
        figures = lvis_figures(lvis_precision(ground_truth, detections, iou_type=task), GROUPS)
        assert figures == pytest.approx(official(tmp_path, ground_truth, detections, task)[1], abs=1e-10)
        assert figures["AP"] == figures["APf"] == pytest.approx(expected) and figures["APr"] == -1


def test_a_crowd_is_no_object_and_costs_nothing():
    found, crowd = [with_rle(thing(1, 2, box, score=0.9)) for box in (AWAY, CAT["bbox"])], thing(1, 2, AWAY, iscrowd=1)
    listed, crowded, alone = (
        ground_truth_of(shown, {1: ([], lacking)})
        for shown, lacking in (([CAT], [2]), ([CAT, crowd], []), ([crowd], []))
    )
    for task in ("bbox", "segm"):
        expected, precision = (lvis_precision(truth, found, iou_type=task) for truth in (listed, crowded))
        assert (precision == expected).all() and precision.max() == 1
        assert (lvis_precision(alone, found, iou_type=task) == -1).all()
    assert crowded["images"][0]["not_exhaustive_category_ids"] == []


def test_areas_and_lists_that_a_file_lacks():
    ground_truth, detections = make_world(2)
    for image in ground_truth["images"]:
        image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
    for a in ground_truth["annotations"]:
        a["area"] = float(mask_util.area(mask_of(a)))
    bare = copy.deepcopy(ground_truth)
    for entry in (*bare["images"], *bare["annotations"]):
        for key in ("neg_category_ids", "not_exhaustive_category_ids", "area"):
            entry.pop(key, None)
    for task in ("bbox", "segm"):
        expected, found = (lvis_precision(truth, detections, iou_type=task) for truth in (ground_truth, bare))
        assert (found == expected).all() and len(np.unique(found)) > 3
    for a, b in zip(bare["annotations"], ground_truth["annotations"], strict=True):
        del a["segmentation"]
        b["area"] = b["bbox"][2] * b["bbox"][3]
    assert (lvis_precision(bare, detections) == lvis_precision(ground_truth, detections)).all()


def test_nothing_found_scores_zero_and_no_objects_score_minus_one():
    ground_truth = ground_truth_of([CAT], {1: ([3], []), 2: ([], [])})
    precision = lvis_precision(ground_truth, [])
    assert (precision[:, :, 0, [0, 2]] == 0).all() and (precision[:, :, 0, [1, 3]] == -1).all()  # a medium cat
    assert (precision[:, :, 1:] == -1).all()
    nothing = lvis_precision(ground_truth_of([], {1: ([2], [])}), [with_rle(CAT | {"score": 1})])
    assert set(lvis_figures(nothing).values()) == {-1}
    for task, key in (("bbox", "bbox"), ("segm", "segmentation")):
        lacking = {k: v for k, v in with_rle(CAT | {"score": 1}).items() if k != key}
        with pytest.raises(UserError, match=f"has no {key}"):
            lvis_precision(ground_truth, [lacking], iou_type=task)
    with pytest.raises(UserError, match="image 5, which is not in the ground truth"):
        lvis_precision(ground_truth, [with_rle(thing(5, 2, AWAY, score=1))])


def test_packed_detections_are_the_results():
    _, detections = make_world(1)
    assert list(unpack(pack(detections))) == detections and len(pack([])) == 0
    box = {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.1}
    assert list(unpack(pack([box]))) == [box]
    best = best_of_images(pack(detections), limit=3)
    expected = [
        d
        for image in sorted({d["image_id"] for d in detections})
        for d in sorted((d for d in detections if d["image_id"] == image), key=lambda d: -d["score"])[:3]
    ]
    assert list(unpack(best)) == expected


# ---- the evaluator


def register(name, folder, ground_truth=None, **changes):
    """Write the json into ``folder``, if it is given, and register it; returns the data set's name."""
    if ground_truth is not None:
        (folder / "instances.json").write_text(json.dumps(ground_truth))
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    metadata = {
        "json_file": str(folder / "instances.json"), "evaluator_type": "lvis",
        "thing_classes": list(NAMES.values()),
        "thing_dataset_id_to_contiguous_id": {c: i for i, c in enumerate(IDS)},
        "base_classes": ["cat", "apple", "sink", "egg"], "novel_classes": ["barge", "vodka"],
    }  # fmt: skip
    MetadataCatalog.get(name).set(**metadata | changes)
    return name


def instances_of(found, *, masks=True):
    xywh = torch.tensor([d["bbox"] for d in found], dtype=torch.float32).reshape(-1, 4)
    instances = Instances((SIDE, SIDE))
    instances.pred_boxes = Boxes(torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1))
    instances.scores = torch.tensor([d.get("score", 1.0) for d in found], dtype=torch.float32)
    instances.pred_classes = torch.tensor([IDS.index(d["category_id"]) for d in found], dtype=torch.int64)
    if masks:
        arrays = [mask_util.decode(mask_of(d)) for d in found]
        instances.pred_masks = torch.tensor(np.array(arrays).reshape(-1, SIDE, SIDE), dtype=torch.bool)
    return instances


def mask_of(found):
    """Compressed run lengths of any annotation or detection."""
    kind = found["segmentation"]
    if isinstance(kind, dict) and isinstance(kind["counts"], list):
        return mask_util.frPyObjects(kind, SIDE, SIDE)
    return kind if isinstance(kind, dict) else with_rle(found)["segmentation"]


def feed(evaluator, images, detections, **options):
    for image in images:
        instances = instances_of([d for d in detections if d["image_id"] == image], **options)
        evaluator.process([{"image_id": image}], [{"instances": instances}])


def score(name, ground_truth, detections, *, output_dir=None, **options):
    evaluator = LVISEvaluator(name, output_dir=output_dir)
    feed(evaluator, [image["id"] for image in ground_truth["images"]], detections, **options)
    return evaluator.evaluate()


def test_ground_truth_as_detections_scores_100_in_files_and_tables(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    ground_truth, _ = make_world(4, num_images=20)
    name = register("lvis_perfect", tmp_path, ground_truth)
    results = score(name, ground_truth, ground_truth["annotations"], output_dir=tmp_path)
    assert list(results) == ["segm", "bbox"] and list(results["bbox"]) == list(results["segm"]) == FIGURES
    assert all(value == pytest.approx(100) for figures in results.values() for value in figures.values())
    assert "Results (segm)" in caplog.text and "| vodka" in caplog.text
    found = json.loads((tmp_path / "lvis_instances_results.json").read_text())
    for task in ("bbox", "segm"):  # the file is in the official format
        assert official(tmp_path, ground_truth, found, task)[1] == pytest.approx(dict.fromkeys(FIGURES, 100))
    report = json.loads((tmp_path / "lvis_results.json").read_text())
    assert report["summary"] == results and report["max_dets"] == 300
    for c, frequency, row in zip(IDS, FREQUENCIES, report["per_class"], strict=True):
        count = sum(a["category_id"] == c for a in ground_truth["annotations"])
        facts = {"class": NAMES[c], "frequency": frequency, "split": "novel" if frequency == "r" else "base"}
        ap = pytest.approx(100) if count else None
        assert row == facts | {"num_gt": count, "AP_segm": ap, "AP_bbox": ap}


def test_the_evaluator_scores_as_lvis_says(tmp_path, caplog):
    """A set with another split than rare and the others also has figures of base and novel classes."""
    ground_truth, detections = make_world(5, num_images=20)
    name = register("lvis_own", tmp_path, ground_truth, base_classes=["cat", "barge"], novel_classes=["apple", "sink"])
    results = score(name, ground_truth, detections, output_dir=tmp_path)
    found = json.loads((tmp_path / "lvis_instances_results.json").read_text())
    by_class = {row["class"]: row for row in json.loads((tmp_path / "lvis_results.json").read_text())["per_class"]}
    for task in ("bbox", "segm"):
        expected = official(tmp_path, ground_truth, found, task)[1]
        expected["AP_base"] = (by_class["cat"][f"AP_{task}"] + by_class["barge"][f"AP_{task}"]) / 2
        expected["AP_novel"] = (by_class["apple"][f"AP_{task}"] + by_class["sink"][f"AP_{task}"]) / 2
        assert results[task] == pytest.approx(expected, abs=1e-9) and 0 < results[task]["AP"] < 90
    for category in ground_truth["categories"]:
        del category["frequency"]
    register("lvis_own", tmp_path, ground_truth, base_classes=(), novel_classes=["apple", "egg"])
    boxes = score(name, ground_truth, detections, masks=False)  # a model without masks, a set without frequencies
    assert list(boxes) == ["bbox"] and list(boxes["bbox"]) == [*FIGURES[:6], "AP_base", "AP_novel"]
    assert boxes["bbox"]["AP"] == pytest.approx(results["bbox"]["AP"])
    assert math.isnan(boxes["bbox"]["AP_base"]) and boxes["bbox"]["AP_novel"] == by_class["apple"]["AP_bbox"]
    nothing = score(name, ground_truth, [])
    assert list(nothing) == ["segm", "bbox"] and nothing["segm"]["AP"] == 0 and "no detections" in caplog.text


def test_what_a_file_lacks_is_said_and_boxes_are_scored_without_masks(tmp_path, caplog):
    ground_truth, detections = make_world(5, num_images=20)
    expected = score(register("lvis_whole", tmp_path, ground_truth), ground_truth, detections)
    assert "lacks" not in caplog.text and "only boxes" not in caplog.text
    unsized = [{key: image[key] for key in image if key != "height"} for image in ground_truth["images"]]
    name = register("lvis_no_sizes", tmp_path, ground_truth | {"images": unsized})
    assert score(name, ground_truth, detections) == {"bbox": expected["bbox"]}
    assert "has images without height and width: only boxes are scored" in caplog.text
    for a in ground_truth["annotations"]:
        del a["segmentation"]
    assert score(register("lvis_boxes", tmp_path, ground_truth), ground_truth, detections) == {"bbox": expected["bbox"]}
    assert "has objects without masks: only boxes are scored" in caplog.text
    assert "neg_category_ids" not in caplog.text
    for image in ground_truth["images"]:
        del image["neg_category_ids"]
    more = score(register("lvis_no_lists", tmp_path, ground_truth), ground_truth, detections)["bbox"]["AP"]
    assert "instances.json has no neg_category_ids" in caplog.text and more > expected["bbox"]["AP"]


def test_double_scores_rank_what_float32_ones_cannot(tmp_path):
    ground_truth = ground_truth_of([CAT], {1: ([], [])})
    instances = instances_of([thing(1, 2, AWAY), CAT])
    instances.scores = torch.tensor([20.0, 21.0]).sigmoid()
    evaluator = LVISEvaluator(register("lvis_logits", tmp_path, ground_truth), output_dir=tmp_path)
    evaluator.process([{"image_id": 1}], [{"instances": instances}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(50)
    instances.scores = torch.tensor([20.0, 21.0]).double().sigmoid()
    evaluator.process([{"image_id": 1}], [{"instances": instances}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


class Remembering(nn.Module):
    """Finds what the ground truth says, at the size of the file."""

    def __init__(self, annotations):
        super().__init__()
        self.annotations = annotations

    def forward(self, batch):
        found = ([a for a in self.annotations if a["image_id"] == sample["image_id"]] for sample in batch)
        return [{"instances": instances_of(annotations)} for annotations in found]


def test_from_the_loader_to_the_file(tiny_cfg, tmp_path, caplog):
    annotations = [CAT, thing(2, 7, AWAY), thing(3, 7, AWAY)]
    ground_truth = ground_truth_of(annotations, {i: ([], []) for i in (1, 2, 3)})
    records = [
        {"file_name": str(tmp_path / f"{i}.png"), "image_id": i, "height": SIDE, "width": SIDE} for i in (1, 2, 3)
    ]
    for record in records[:2]:
        cv2.imwrite(record["file_name"], np.zeros((SIDE, SIDE, 3), np.uint8))
    register("lvis_run", tmp_path, ground_truth)
    DatasetCatalog.register("lvis_run", lambda: records)
    try:
        names = ("MODEL.VOCABULARY.NAMES", str(list(NAMES.values())), "MODEL.MASK_ON", "True")
        cfg = tiny_cfg("DATASETS.TEST", "('lvis_run',)", *names)
        assert type(build_evaluators(cfg)["lvis_run"]) is LVISEvaluator
        assert LVISEvaluator.build_loader is build_detection_loader
        results = evaluate(cfg, Remembering(annotations))
    finally:
        DatasetCatalog.remove("lvis_run")
    assert "3.png" in caplog.text and "1 of 3 images of 'lvis_run' were not processed" in caplog.text
    written = json.loads((Path(cfg.OUTPUT_DIR) / "evaluation.json").read_text())
    assert list(written) == ["segm", "bbox"]
    for task, figures in results.items():
        assert figures["APf"] == pytest.approx(100) and figures["APr"] == pytest.approx(100 * 51 / 101)  # 1 of 2 barges
        assert math.isnan(figures["APc"]) and written[task]["APc"] is None
        assert written[task] == nan_to_none(figures)


# ---- two processes


def test_two_processes_equal_one(tmp_path, run_two):
    ground_truth, detections = make_world(6)
    single = score(register("lvis_two", tmp_path, ground_truth), ground_truth, detections, output_dir=tmp_path / "one")
    (tmp_path / "detections.json").write_text(json.dumps(detections))
    run_two(__file__, tmp_path)
    assert [(tmp_path / f"rank{rank}.json").read_text() for rank in (0, 1)] == [json.dumps(single), "{}"]
    for name in ("lvis_instances_results.json", "lvis_results.json"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()


def one_of_two_processes(rank, folder):
    """Each rank sees every other image, and rank 1, as a padding sampler would, the first one again."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    images = [image["id"] for image in json.loads((folder / "instances.json").read_text())["images"]]
    evaluator = LVISEvaluator(register("lvis_two", folder), output_dir=folder / "two")
    feed(evaluator, images[rank::2] + images[:1] * rank, json.loads((folder / "detections.json").read_text()))
    (folder / f"rank{rank}.json").write_text(json.dumps(evaluator.evaluate()))
    comm.synchronize()  # an early end of one process can abort the other
    leave_group()


if __name__ == "__main__":
    one_of_two_processes(int(sys.argv[1]), Path(sys.argv[2]))
