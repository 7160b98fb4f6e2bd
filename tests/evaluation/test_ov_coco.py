"""OVCOCOEvaluator and box_figures against pycocotools, and against cases counted by hand.

Run as a script (`test_ov_coco.py RANK FOLDER`) this file is one process of the two-process test.
"""

import contextlib
import copy
import io
import json
import logging
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import DatasetEvaluators, print_csv_format
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clim.data.categories import COCO_INDEX, SPLIT_INDEX
from clim.data.loader import Skipped
from clim.errors import UserError
from clim.evaluation import OVCOCOEvaluator
from clim.evaluation.ov_coco import COCO_METRICS, box_figures
from clim.processes import leave_group

NAMES = {1: "cat", 3: "apple", 7: "person", 8: "knife", 11: "zebra", 20: "sink"}  # dataset id: name
BASE, NOVEL, UNUSED = ["zebra", "person", "apple"], ["sink", "cat"], ["knife"]
CONTIGUOUS = {category: i for i, category in enumerate(NAMES)}
IDS = {name: category for category, name in NAMES.items()}
SPOT, AWAY = [10, 10, 20, 20], [70, 70, 20, 20]  # two boxes, XYWH, that do not touch


def make_ground_truth(seed=0, num_images=20):
    """1–3 objects of each class an image, some crowds; the last image empty, the one before unused only."""
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(1, num_images + 1):
        for name in NAMES.values():
            wanted = name in UNUSED if image == num_images - 1 else image < num_images
            for _ in range(int(rng.integers(1, 4)) * wanted):
                box = rng.integers((0, 0, 5, 5), (50, 50, 50, 50)).tolist()
                annotations.append(thing(image, name, box) | {"iscrowd": int(rng.random() < 0.2)})
    return ground_truth_of(annotations, range(1, num_images + 1))


def ground_truth_of(annotations, images):
    return {
        "images": [{"id": i, "height": 100, "width": 100} for i in images],
        "categories": [{"id": category, "name": name} for category, name in NAMES.items()],
        "annotations": [
            {"id": i, "area": a["bbox"][2] * a["bbox"][3], "iscrowd": 0} | a for i, a in enumerate(annotations, start=1)
        ],
    }


def thing(image, name, box, score=1.0):
    """An annotation, and also a detection."""
    return {"image_id": image, "category_id": IDS[name], "bbox": box, "score": score}


def random_detections(ground_truth, seed):
    rng = np.random.default_rng(seed)
    found = []
    for a in ground_truth["annotations"]:
        if rng.random() < 0.8:
            box = np.add(a["bbox"], rng.normal(0, 1.5, 4)).clip(min=1)
            found.append(thing(a["image_id"], NAMES[a["category_id"]], box.tolist()))
    for image in ground_truth["images"]:
        box = rng.uniform((0, 0, 5, 5), (50, 50, 50, 50))
        found.append(thing(image["id"], NAMES[rng.choice(list(NAMES))], box.tolist()))
    return [d | {"score": int(rng.integers(1, 30)) / 32} for d in found]


def register(folder, ground_truth=None, **changes):
    """Write the json into ``folder``, if it is given, and register it; returns the data set's name."""
    file = folder / "instances.json"
    if ground_truth is not None:
        file.write_text(json.dumps(ground_truth))
    metadata = {
        "json_file": str(file), "thing_classes": list(NAMES.values()),
        "thing_dataset_id_to_contiguous_id": CONTIGUOUS, "base_classes": BASE, "novel_classes": NOVEL,
        "unused_classes": UNUSED,
    }  # fmt: skip
    name = f"ov_coco_test_{folder}"
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(**metadata | changes)
    return name


def feed(evaluator, images, detections, *, index=CONTIGUOUS):
    for image in images:
        mine = [d for d in detections if d["image_id"] == image]
        xywh = torch.tensor([d["bbox"] for d in mine], dtype=torch.float32).reshape(-1, 4)
        instances = Instances((100, 100))
        instances.pred_boxes = Boxes(torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1))
        instances.scores = torch.tensor([d.get("score", 1.0) for d in mine], dtype=torch.float32)
        instances.pred_classes = torch.tensor([index[d["category_id"]] for d in mine], dtype=torch.int64)
        evaluator.process([{"image_id": image}], [{"instances": instances}])


