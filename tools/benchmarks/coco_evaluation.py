"""OV-COCO's box evaluation: CLIM's against pycocotools and faster-coco-eval, on made-up boxes. CPU seconds."""

import contextlib
import io
from collections.abc import Sequence
from functools import partial

import numpy as np
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clim.errors import UserError
from clim.evaluation.ov_coco import box_figures, group_means

from .inputs import Settings
from .stopwatch import Spread, compared, paired_ratio

CLASSES, DETECTIONS, SIZE = 80, 100, (640, 480)
SCORED = list(range(1, 66))  # ids of the classes that count


def measure_evaluation(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """OV-COCO evaluation of 100 made-up detections an image."""
    settings.start()
    rows = []
    for count, names in zip(settings.evaluated, (tuple(EVALUATORS), ("CLIM", "faster-coco-eval")), strict=True):
        ground_truth, detections = world(count)
        ways = {name: partial(EVALUATORS[name], ground_truth, list(map(dict, detections))) for name in names}
        seconds, found = compared(ways, repeats=settings.repeats, title=f"{count} images")
        if max(found.values()) - min(found.values()) > 1e-6:
            raise UserError(f"The evaluators find different AP: {found}. Report this as an error.")
        rows += [
            {
                "images": f"{count:,}", "evaluator": name, "cpu s": Spread.of(seconds[name]),
                "times as slow": paired_ratio(seconds[name], seconds["CLIM"]), "AP": found[name],
            }
            for name in names
        ]  # fmt: skip
    return rows


def clim_ap(ground_truth: dict, detections: list[dict]) -> float:
    by_class = box_figures(ground_truth, detections, category_ids=SCORED)
    return group_means(by_class, {"": SCORED}, metrics=["AP"])["AP"]


def plain_ap(index: type, evaluator: type, ground_truth: dict, detections: list[dict]) -> float:
    """As the evaluators are used; they add fields to the detections."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = index()
        coco.dataset = ground_truth
        coco.createIndex()
        evaluation = evaluator(coco, coco.loadRes(detections), "bbox")
        evaluation.params.catIds = SCORED
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(100 * evaluation.stats[0])


EVALUATORS = {
    "CLIM": clim_ap,
    "pycocotools": partial(plain_ap, COCO, COCOeval),
    "faster-coco-eval": partial(plain_ap, FasterCOCO, COCOeval_faster),
}


def world(count: int) -> tuple[dict, list[dict]]:
    """A COCO dict of ``count`` images with 7 objects each in the mean, and DETECTIONS results an image."""
    rng = np.random.default_rng(0)
    annotations, detections = [], []
    for image in range(1, count + 1):
        objects = int(rng.integers(1, 14))
        extent = rng.uniform(0.03, 0.5, (objects, 2)) * SIZE
        boxes = np.hstack([rng.uniform(0, 1, (objects, 2)) * (SIZE - extent), extent])
        classes = rng.integers(1, CLASSES + 1, objects)
        for box, c in zip(boxes.tolist(), classes.tolist(), strict=True):
            shape = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": c} | shape)
        source = rng.integers(0, objects, DETECTIONS)
        anything = rng.integers(1, CLASSES + 1, DETECTIONS)
        found = np.where(rng.random(DETECTIONS) < 0.6, classes[source], anything).tolist()
        moved = (boxes[source] + rng.normal(0, 8, (DETECTIONS, 4))).clip(min=3).tolist()
        for box, c, score in zip(moved, found, rng.random(DETECTIONS).tolist(), strict=True):
            detections.append({"image_id": image, "category_id": c, "bbox": box, "score": score})
    width, height = SIZE
    images = [{"id": i, "width": width, "height": height} for i in range(1, count + 1)]
    categories = [{"id": c, "name": str(c)} for c in range(1, CLASSES + 1)]
    return {"images": images, "categories": categories, "annotations": annotations}, detections
