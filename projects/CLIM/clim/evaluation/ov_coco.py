"""COCO's box AP of any set, in percent; where the set declares base or novel classes, on each of these groups.

A set without a split is scored as COCO is: AP, AP50, AP75, APs, APm, APl and AR of all its classes, 100 detections of
an image *and class*. With a split, there are two published protocols, which differ in the images that count.

- **generalized** (OVR-CNN, Detic): one evaluation of all classes on the images that show an object of one, crowds
  included: for OV-COCO the 65 base and novel ones, 4,836 of val2017's 5,000 images.
- **two_run** (CLIM release): one evaluation of the base and one of the novel classes on every image of the file, so
  that detections on images without such objects count too.

In both, the detector predicts its whole vocabulary (80 names), and the ``max_dets`` best boxes of an image count,
whatever their class: boxes of unused classes take places too. Classes of a set that are neither base nor novel count
among all classes, unless its metadata lists them as ``unused_classes``, as those of COCO are.
"""

import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping
from functools import partial

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from clim.errors import UserError

from .base import AREAS, DetectionEvaluator, check_images, indexed, unpack

METRICS = ("AP50", "AP", "AR")  # of a set with a split
COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")
PROTOCOLS = ("generalized", "two_run", "both")

logger = logging.getLogger(__name__)


class OVCOCOEvaluator(DetectionEvaluator):
    """Scores detections of a registered data set as COCO does, also on its base and novel classes.

    Results are ``{"bbox": {"AP": …, "AP50", "AP75", "APs", "APm", "APl", "AR"}}``; of a set with base or novel classes
    ``{"bbox": {"AP50_novel": …, "AP50_base": …, "AP50_all": …, "AP_novel": …, "AR_novel": …}}``, where the groups of
    the two runs are ``base_run`` and ``novel_run``. Figures are means over classes with ground truth, nan without.
    """

    report_file, keys = "ov_coco_results.json", {"protocol": "TEST.PROTOCOL"}
    splits = ("base", "novel", "unused")

    def __init__(self, dataset_name: str, *, max_dets: int = 100, protocol: str = "generalized", **base):
        """The metadata may have the lists base_classes, novel_classes and unused_classes.

        UserError for an unknown ``protocol``, and as the parent.
        """
        if protocol not in PROTOCOLS:
            raise UserError(f"TEST.PROTOCOL '{protocol}' is unknown: choose one of {', '.join(PROTOCOLS)}.")
        super().__init__(dataset_name, max_dets=max_dets, **base)
        self._protocol, self._per_class = protocol if self._has_split else "coco", max_dets
        if not self._has_split:
            self._max_dets = None  # COCO's limit is that of each class
        self.columns = METRICS if self._has_split else sorted(COCO_METRICS, key="AP50".__ne__)  # AP50 is the first

    def score(self, results, skipped):
        detections = [detection for image in results.values() for detection in unpack(image.found)]
        self.write("coco_instances_results.json", detections)
        ground_truth = self.ground_truth(results)
        summary, by_class = self._figures(ground_truth, detections)
        objects = Counter(a["category_id"] for a in ground_truth["annotations"] if not a.get("iscrowd", 0))
        per_class = []
        for split in ("base", "novel", None):
            for name, category in sorted((self._splits[split] if split else self._undeclared).items()):
                row = {"class": name, "split": split, "num_gt": objects[category]}
                for suffix, scores in by_class.items():
                    row |= {metric + suffix: figure for metric, figure in scores.get(category, {}).items()}
                per_class.append(row)
        details = {"protocol": self._protocol, "backend": "faster", "max_dets": self._per_class}
        return details, {"bbox": summary}, per_class

    def _figures(self, ground_truth: dict, detections: list[dict]) -> tuple[OrderedDict, dict]:
        """{figure: mean over a group}, and {suffix of the protocol's figures: {category id: {metric: value}}}."""
        base, novel = (list(self._splits[split].values()) for split in ("base", "novel"))
        every = [*base, *novel, *self._undeclared.values()]
        num_images = len(ground_truth["images"])
        run = partial(box_figures, ground_truth, detections, max_dets=self._per_class)
        if not self._has_split:
            by_class = {"": run(category_ids=every)}
            return group_means(by_class[""], {"": every}, metrics=COCO_METRICS), by_class
        shown = {a["image_id"] for a in ground_truth["annotations"] if a["category_id"] in set(every)}
        summary, by_class = OrderedDict(), {}
        if self._protocol != "two_run":
            logger.info(f"generalized: {len(shown)} of {num_images} images show an object of a class that counts")
            by_class[""] = run(category_ids=every, image_ids=shown)
            summary |= group_means(by_class[""], {"_novel": novel, "_base": base, "_all": every})
        if self._protocol != "generalized":
            if len(shown) == num_images:
                logger.warning("two runs: every image shows a base or novel object; CLIM's file has others")
            by_class["_run"] = run(category_ids=base) | run(category_ids=novel)
            summary |= group_means(by_class["_run"], {"_novel_run": novel, "_base_run": base})
        return summary, by_class


