"""COCO's box precision and recall, from faster-coco-eval where it is installed, else from pycocotools.

Both libraries get the same cleaned input, so that their numbers agree and these habits of theirs never show:
an annotation with id 0 counts as unmatched; an empty list of detections fails to load; an empty list of
images or categories means all of them; ``area`` and ``iscrowd`` are required; detections are modified.

Shapes: T IoU thresholds (.50:.05:.95), R recall thresholds (0:.01:1), K categories.
"""

import contextlib
import importlib.util
import io
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from clim.errors import UserError

ALL_AREAS = (0.0, 1e10)  # COCO's area range "all", in square pixels


class EvaluationParams(NamedTuple):
    """What a :class:`PrecisionRecall` was computed with."""

    iou_thresholds: np.ndarray  # (T,)
    recall_thresholds: np.ndarray  # (R,)
    category_ids: tuple[int, ...]  # K, ascending
    image_ids: tuple[int, ...]  # ascending
    max_dets: int  # per image and category, as COCO counts them
    backend: str


class PrecisionRecall(NamedTuple):
    """Interpolated precision, final recall in [0, 1]; -1 for a category without (non-crowd) ground truth."""

    precision: np.ndarray  # (T, R, K)
    recall: np.ndarray  # (T, K)
    params: EvaluationParams

    def average_precision(self, *, iou: float | None = None) -> np.ndarray:
        """AP of each category at one IoU, or the mean over all: (K,) in [0, 1], nan without ground truth."""
        precision = self.precision
        if iou is not None:
            precision = precision[np.isclose(self.params.iou_thresholds, iou)]
            if not len(precision):
                raise ValueError(f"IoU {iou} is not one of COCO's thresholds {self.params.iou_thresholds}")
        return _absent_to_nan(precision.mean(axis=(0, 1)))

    def average_recall(self) -> np.ndarray:
        """AR of each category at ``max_dets``, the mean over IoUs: (K,), nan without ground truth."""
        return _absent_to_nan(self.recall.mean(axis=0))


def resolve_backend(name: str) -> str:
    """``faster`` or ``pycocotools``; ``auto`` is the faster one where installed. Else raises UserError."""
    installed = importlib.util.find_spec("faster_coco_eval") is not None
    if name == "auto":
        return "faster" if installed else "pycocotools"
    if name not in ("faster", "pycocotools"):
        raise UserError(f"unknown COCO backend '{name}': choose auto, faster or pycocotools")
    if name == "faster" and not installed:
        raise UserError("COCO backend 'faster' needs `pip install faster-coco-eval`, or choose 'pycocotools'")
    return name


def precision_at(
    ground_truth,
    detections: Iterable[Mapping],
    *,
    backend: str = "auto",
    category_ids: Iterable[int] | None = None,
    image_ids: Iterable[int] | None = None,
    max_dets: int = 100,
) -> PrecisionRecall:
    """One COCO box evaluation, all areas.

    Args:
        ground_truth: a COCO instances dict, or a COCO object (its ``dataset`` is read). Never modified.
        detections: COCO results {image_id, category_id, bbox XYWH pixels, score}. Never modified.
        backend: "auto", "faster" or "pycocotools".
        category_ids: categories to evaluate (default: the file's). Detections of others are left out.
        image_ids: images to evaluate (default: the file's). Detections on the file's others are left out.
        max_dets: best detections used per image *and category*: COCO's reading of maxDets.

    Raises:
        UserError: a detection's image is not in the ground truth; an unknown backend.
    """
    backend = resolve_backend(backend)
    dataset = ground_truth if isinstance(ground_truth, Mapping) else ground_truth.dataset
    known = {image["id"] for image in dataset["images"]}
    images = known if image_ids is None else known & set(image_ids)
    categories = {c["id"] for c in dataset["categories"]} if category_ids is None else set(category_ids)

    truth = [_annotation(a) for a in dataset["annotations"] if _wanted(a, images, categories)]
    found = []
    for detection in detections:
        if detection["image_id"] not in known:
            raise UserError(
                f"a detection belongs to image {detection['image_id']}, which is not in the ground truth: "
                "evaluate on the file that the images came from"
            )
        if _wanted(detection, images, categories):
            found.append(_annotation(detection) | {"score": detection["score"]})

    evaluation = _evaluation(backend)
    params = evaluation.params
    params.imgIds, params.catIds = sorted(images), sorted(categories)
    params.areaRng, params.areaRngLbl, params.maxDets = [list(ALL_AREAS)], ["all"], [max_dets]
    shape = (len(params.iouThrs), len(params.recThrs), len(categories))
    precision, recall = -np.ones(shape), -np.ones((shape[0], shape[2]))
    if images and categories:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.cocoGt = _indexed(backend, images=images, categories=categories, annotations=truth)
            evaluation.cocoDt = _indexed(backend, images=images, categories=categories, annotations=found)
            evaluation.evaluate()
            evaluation.accumulate()
        precision = np.asarray(evaluation.eval["precision"]).reshape(*shape, 1, 1)[..., 0, 0]
        recall = np.asarray(evaluation.eval["recall"]).reshape(shape[0], shape[2], 1, 1)[..., 0, 0]
    return PrecisionRecall(
        precision,
        recall,
        EvaluationParams(
            iou_thresholds=np.asarray(params.iouThrs),
            recall_thresholds=np.asarray(params.recThrs),
            category_ids=tuple(sorted(categories)),
            image_ids=tuple(sorted(images)),
            max_dets=max_dets,
            backend=backend,
        ),
    )


def _wanted(annotation: Mapping, images: set, categories: set) -> bool:
    return annotation["image_id"] in images and annotation["category_id"] in categories


def _annotation(source: Mapping) -> dict:
    """The fields that a box evaluation reads. ``area`` is the box's: with all areas it decides nothing."""
    _, _, width, height = source["bbox"]
    return {
        "image_id": source["image_id"],
        "category_id": source["category_id"],
        "bbox": list(source["bbox"]),
        "area": width * height,
        "iscrowd": int(source.get("iscrowd", 0)),
    }


def _indexed(backend: str, *, images: set, categories: set, annotations: list[dict]):
    """A COCO object of the backend, built without its loaders; ids from 1, as 0 would read as "unmatched"."""
    if backend == "faster":
        from faster_coco_eval import COCO
    else:
        from pycocotools.coco import COCO
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in sorted(images)],
        "categories": [{"id": c} for c in sorted(categories)],
        "annotations": [a | {"id": i} for i, a in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco


def _evaluation(backend: str):
    if backend == "faster":
        from faster_coco_eval import COCOeval_faster as COCOeval
    else:
        from pycocotools.cocoeval import COCOeval
    return COCOeval(iouType="bbox")


def _absent_to_nan(values: np.ndarray) -> np.ndarray:
    return np.where(values < 0, np.nan, values)
