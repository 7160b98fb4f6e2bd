"""Open-vocabulary COCO: box AP50, AP and AR on novel, base and all classes, in percent.

There are two published protocols, which differ in the images that count.

- **generalized** (OVR-CNN, Detic): one evaluation of base + novel classes on the images that show a base or a novel
  object, crowds included: 4,836 of val2017's 5,000.
- **two_run** (CLIM release): one evaluation of the base and one of the novel classes on every image of the file, so
  that detections on images without such objects count too.

In both, the detector predicts its whole vocabulary (80 names), and the ``max_dets`` best boxes of an image count,
whatever their class: boxes of unused classes take places too. COCO's own limit is per image and category.
"""

import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping
from functools import partial

import numpy as np
from detectron2.data import MetadataCatalog
from faster_coco_eval import COCO, COCOeval_faster

from clim.errors import UserError

from .base import DetectionEvaluator, check_images, indexed, unpack

METRICS = ("AP50", "AP", "AR")
PROTOCOLS = ("generalized", "two_run", "both")
ALL_AREAS = [0.0, 1e10]  # COCO's area range "all", in square pixels

logger = logging.getLogger(__name__)


class OVCOCOEvaluator(DetectionEvaluator):
    """Scores detections of a registered data set on its base and novel classes.

    Results are ``{"bbox": {"AP50_novel": …, "AP50_base": …, "AP50_all": …, "AP_novel": …, "AR_novel": …}}``; the groups
    of the two runs are ``base_run`` and ``novel_run``. Figures are means over classes with ground truth, nan without.
    """

    columns, report_file, keys = METRICS, "ov_coco_results.json", {"protocol": "PROTOCOL"}

    def __init__(self, dataset_name: str, *, max_dets: int = 100, protocol: str = "generalized", **base):
        """The parent's metadata with lists base_classes and novel_classes. UserError for an unknown ``protocol``."""
        if protocol not in PROTOCOLS:
            raise UserError(f"TEST.PROTOCOL '{protocol}' is unknown: choose one of {', '.join(PROTOCOLS)}.")
        metadata = MetadataCatalog.get(dataset_name)
        splits = {"base": metadata.base_classes, "novel": metadata.novel_classes}
        super().__init__(dataset_name, max_dets=max_dets, splits=splits, **base)
        self._protocol = protocol

    def score(self, results, skipped):
        detections = [detection for image in results.values() for detection in unpack(image.found)]
        self.write("coco_instances_results.json", detections)
        ground_truth = self.ground_truth(results)
        summary, by_class = self._figures(ground_truth, detections)
        objects = Counter(a["category_id"] for a in ground_truth["annotations"] if not a.get("iscrowd", 0))
        per_class = []
        for split in ("base", "novel"):
            for name, category in sorted(self._splits[split].items()):
                row = {"class": name, "split": split, "num_gt": objects[category]}
                for suffix, scores in by_class.items():
                    row |= {metric + suffix: scores[category][metric] for metric in METRICS}
                per_class.append(row)
        details = {"protocol": self._protocol, "backend": "faster", "max_dets": self._max_dets}
        return details, {"bbox": summary}, per_class

    def _figures(self, ground_truth: dict, detections: list[dict]) -> tuple[OrderedDict, dict]:
        """{figure: mean over a group}, and {suffix of the protocol's figures: {category id: {metric: value}}}."""
        base, novel = (list(self._splits[split].values()) for split in ("base", "novel"))
        num_images = len(ground_truth["images"])
        shown = {a["image_id"] for a in ground_truth["annotations"] if a["category_id"] in {*base, *novel}}
        run = partial(box_figures, ground_truth, detections, max_dets=self._max_dets)
        summary, by_class = OrderedDict(), {}
        if self._protocol != "two_run":
            logger.info(f"generalized: {len(shown)} of {num_images} images show a base or novel object")
            by_class[""] = run(category_ids=base + novel, image_ids=shown)
            summary |= group_means(by_class[""], {"novel": novel, "base": base, "all": base + novel})
        if self._protocol != "generalized":
            if len(shown) == num_images:
                logger.warning("two runs: every image shows a base or novel object; CLIM's file has others")
            by_class["_run"] = run(category_ids=base) | run(category_ids=novel)
            summary |= group_means(by_class["_run"], {"novel_run": novel, "base_run": base})
        return summary, by_class


def group_means(scores: dict[int, dict[str, float]], groups: dict[str, Iterable[int]]) -> OrderedDict:
    """{"AP50_<group>": mean over the group's classes that are not nan, or nan, …}."""
    means = OrderedDict()
    for metric in METRICS:
        for group, categories in groups.items():
            values = [v for c in categories if not math.isnan(v := scores[c][metric])]
            means[f"{metric}_{group}"] = math.fsum(values) / len(values) if values else math.nan
    return means


def box_figures(
    ground_truth: Mapping, detections: Collection[Mapping], *, category_ids: Iterable[int],
    image_ids: Iterable[int] | None = None, max_dets: int = 100,
) -> dict[int, dict[str, float]]:  # fmt: skip
    """{category id: {"AP50", "AP", "AR"}} of one COCO box evaluation over all areas, in percent; nan without an object.

    ``ground_truth`` is a COCO instances dict, ``detections`` are COCO results {image_id, category_id, bbox XYWH pixels,
    score}. Evaluates ``category_ids`` on ``image_ids`` (None: all), and the ``max_dets`` best detections of an image
    *and category*, as COCO. UserError if the image of a detection is not in the ground truth.
    """
    check_images(ground_truth, {detection["image_id"] for detection in detections})
    images, categories = {image["id"] for image in ground_truth["images"]}, sorted(set(category_ids))
    images = sorted(images if image_ids is None else images & set(image_ids))
    if not (images and categories):  # the library takes an empty list for all
        return {category: dict.fromkeys(METRICS, math.nan) for category in categories}
    evaluation = COCOeval_faster(iouType="bbox", print_function=logger.debug)
    params = evaluation.params
    params.imgIds, params.catIds = images, categories
    params.areaRng, params.areaRngLbl, params.maxDets = [ALL_AREAS], ["all"], [max_dets]
    evaluation.cocoGt = _chosen(ground_truth["annotations"], images, categories)
    evaluation.cocoDt = _chosen(detections, images, categories)
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"]).reshape(10, 101, len(categories))  # IoU, recall, category
    recall = np.asarray(evaluation.eval["recall"]).reshape(10, len(categories))
    columns = (precision[:1].mean(axis=(0, 1)), precision.mean(axis=(0, 1)), recall.mean(axis=0))
    columns = [(100 * np.where(column < 0, np.nan, column)).tolist() for column in columns]
    rows = zip(categories, *columns, strict=True)
    return {category: dict(zip(METRICS, figures, strict=True)) for category, *figures in rows}


def _chosen(annotations: Iterable[Mapping], image_ids: list[int], category_ids: list[int]) -> COCO:
    """Copies of the annotations or detections of these images and categories, with what a box evaluation reads."""
    images, categories, chosen = set(image_ids), set(category_ids), []
    for a in annotations:
        if a["image_id"] in images and a["category_id"] in categories:
            kept = {key: a[key] for key in ("image_id", "category_id", "score") if key in a}
            box, crowd = list(a["bbox"]), int(a.get("iscrowd", 0))
            chosen.append(kept | {"bbox": box, "area": box[2] * box[3], "iscrowd": crowd})
    return indexed([{"id": i} for i in image_ids], [{"id": c} for c in category_ids], chosen)