def score(folder, ground_truth, detections, **options):
    evaluator = OVCOCOEvaluator(register(folder, ground_truth), **options)
    feed(evaluator, [image["id"] for image in ground_truth["images"]], detections)
    return evaluator.evaluate()["bbox"]


def official(ground_truth, detections):
    """pycocotools' documented steps: every area range, maxDets 1, 10, 100."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(ground_truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def official_ap(ground_truth, detections, *, names, images):
    """{class name: (AP50, AP, AR)} in percent, by :func:`official` on a file cut down to these classes and images."""
    cut = copy.deepcopy(ground_truth)
    cut["annotations"] = [a for a in cut["annotations"] if NAMES[a["category_id"]] in names]
    cut["images"] = [image for image in cut["images"] if image["id"] in images]
    evaluation = official(cut, [d for d in detections if d["image_id"] in images])
    precision, recall = evaluation.eval["precision"][..., 0, -1], evaluation.eval["recall"][..., 0, -1]
    return {
        name: tuple(100 * a.mean() for a in (precision[0, :, k], precision[:, :, k], recall[:, k]))
        for k, name in enumerate(NAMES.values())
        if name in names
    }


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_detections_score_as_pycocotools_says(seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    ground_truth = make_ground_truth(seed)
    detections = random_detections(ground_truth, seed + 1)
    summary = score(folder, ground_truth, detections, protocol="both", output_dir=folder / "out")

    found = json.loads((folder / "out" / "coco_instances_results.json").read_text())
    scored = {a["image_id"] for a in ground_truth["annotations"] if NAMES[a["category_id"]] not in UNUSED}
    generalized = official_ap(ground_truth, found, names=BASE + NOVEL, images=scored)
    base_run = official_ap(ground_truth, found, names=BASE, images=range(1, 21))
    novel_run = official_ap(ground_truth, found, names=NOVEL, images=range(1, 21))
    rows = {row["class"]: row for row in json.loads((folder / "out" / "ov_coco_results.json").read_text())["per_class"]}
    for column, metric in enumerate(("AP50", "AP", "AR")):
        groups = {
            "novel": (generalized, NOVEL), "base": (generalized, BASE), "all": (generalized, BASE + NOVEL),
            "novel_run": (novel_run, NOVEL), "base_run": (base_run, BASE),
        }  # fmt: skip
        expected = {
            f"{metric}_{group}": float(np.mean([figures[name][column] for name in names]))
            for group, (figures, names) in groups.items()
        }
        assert {key: summary[key] for key in expected} == pytest.approx(expected, abs=1e-9)
        for name, row in rows.items():
            assert row[metric] == pytest.approx(generalized[name][column], abs=1e-9)
            assert row[f"{metric}_run"] == pytest.approx((base_run | novel_run)[name][column], abs=1e-9)


NO_SPLIT = {"base_classes": [], "novel_classes": [], "unused_classes": []}


def test_a_set_without_a_split_scores_as_pycocotools_says(tmp_path):
    ground_truth = make_ground_truth(3)
    for a in ground_truth["annotations"]:  # sizes of all ranges; objects are smaller than their boxes
        a["bbox"][2] *= (a["image_id"] % 3 + 1) ** 2
        a["area"] = 0.5 * a["bbox"][2] * a["bbox"][3]
    detections = random_detections(ground_truth, 4)
    evaluator = OVCOCOEvaluator(register(tmp_path, ground_truth, **NO_SPLIT), output_dir=tmp_path, protocol="two_run")
    feed(evaluator, [image["id"] for image in ground_truth["images"]], detections)
    figures = evaluator.evaluate()["bbox"]
    stats = official(ground_truth, json.loads((tmp_path / "coco_instances_results.json").read_text())).stats
    expected = dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), 100 * stats[:6], strict=True))
    assert figures == pytest.approx(expected | {"AR": 100 * stats[8]}, abs=1e-9) and len(set(figures.values())) == 7
    rows = json.loads((tmp_path / "ov_coco_results.json").read_text())["per_class"]
    assert [row["class"] for row in rows] == sorted(NAMES.values()) and {row["split"] for row in rows} == {None}
    for metric in COCO_METRICS:
        assert np.nanmean(np.array([row[metric] for row in rows], float)) == pytest.approx(figures[metric])


def test_100_detections_of_a_class_count_without_a_split_and_of_an_image_with_one(tmp_path):
    ground_truth = ground_truth_of([thing(1, "cat", SPOT)], [1])
    detections = [thing(1, "knife", AWAY, 0.9)] * 100 + [thing(1, "cat", AWAY, 0.8)] * 99 + [thing(1, "cat", SPOT, 0.5)]
    for changes, key, expected in ((NO_SPLIT, "AR", 100), ({}, "AR_all", 0)):
        evaluator = OVCOCOEvaluator(register(tmp_path, ground_truth, **changes))
        feed(evaluator, [1], detections)
        assert evaluator.evaluate()["bbox"][key] == pytest.approx(expected)


def test_classes_without_a_split_count_among_all_where_others_have_one(tmp_path):
    ground_truth = ground_truth_of([thing(1, "cat", SPOT), thing(2, "knife", SPOT), thing(3, "zebra", SPOT)], [1, 2, 3])
    detections = [thing(1, "cat", SPOT), thing(3, "zebra", SPOT)]
    changes = {"base_classes": ["zebra"], "novel_classes": ["cat"], "unused_classes": []}
    evaluator = OVCOCOEvaluator(register(tmp_path, ground_truth, **changes), output_dir=tmp_path, protocol="both")
    feed(evaluator, [1, 2, 3], detections)
    figures = evaluator.evaluate()["bbox"]
    expected = {"AP_novel": 100, "AP_base": 100, "AP_all": 200 / 3, "AP_novel_run": 100}
    assert {key: figures[key] for key in expected} == pytest.approx(expected)
    rows = json.loads((tmp_path / "ov_coco_results.json").read_text())["per_class"]
    assert [row["class"] for row in rows] == ["zebra", "cat", "apple", "knife", "person", "sink"]
    assert rows[3]["split"] is None and rows[3]["AP"] == 0


def test_words_of_another_order_and_words_that_the_set_lacks(tmp_path):
    """Detections of other words only take places: figures are those without them."""
    ground_truth = make_ground_truth(1)
    detections = random_detections(ground_truth, 2)
    images = [image["id"] for image in ground_truth["images"]]
    expected = score(tmp_path, ground_truth, detections)
    indices = [7, 2, 0, 5, 4, 3]  # of eight words; 1 and 6 are not in the set
    index = {category: indices[i] for category, i in CONTIGUOUS.items()} | {-1: 1, -2: 6}
    others = [d | {"category_id": -1 - i % 2, "score": 0.99} for i, d in enumerate(detections)]
    evaluator = OVCOCOEvaluator(register(tmp_path), indices=indices)
    feed(evaluator, images, detections + others, index=index)
    assert evaluator.evaluate()["bbox"] == expected
    evaluator = OVCOCOEvaluator(register(tmp_path), indices=indices, max_dets=4)
    feed(evaluator, images, detections + others, index=index)
    assert evaluator.evaluate()["bbox"]["AP_all"] < expected["AP_all"]


@pytest.fixture
def function_set():
    """A set of a user's function, boxes XYXY, images named by texts; its metadata has thing_classes alone."""
    ground_truth = make_ground_truth(8, num_images=6)
    records = []
    for image in ground_truth["images"]:
        mine = [a for a in ground_truth["annotations"] if a["image_id"] == image["id"]]
        boxes = [{"bbox": np.add(a["bbox"], [0, 0, *a["bbox"][:2]]), "bbox_mode": BoxMode.XYXY_ABS} for a in mine]
        classes = [{"category_id": CONTIGUOUS[a["category_id"]], "iscrowd": a["iscrowd"]} for a in mine]
        record = {"file_name": f"{image['id']}.jpg", "image_id": f"image {image['id']}", "height": 100, "width": 100}
        records.append(record | {"annotations": [b | c for b, c in zip(boxes, classes, strict=True)]})
    DatasetCatalog.register("of_a_function", lambda: copy.deepcopy(records))
    yield MetadataCatalog.get("of_a_function").set(evaluator_type="mine"), records, ground_truth
    DatasetCatalog.remove("of_a_function")
    MetadataCatalog.remove("of_a_function")


