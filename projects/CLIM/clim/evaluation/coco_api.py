"""COCO's box precision and recall, computed by faster-coco-eval.

This module cleans its input, as the library counts an annotation with id 0 as unmatched, fails on an empty list of
detections, takes an empty list of images or categories for all of them, and modifies detections.

Shapes: T IoU thresholds (.50:.05:.95), R recall thresholds (0:.01:1), K categories.
"""

import contextlib
import io
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from clim.errors import UserError

METRICS = ("AP50", "AP", "AR")
ALL_AREAS = [0.0, 1e10]  # COCO's area range "all", in square pixels


class PrecisionRecall(NamedTuple):
    """Interpolated precision and final recall in [0, 1]; -1 for a category without ground truth, crowds aside."""

    precision: np.ndarray  # (T, R, K)
    recall: np.ndarray  # (T, K)
    category_ids: list[int]  # K, ascending

    def by_class(self) -> dict[int, dict[str, float]]:
        """{category id: {"AP50", "AP", "AR"}} in percent, nan without ground truth."""
        columns = (self.precision[:1].mean(axis=(0, 1)), self.precision.mean(axis=(0, 1)), self.recall.mean(axis=0))
        columns = [100 * np.where(column < 0, np.nan, column) for column in columns]
        return {
            category: dict(zip(METRICS, map(float, figures), strict=True))
            for category, *figures in zip(self.category_ids, *columns, strict=True)
        }


def precision_recall(
    ground_truth: Mapping,
    detections: Iterable[Mapping],
    *,
    category_ids: Iterable[int] | None = None,
    image_ids: Iterable[int] | None = None,
    max_dets: int = 100,
) -> PrecisionRecall:
    """One COCO box evaluation over all areas. Does not modify its arguments.

    ``ground_truth`` is a COCO instances dict, ``detections`` are COCO results {image_id, category_id, bbox XYWH pixels,
    score}. Evaluates ``category_ids`` on ``image_ids`` (None: all), and the ``max_dets`` best detections of an image
    *and category*, as COCO. UserError if the image of a detection is not in the ground truth.
    """
    known = {image["id"] for image in ground_truth["images"]}
    images = known if image_ids is None else known & set(image_ids)
    if category_ids is None:
        category_ids = (category["id"] for category in ground_truth["categories"])
    categories = sorted(set(category_ids))
    detections = list(detections)
    check_images(ground_truth, {detection["image_id"] for detection in detections})

    evaluation = COCOeval_faster(iouType="bbox")
    params = evaluation.params
    params.imgIds, params.catIds = sorted(images), categories
    params.areaRng, params.areaRngLbl, params.maxDets = [ALL_AREAS], ["all"], [max_dets]
    shape = (len(params.iouThrs), len(params.recThrs), len(categories))
    if not (images and categories):
        return PrecisionRecall(-np.ones(shape), -np.ones(shape[::2]), categories)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.cocoGt = _indexed(params, ground_truth["annotations"])
        evaluation.cocoDt = _indexed(params, detections)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"]).reshape(shape)
    recall = np.asarray(evaluation.eval["recall"]).reshape(shape[::2])
    return PrecisionRecall(precision, recall, categories)


def check_images(ground_truth: Mapping, image_ids: Iterable[int]) -> None:
    """UserError if one of the detections' ``image_ids`` is not in the ground truth."""
    if unknown := set(image_ids) - {image["id"] for image in ground_truth["images"]}:
        raise UserError(
            f"A detection belongs to image {min(unknown)}, which is not in the ground truth: evaluate on the file of "
            "these images."
        )


def indexed(images: list[dict], categories: list[dict], annotations: Iterable[Mapping]) -> COCO:
    """A COCO object of annotations or detections, whose ids start at 1."""
    coco = COCO()
    annotations = [annotation | {"id": i} for i, annotation in enumerate(annotations, start=1)]
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    coco.createIndex()
    return coco


def _indexed(params, annotations: Iterable[Mapping]) -> COCO:
    """A COCO object of the annotations or detections on the images and of the categories that ``params`` names."""
    images, categories = set(params.imgIds), set(params.catIds)
    chosen = [_annotation(a) for a in annotations if a["image_id"] in images and a["category_id"] in categories]
    return indexed([{"id": i} for i in params.imgIds], [{"id": c} for c in params.catIds], chosen)


def _annotation(found: Mapping) -> dict:
    """A copy of the fields that a box evaluation reads."""
    kept = {key: found[key] for key in ("image_id", "category_id", "score") if key in found}
    box, crowd = list(found["bbox"]), int(found.get("iscrowd", 0))
    return kept | {"bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
