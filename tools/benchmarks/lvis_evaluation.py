"""LVIS evaluation: CLIM's against the lvis package's, on made-up boxes and masks. CPU seconds and memory."""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_util
from tqdm import tqdm

from clim.evaluation.base import PACKED, unpack
from clim.evaluation.lvis import lvis_figures, lvis_precision
from clim.files import write_json

from .inputs import Settings
from .stopwatch import Spread, fresh, interleaved, paired_ratio, peak_resident_bytes, reset_peak

CLASSES, DETECTIONS, SIZE = 1203, 300, (480, 640)
MEMORY = ("inputs", "on top")
ANGLES = np.linspace(0, 2 * np.pi, 20, endpoint=False)
JUDGED = 1 / 3  # of the detections are of a class that the image shows or names as absent; LVIS drops others


def measure_lvis(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """LVIS evaluation of 300 made-up detections an image.

    Every run has its own process. Memory is that of the inputs, and what comes on top.
    """
    rows = []
    for count, names in zip(settings.evaluated, (("lvis", "CLIM"), ("CLIM",)), strict=True):
        folder = Path(settings.folder) / f"lvis_{count}"
        fresh(write_world, folder, count)
        for task in ("bbox", "segm"):
            arms = {name: partial(fresh, evaluate_once, name, task, folder) for name in names}
            runs = interleaved(arms, repeats=settings.repeats, title=f"{count} images, {task}", warm_up=0)
            seconds = {name: [run["seconds"] for run in taken] for name, taken in runs.items()}
            for name, taken in runs.items():
                ratio = paired_ratio(seconds[names[0]], seconds[name]) if len(names) > 1 else "-"
                row = {"images": count, "task": task, "evaluator": name, "CPU s": Spread.of(seconds[name])}
                row |= {"times as fast": ratio, "AP": taken[0]["AP"]}
                rows.append(row | {f"{key} MiB": Spread.of([r[key] / 2**20 for r in taken]) for key in MEMORY})
    return rows


def evaluate_once(name: str, task: str, folder: Path) -> dict:
    """CPU seconds of one evaluation, the bytes of its inputs and what it takes on top, and its AP in percent."""
    start_bytes = reset_peak()
    detections = np.load(folder / "detections.npy", allow_pickle=True)
    if name == "CLIM":
        ground_truth = json.loads((folder / "instances.json").read_text())

        def evaluate():
            return lvis_figures(lvis_precision(ground_truth, detections, iou_type=task, processes=1))["AP"]
    else:
        np.float = float  # lvis 0.5.3 uses NumPy's old name
        from lvis import LVIS, LVISEval, LVISResults

        ground_truth = LVIS(str(folder / "instances.json"))
        results = list(unpack(detections))
        del detections
        for result in results:
            result.pop("bbox" if task == "segm" else "segmentation")

        def evaluate():
            evaluation = LVISEval(ground_truth, LVISResults(ground_truth, results), task)
            evaluation.run()
            return 100 * evaluation.get_results()["AP"]

    before, start = reset_peak(), time.process_time()
    ap, seconds = float(evaluate()), time.process_time() - start
    return {"AP": ap, "seconds": seconds, "inputs": before - start_bytes, "on top": peak_resident_bytes() - before}


def write_world(folder: Path, count: int) -> None:
    """``count`` images with about as many objects, classes and absent classes each as LVIS v1's validation images."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, CLASSES + 1)
    weights /= weights.sum()
    categories = [{"id": c, "name": str(c), "frequency": "fcr"[min(c // 401, 2)]} for c in range(1, CLASSES + 1)]
    images, annotations, detections = [], [], np.zeros((count, DETECTIONS), PACKED)
    for i, found in enumerate(tqdm(detections, desc="made-up detections", unit="image")):
        judged = rng.permutation(np.unique(rng.choice(CLASSES, 11, p=weights) + 1))
        shown, absent, objects = judged[:4], judged[4:], int(rng.integers(1, 25))
        lacking = shown[rng.random(len(shown)) < 0.15].tolist()
        image = {"id": i, "height": SIZE[0], "width": SIZE[1], "neg_category_ids": absent.tolist()}
        images.append(image | {"not_exhaustive_category_ids": lacking})
        extent = rng.uniform(0.03, 0.5, (objects, 2)) * SIZE[::-1]
        boxes = np.hstack([rng.uniform(0, 1, (objects, 2)) * (SIZE[::-1] - extent), extent])
        classes = rng.choice(shown, objects)
        for box, c in zip(boxes.tolist(), classes.tolist(), strict=True):
            shape = {"bbox": box, "area": box[2] * box[3], "segmentation": [ellipse(box)]}
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": c} | shape)
        source = rng.integers(0, objects, DETECTIONS)
        guess = np.where(rng.random(DETECTIONS) < 0.6, classes[source], rng.choice(judged, DETECTIONS))
        anything = rng.integers(1, CLASSES + 1, DETECTIONS)
        found["image_id"], found["score"], found["size"] = i, rng.random(DETECTIONS), SIZE
        found["category_id"] = np.where(rng.random(DETECTIONS) < JUDGED, guess, anything)
        found["bbox"] = (boxes[source] + rng.normal(0, 8, (DETECTIONS, 4))).clip(min=3)
        found["counts"] = [m["counts"] for m in mask_util.frPyObjects(list(map(ellipse, found["bbox"])), *SIZE)]
    write_json(folder / "instances.json", {"categories": categories, "images": images, "annotations": annotations})
    np.save(folder / "detections.npy", detections.reshape(-1))


def ellipse(box) -> list[float]:
    """Polygon in a box XYWH."""
    x, y, width, height = box
    points = [x + width * (1 + np.cos(ANGLES)) / 2, y + height * (1 + np.sin(ANGLES)) / 2]
    return np.stack(points, axis=1).ravel().tolist()