def group_means(
    scores: Mapping[int, Mapping[str, float]], groups: Mapping[str, Iterable[int]], *, metrics: Iterable[str] = METRICS
) -> OrderedDict:
    """{metric + name of a group: mean over the group's classes that are not nan, or nan}."""
    means = OrderedDict()
    for metric in metrics:
        for group, categories in groups.items():
            values = [v for c in categories if not math.isnan(v := scores[c][metric])]
            means[metric + group] = math.fsum(values) / len(values) if values else math.nan
    return means


def box_figures(
    ground_truth: Mapping, detections: Collection[Mapping], *, category_ids: Iterable[int],
    image_ids: Iterable[int] | None = None, max_dets: int = 100,
) -> dict[int, dict[str, float]]:  # fmt: skip
    """{category id: {one of COCO_METRICS: percent}} of one COCO box evaluation; nan without an object (of this size).

    ``ground_truth`` is a COCO instances dict, ``detections`` are COCO results {image_id, category_id, bbox XYWH pixels,
    score}. Evaluates ``category_ids`` on ``image_ids`` (None: all), and the ``max_dets`` best detections of an image
    *and category*, as COCO. UserError if the image of a detection is not in the ground truth.
    """
    check_images(ground_truth, {detection["image_id"] for detection in detections})
    images, categories = {image["id"] for image in ground_truth["images"]}, sorted(set(category_ids))
    images = sorted(images if image_ids is None else images & set(image_ids))
    if not (images and categories):  # the library takes an empty list for all
        return {category: dict.fromkeys(COCO_METRICS, math.nan) for category in categories}
    both = (_chosen(annotations, images, categories) for annotations in (ground_truth["annotations"], detections))
    evaluation = COCOeval_faster(*both, iouType="bbox", print_function=logger.debug)
    params = evaluation.params
    params.areaRng, params.areaRngLbl, params.maxDets = list(AREAS.values()), list(AREAS), [max_dets]
    evaluation.evaluate()
    evaluation.accumulate()
    shape = (10, 101, len(categories), len(AREAS))  # IoU, recall, category, area
    precision = np.asarray(evaluation.eval["precision"]).reshape(shape)
    recall = np.asarray(evaluation.eval["recall"]).reshape(10, *shape[2:])
    parts = [precision[..., 0], precision[:1, ..., 0], precision[5:6, ..., 0], *np.moveaxis(precision, 3, 0)[1:]]
    columns = [*(part.mean(axis=(0, 1)) for part in parts), recall[..., 0].mean(axis=0)]
    columns = [(100 * np.where(column < 0, np.nan, column)).tolist() for column in columns]
    rows = zip(categories, *columns, strict=True)
    return {category: dict(zip(COCO_METRICS, figures, strict=True)) for category, *figures in rows}


def _chosen(annotations: Iterable[Mapping], image_ids: list[int], category_ids: list[int]) -> COCO:
    """Copies of the annotations or detections of these images and categories, with what a box evaluation reads."""
    images, categories, chosen = set(image_ids), set(category_ids), []
    for a in annotations:
        if a["image_id"] in images and a["category_id"] in categories:
            kept = {key: a[key] for key in ("image_id", "category_id", "score") if key in a}
            box, crowd = list(a["bbox"]), int(a.get("iscrowd", 0))
            area = a.get("area", box[2] * box[3])  # of an object's mask, if the file has it
            chosen.append(kept | {"bbox": box, "area": area, "iscrowd": crowd})
    return indexed([{"id": i} for i in image_ids], [{"id": c} for c in category_ids], chosen)