def test_a_set_of_a_function_is_scored_by_its_records(tmp_path, function_set):
    metadata, records, ground_truth = function_set
    with pytest.raises(UserError, match="classes of data set 'of_a_function' have no names: set .*thing_classes"):
        OVCOCOEvaluator("of_a_function")
    metadata.thing_classes = list(NAMES.values())
    detections = random_detections(ground_truth, 9)
    evaluator = OVCOCOEvaluator("of_a_function")
    named = [d | {"image_id": f"image {d['image_id']}"} for d in detections]
    feed(evaluator, [record["image_id"] for record in records], named)
    other = OVCOCOEvaluator(register(tmp_path, ground_truth, **NO_SPLIT))
    feed(other, range(1, 7), detections)
    assert evaluator.evaluate() == other.evaluate()
    box = records[0]["annotations"][0]
    box["category_id"], before = len(NAMES), box["category_id"]
    with pytest.raises(UserError, match=f"'of_a_function' has boxes of class {len(NAMES)}, but {len(NAMES)} classes"):
        OVCOCOEvaluator("of_a_function")
    box["category_id"], records[1]["image_id"] = before, "image 1"
    with pytest.raises(UserError, match="'image 1' is the image_id of two images"):
        OVCOCOEvaluator("of_a_function")
    records[:] = [{**record, "image_id": i, "annotations": []} for i, record in enumerate(records)]
    with pytest.raises(UserError, match="'of_a_function' has no box, so nothing can be scored"):
        OVCOCOEvaluator("of_a_function")


