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

CLASSES, OBJECTS, DETECTIONS, SIZE = 80, 7, 100, (640, 480)
RESULT = ("image_id", "category_id", "bbox", "score")
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
    """A COCO dict of ``count`` images with OBJECTS each, and DETECTIONS results an image."""
    rng, images = np.random.default_rng(0), np.repeat(np.arange(1, count + 1), OBJECTS)
    extent = rng.uniform(0.03, 0.5, (len(images), 2)) * SIZE
    boxes = np.hstack([rng.uniform(0, 1, extent.shape) * (SIZE - extent), extent])
    classes = rng.integers(1, CLASSES + 1, len(images))
    source = (np.arange(count)[:, None] * OBJECTS + rng.integers(0, OBJECTS, (count, DETECTIONS))).ravel()
    anything = rng.integers(1, CLASSES + 1, len(source))
    found = np.where(rng.random(len(source)) < 0.6, classes[source], anything)
    moved = (boxes[source] + rng.normal(0, 8, (len(source), 4))).clip(min=3)
    objects = enumerate(zip(images.tolist(), classes.tolist(), boxes.tolist(), strict=True), start=1)
    columns = (column.tolist() for column in (images[source], found, moved, rng.random(len(source))))
    ground_truth = {
        "images": [{"id": i, "width": SIZE[0], "height": SIZE[1]} for i in range(1, count + 1)],
        "categories": [{"id": c, "name": str(c)} for c in range(1, CLASSES + 1)],
        "annotations": [
            {"id": k, "image_id": i, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for k, (i, c, box) in objects
        ],
    }
    return ground_truth, [dict(zip(RESULT, row, strict=True)) for row in zip(*columns, strict=True)]
