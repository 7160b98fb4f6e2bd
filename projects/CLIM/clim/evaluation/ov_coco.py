"""Open-vocabulary COCO: box AP50, AP and AR on novel, base and all classes, in percent.

There are two published protocols, which differ in the images that count.

- **generalized** (OVR-CNN, Detic): one evaluation of base + novel classes on the images that show a base or a novel
  object, crowds included: 4,836 of val2017's 5,000.
- **two_run** (CLIM release): one evaluation of the base and one of the novel classes on every image of the file, so
  that detections on images without such objects count too.

In both, the detector predicts its whole vocabulary (80 names), and the ``max_dets`` best boxes of an image count,
whatever their class: boxes of unused classes take places too. COCO's own limit is per image and category. For a
detector that gives at most 100 boxes, both limits are the same.
"""

import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Iterable
from functools import partial

from detectron2.data import MetadataCatalog

from clim.errors import UserError

from .base import DetectionEvaluator, unpack
from .coco_api import METRICS, precision_recall

PROTOCOLS = ("generalized", "two_run", "both")

logger = logging.getLogger(__name__)


class OVCOCOEvaluator(DetectionEvaluator):
    """Scores detections of a registered data set on its base and novel classes.

    Results are ``{"bbox": {"AP50_novel": …, "AP50_base": …, "AP50_all": …, "AP_novel": …, "AR_novel": …}}``; the groups
    of the two runs are ``base_run`` and ``novel_run``. A figure is the mean over the group's classes that have ground
    truth, nan if there are none.
    """

    columns, report_file = METRICS, "ov_coco_results.json"

    def __init__(self, dataset_name: str, *, max_dets: int = 100, protocol: str = "generalized", **base):
        """The metadata has json_file (COCO's instances format), thing_classes, thing_dataset_id_to_contiguous_id, and
        base_classes and novel_classes as lists of names. ``base`` are further arguments of :class:`ImageEvaluator`.

        AttributeError for missing metadata; UserError for wrong lists of classes or a missing json file.
        """
        if protocol not in PROTOCOLS:
            raise UserError(f"TEST.PROTOCOL '{protocol}' is unknown: choose one of {', '.join(PROTOCOLS)}.")
        metadata = MetadataCatalog.get(dataset_name)
        splits = {"base": metadata.base_classes, "novel": metadata.novel_classes}
        super().__init__(dataset_name, max_dets=max_dets, splits=splits, **base)
        self._protocol = protocol

    @classmethod
    def from_cfg(cls, cfg, dataset_name: str, *, output_dir: str) -> "OVCOCOEvaluator":
        return cls(dataset_name, output_dir=output_dir, protocol=cfg.TEST.PROTOCOL)

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
        run = partial(precision_recall, ground_truth, detections, max_dets=self._max_dets)
        summary, by_class = OrderedDict(), {}
        if self._protocol != "two_run":
            logger.info(f"generalized: {len(shown)} of {num_images} images show a base or novel object")
            by_class[""] = run(category_ids=base + novel, image_ids=shown).by_class()
            summary |= group_means(by_class[""], {"novel": novel, "base": base, "all": base + novel})
        if self._protocol != "generalized":
            if len(shown) == num_images:
                logger.warning("two runs: every image shows a base or novel object; CLIM's file has others")
            by_class["_run"] = run(category_ids=base).by_class() | run(category_ids=novel).by_class()
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