def test_detectron2s_registered_json_is_scored_as_it_is(tmp_path):
    """Before it is loaded, its metadata has no classes; ids have gaps, and the file lists them in another order."""
    ground_truth = make_ground_truth(1)
    detections = random_detections(ground_truth, 2)
    expected = score(tmp_path, ground_truth, detections)
    ground_truth["categories"].reverse()
    (tmp_path / "reversed.json").write_text(json.dumps(ground_truth))
    register_coco_instances("of_detectron2", {}, str(tmp_path / "reversed.json"), str(tmp_path))
    try:
        evaluator = OVCOCOEvaluator("of_detectron2")
        feed(evaluator, [image["id"] for image in ground_truth["images"]], detections)
        figures = evaluator.evaluate()["bbox"]
        evaluator = OVCOCOEvaluator(register(tmp_path, **NO_SPLIT))
        feed(evaluator, [image["id"] for image in ground_truth["images"]], detections)
        assert figures == evaluator.evaluate()["bbox"] and expected != figures
        (tmp_path / "reversed.json").write_text(json.dumps(ground_truth | {"annotations": []}))
        with pytest.raises(UserError, match="reversed.json has no box, so nothing can be scored"):
            OVCOCOEvaluator("of_detectron2")
    finally:
        DatasetCatalog.remove("of_detectron2")
        MetadataCatalog.remove("of_detectron2")


def test_unused_classes_compete_for_the_slots(tmp_path, caplog):
    ground_truth = ground_truth_of([thing(1, "cat", SPOT), thing(1, "apple", AWAY)], [1])
    detections = [thing(1, "knife", SPOT, 0.9), thing(1, "cat", SPOT, 0.5)]
    detections += [thing(1, "apple", AWAY, 0.8), thing(1, "knife", AWAY, 0.7)]
    assert score(tmp_path, ground_truth, detections, max_dets=4)["AP50_novel"] == pytest.approx(100)
    assert "more than" not in caplog.text
    cut = score(tmp_path, ground_truth, detections, max_dets=3)
    assert cut["AP50_novel"] == 0.0 and cut["AP50_base"] == pytest.approx(100)
    assert "1 images had more than 3 detections" in caplog.text


def test_two_runs_also_count_images_without_base_and_novel_objects(tmp_path, caplog):
    # The surer "cat" is on an image with an unused object only, which the generalized protocol leaves out.
    ground_truth = ground_truth_of([thing(1, "cat", SPOT), thing(1, "person", AWAY), thing(2, "knife", SPOT)], [1, 2])
    detections = [thing(1, "cat", SPOT, 0.5), thing(2, "cat", SPOT, 0.9), thing(1, "person", AWAY, 0.5)]
    summary = score(tmp_path, ground_truth, detections, protocol="both")
    expected = {"novel": 100, "novel_run": 50, "base": 100, "base_run": 100, "all": 100}
    assert {group: summary[f"AP50_{group}"] for group in expected} == pytest.approx(expected)
    assert summary["AR_novel_run"] == pytest.approx(100) and "every image shows" not in caplog.text
    alone = score(tmp_path, ground_truth, detections, protocol="two_run")
    assert alone == {key: value for key, value in summary.items() if key.endswith("_run")}


def test_classes_without_ground_truth_leave_the_means(tmp_path, caplog):
    ground_truth = ground_truth_of([thing(1, "apple", SPOT), thing(1, "zebra", AWAY)], [1])
    detections = [thing(1, "apple", SPOT), thing(1, "cat", SPOT)]
    summary = score(tmp_path, ground_truth, detections, output_dir=tmp_path / "out", protocol="both")
    assert summary["AP50_base"] == summary["AP50_all"] == pytest.approx(50)  # apple 100, zebra 0, no person
    assert math.isnan(summary["AP50_novel"]) and math.isnan(summary["AR_novel_run"])
    text = (tmp_path / "out" / "ov_coco_results.json").read_text()
    assert "NaN" not in text and json.loads(text)["summary"]["AP50_novel"] is None
    assert "every image shows a base or novel object" in caplog.text  # so the two runs' images are the same
    with pytest.raises(UserError, match="has no box, so nothing can be scored"):
        score(tmp_path, ground_truth_of([], [1, 2]), detections[:1], protocol="both")


def test_images_not_processed_count_as_missed_and_repeated_ones_once(tmp_path, caplog):
    ground_truth = ground_truth_of([thing(1, "cat", SPOT), thing(2, "cat", SPOT)], [1, 2])
    detections = [thing(1, "cat", AWAY, 0.9), thing(1, "cat", SPOT, 0.8), thing(2, "cat", SPOT, 0.7)]
    once = score(tmp_path, ground_truth, detections)
    evaluator = OVCOCOEvaluator(register(tmp_path, ground_truth))
    feed(evaluator, [1, 2, 1], detections)
    assert evaluator.evaluate()["bbox"] == once
    evaluator.reset()
    feed(evaluator, [2], detections)
    assert evaluator.evaluate()["bbox"]["AR_novel"] == pytest.approx(50)
    assert "1 of 2 images" in caplog.text
    evaluator.reset()
    assert evaluator.evaluate()["bbox"]["AP50_novel"] == 0.0
    assert "no detections" in caplog.text
    evaluator.skip(Skipped("a.jpg", "missing"))
    with pytest.raises(UserError, match="No image of .* could be read, the first is a.jpg: missing"):
        evaluator.evaluate()


def test_ground_truth_as_detections_scores_100_in_files_and_tables(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    ground_truth, folder = make_ground_truth(), tmp_path / "a" / "b"
    evaluator = OVCOCOEvaluator(register(tmp_path, ground_truth), output_dir=folder, protocol="both")
    evaluators = DatasetEvaluators([evaluator])
    feed(evaluators, [image["id"] for image in ground_truth["images"]], ground_truth["annotations"])
    results = evaluators.evaluate()
    groups = (["novel", "base", "all"], ["novel_run", "base_run"])
    names = [f"{metric}_{group}" for part in groups for metric in ("AP50", "AP", "AR") for group in part]
    assert list(results["bbox"]) == names
    assert results["bbox"] == pytest.approx(dict.fromkeys(names, 100.0), abs=1e-9)
    print_csv_format(results)
    assert "copypaste: AP50_novel,AP50_base,AP50_all,AP_novel" in caplog.text
    assert "| all " in caplog.text and "| class " in caplog.text
    assert {p.name for p in folder.iterdir()} == {"coco_instances_results.json", "ov_coco_results.json"}
    written = json.loads((folder / "coco_instances_results.json").read_text())
    assert len(written) == len(ground_truth["annotations"]) and {d["category_id"] for d in written} == set(NAMES)
    report = json.loads((folder / "ov_coco_results.json").read_text())
    assert report["summary"] == results["bbox"]
    classes = [("base", name) for name in sorted(BASE)] + [("novel", name) for name in sorted(NOVEL)]
    assert [(row["split"], row["class"]) for row in report["per_class"]] == classes
    for row in report["per_class"]:
        mine = [a for a in ground_truth["annotations"] if a["category_id"] == IDS[row["class"]]]
        assert row["num_gt"] == sum(not a["iscrowd"] for a in mine)


@pytest.mark.parametrize("changes, options, message", [
    ({"json_file": "nowhere/instances.json"}, {}, "nowhere/instances.json"),
    ({"novel_classes": ["sink", "unicorn"]}, {}, "classes unicorn of .* have two splits, or are no thing_classes"),
    ({"novel_classes": ["sink", "apple"]}, {}, "classes apple of .* have two splits"),
    ({}, {"protocol": "zero-shot"}, "TEST.PROTOCOL 'zero-shot'"),
])  # fmt: skip
def test_mistakes_are_found_before_inference(tmp_path, changes, options, message):
    name = register(tmp_path, make_ground_truth(), **changes)
    with pytest.raises(UserError, match=message):
        OVCOCOEvaluator(name, **options)


# ---- box_figures


def by_class(annotations, detections, **options):
    ground_truth = ground_truth_of(annotations, [1])
    before = copy.deepcopy((ground_truth, detections))
    found = box_figures(ground_truth, detections, category_ids=NAMES, **options)
    assert (ground_truth, detections) == before
    return {NAMES[category]: figures for category, figures in found.items()}


def test_vldets_65_classes_score_as_the_same_detections_of_80_classes(tmp_path, monkeypatch):
    """vldet §6: one evaluation of the 65; each class is the mean's equal."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    rng = np.random.default_rng(0)
    things = [
        {"image_id": i, "category_id": key, "bbox": [*rng.integers(0, 50, 2).tolist(), 20, 30]}
        for i in range(1, 9) for key in rng.choice(list(SPLIT_INDEX), 20, replace=False).tolist()
    ]  # fmt: skip
    ground_truth = ground_truth_of(things, range(1, 9)) | {
        "categories": [{"id": key, "name": str(key)} for key in COCO_INDEX]
    }
    (tmp_path / "coco/zero-shot").mkdir(parents=True)
    (tmp_path / "coco/zero-shot/instances_val2017_all_2_oriorder.json").write_text(json.dumps(ground_truth))
    shifted = [d | {"bbox": (np.add(d["bbox"], rng.normal(0, 4, 4))).tolist(), "score": rng.random()} for d in things]
    scores = {}
    for name in ("coco_generalized_del_val", "coco_generalized_zeroshot_val"):
        for key, detections in (("own", things), ("shifted", shifted)):
            evaluator = OVCOCOEvaluator(name)
            feed(evaluator, range(1, 9), detections, index=MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id)
            scores[name, key] = evaluator.evaluate()["bbox"]
        assert [scores[name, "own"][f"AP50_{group}"] for group in ("novel", "base", "all")] == pytest.approx([100] * 3)
    assert scores["coco_generalized_del_val", "shifted"] == scores["coco_generalized_zeroshot_val", "shifted"]
    assert 0 < scores["coco_generalized_del_val", "shifted"]["AP50_novel"] < 100


def test_average_precision_by_hand():
    # Two objects; hit, miss, hit: precision 1 up to recall 1/2 (51 of 101 points), 2/3 beyond.
    detections = [thing(1, "cat", SPOT, 0.9), thing(1, "cat", [80, 0, 10, 10], 0.8), thing(1, "cat", AWAY, 0.7)]
    found = by_class([thing(1, "cat", SPOT) | {"id": 0}, thing(1, "cat", AWAY)], detections)  # id 0 is an id
    expected = 100 * (51 + 50 * 2 / 3) / 101
    assert {key: found["cat"][key] for key in ("AP50", "AP75", "AP", "AR")} == pytest.approx(
        {"AP50": expected, "AP75": expected, "AP": expected, "AR": 100}, abs=1e-10
    )
    assert np.isnan(list(found["apple"].values())).all()
    for max_dets, expected in ((2, 0.0), (3, 100 / 3)):  # of each image and category
        more = [*[thing(1, "cat", AWAY, 0.9)] * 2, thing(1, "cat", SPOT, 0.7), *[thing(1, "sink", AWAY)] * 5]
        found = by_class([thing(1, "cat", SPOT)], more, max_dets=max_dets)
        assert found["cat"]["AP50"] == pytest.approx(expected, abs=1e-10)


def test_crowds_neither_hit_nor_miss():
    crowd, inside = [0, 0, 50, 50], [[0, 0, 10, 10], [20, 20, 10, 10]]
    truth = [thing(1, name, crowd) | {"iscrowd": 1} for name in ("cat", "sink")] + [thing(1, "cat", AWAY)]
    found = by_class(truth, [*(thing(1, "cat", box, 0.9) for box in inside), thing(1, "cat", AWAY, 0.5)])
    assert found["cat"]["AP"] == pytest.approx(100, abs=1e-10)  # two detections may fall in one crowd
    assert np.isnan(found["sink"]["AP"])  # a class of crowds only has nothing to find


def test_no_detections_score_zero_and_empty_choices_are_empty():
    ground_truth = ground_truth_of([thing(1, "cat", SPOT)], [1, 2])
    found = ground_truth["annotations"]
    for detections, images, cat in (([], None, 0.0), (found, [2], math.nan), (found, [], math.nan)):
        figures = box_figures(ground_truth, detections, category_ids=reversed(NAMES), image_ids=images)
        assert list(figures) == sorted(NAMES)
        for category, row in figures.items():
            expected = dict.fromkeys(COCO_METRICS, cat if category == IDS["cat"] else math.nan)  # without ground truth
            assert row == pytest.approx(expected | {"APm": math.nan, "APl": math.nan}, nan_ok=True)  # SPOT is small
    assert box_figures(ground_truth, found, category_ids=[]) == {}
    with pytest.raises(UserError, match="image 5, which is not in the ground truth"):
        box_figures(ground_truth, [thing(5, "cat", SPOT)], category_ids=[1])


# ---- two processes


def test_two_processes_equal_one(tmp_path, run_two):
    ground_truth = make_ground_truth(5)
    detections = random_detections(ground_truth, 6)
    single = score(tmp_path, ground_truth, detections, protocol="both", output_dir=tmp_path / "one")
    (tmp_path / "detections.json").write_text(json.dumps(detections))
    run_two(__file__, tmp_path)
    assert json.loads((tmp_path / "rank0.json").read_text()) == {"bbox": single}
    assert json.loads((tmp_path / "rank1.json").read_text()) == {}
    for name in ("coco_instances_results.json", "ov_coco_results.json"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()


def one_of_two_processes(rank, folder):
    """Rank 0 sees the even images, rank 1 the odd ones and, as a padding sampler would, image 2 again."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    ground_truth = json.loads((folder / "instances.json").read_text())
    images = [image["id"] for image in ground_truth["images"] if image["id"] % 2 == rank]
    evaluator = OVCOCOEvaluator(register(folder), protocol="both", output_dir=folder / "two")
    feed(evaluator, images + [2] * rank, json.loads((folder / "detections.json").read_text()))
    (folder / f"rank{rank}.json").write_text(json.dumps(evaluator.evaluate()))
    comm.synchronize()  # an early end of one process can abort the other
    leave_group()


if __name__ == "__main__":
    one_of_two_processes(int(sys.argv[1]), Path(sys.argv[2]))
