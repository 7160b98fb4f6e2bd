"""Open-vocabulary COCO: box AP50, AP and AR on novel, base and all classes, in percent.

The two published protocols score each class alone; they differ in the images that they look at.

- **generalized** (OVR-CNN, Detic): the images that show a base or a novel object (4,836 of val2017's 5,000;
  crowds count), whichever file is given. One evaluation over base + novel classes.
- **two_run** (CLIM release): every image of the file, one evaluation for the base and one for the novel
  classes. Detections on images without base or novel objects count against it too.

In both the detector predicts its whole vocabulary (80 names), and the ``max_dets`` best boxes of an image
count whatever their class: unused classes take up slots without being scored. COCO's own limit is per image
and category, so the cut across classes is made here; a detector limited to 100 an image does not notice it.
"""

import json
import logging
import math
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate

from clim.errors import UserError
from clim.evaluation.coco_api import precision_at, resolve_backend
from clim.files import nan_to_none, write_json

METRICS = ("AP50", "AP", "AR")
PROTOCOLS = ("generalized", "two_run", "both")
NEEDED_METADATA = (
    "json_file",
    "thing_classes",
    "thing_dataset_id_to_contiguous_id",
    "base_classes",
    "novel_classes",
)

logger = logging.getLogger(__name__)


class OVCOCOEvaluator(DatasetEvaluator):
    """Scores detections of a registered dataset on its base and novel classes.

    Results are ``{"bbox": {"AP50_novel": …, "AP50_base": …, "AP50_all": …, "AP_novel": …, "AR_novel": …}}``,
    for CLIM's runs with the groups ``base_run`` and ``novel_run``. A group's figure is the mean over its
    classes with ground truth, nan without any. No detections score 0.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str | os.PathLike | None = None,
        distributed: bool = True,
        max_dets: int = 100,
        backend: str = "auto",
        protocol: str = "generalized",
    ):
        """
        Args:
            dataset_name: a dataset registered with NEEDED_METADATA; json_file in COCO's instances format,
                base_classes and novel_classes as lists of names.
            output_dir: for ``coco_instances_results.json`` (detections) and ``ov_coco_results.json``
                (summary and per_class; null where a figure does not exist). None: nothing is written.
            distributed: gather the detections of all processes; only the main one scores, others return {}.
            max_dets: best detections of an image that count, over all classes.
            backend: "auto", "faster" (faster-coco-eval) or "pycocotools".
            protocol: "generalized", "two_run" or "both".

        Raises:
            UserError: metadata missing or contradictory, no such json file, unknown backend or protocol.
        """
        if protocol not in PROTOCOLS:
            raise UserError(f"unknown OV-COCO protocol '{protocol}': choose one of {', '.join(PROTOCOLS)}")
        metadata = MetadataCatalog.get(dataset_name)
        if missing := [key for key in NEEDED_METADATA if metadata.get(key) is None]:
            raise UserError(f"dataset '{dataset_name}' is registered without metadata {', '.join(missing)}")
        if not PathManager.isfile(str(metadata.json_file)):
            raise UserError(f"ground truth of dataset '{dataset_name}' not found: {metadata.json_file}")
        self._name = dataset_name
        self._json_file = str(metadata.json_file)
        self._dataset_ids = {v: k for k, v in metadata.thing_dataset_id_to_contiguous_id.items()}
        id_of = {name: self._dataset_ids[i] for i, name in enumerate(metadata.thing_classes)}
        self._splits = _split_ids(id_of, base=metadata.base_classes, novel=metadata.novel_classes)
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._distributed = distributed
        self._max_dets = max_dets
        self._backend = resolve_backend(backend)
        self._protocol = protocol
        self.reset()

    def reset(self):
        """Forget all detections."""
        self._detections: dict[int, list[dict]] = {}
        self._num_cut = 0

    def process(self, inputs, outputs):
        """
        Args:
            inputs: B records with ``image_id``.
            outputs: B dicts with ``instances``: pred_boxes, scores, pred_classes at the image's own size, and
                ``logits`` where there are any: sigmoid scores near 1 tie in float32, and ties lose precision.
        """
        for record, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            if instances.has("logits"):
                instances.scores = instances.logits.double().sigmoid()
            best = instances.scores.argsort(descending=True, stable=True)[: self._max_dets]
            self._num_cut += len(instances) > self._max_dets
            self._detections[record["image_id"]] = instances_to_coco_json(instances[best], record["image_id"])

    def evaluate(self) -> OrderedDict | dict:
        """Score what was processed, log two tables, write the files; {} on all but the main process."""
        parts = [(self._detections, self._num_cut)]
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(parts[0], dst=0)
            if not comm.is_main_process():
                return {}
        by_image = {image_id: found for part, _ in parts for image_id, found in part.items()}
        detections = [self._with_dataset_id(d) for image_id in sorted(by_image) for d in by_image[image_id]]
        if self._output_dir is not None:
            write_json(self._output_dir / "coco_instances_results.json", detections)

        with PathManager.open(self._json_file) as file:
            ground_truth = json.load(file)
        self._report_coverage(ground_truth, by_image, num_cut=sum(cut for _, cut in parts))
        summary, per_class = self._score(ground_truth, detections)
        logger.info(f"OV-COCO results on '{self._name}':\n{summary_table(summary)}")
        logger.info(f"AP by class on '{self._name}':\n{class_table(per_class)}")
        if self._output_dir is not None:
            report = {
                "dataset": self._name,
                "protocol": self._protocol,
                "backend": self._backend,
                "max_dets": self._max_dets,
                "summary": nan_to_none(summary),
                "per_class": [nan_to_none(row) for row in per_class],
            }
            write_json(self._output_dir / "ov_coco_results.json", report)
        return OrderedDict(bbox=summary)

    def _with_dataset_id(self, detection: dict) -> dict:
        contiguous = detection["category_id"]
        if contiguous not in self._dataset_ids:
            raise UserError(
                f"the model predicts class {contiguous}, but '{self._name}' has {len(self._dataset_ids)}: "
                "set the model's number of classes to the dataset's"
            )
        return detection | {"category_id": self._dataset_ids[contiguous]}

    def _report_coverage(self, ground_truth: dict, by_image: dict, *, num_cut: int):
        missing = len({image["id"] for image in ground_truth["images"]} - by_image.keys())
        if missing:
            logger.warning(
                f"{missing} of {len(ground_truth['images'])} images of '{self._name}' were not processed: "
                "their objects count as missed"
            )
        if num_cut:
            logger.warning(f"{num_cut} images had more than {self._max_dets} detections: the best were kept")
        if not any(by_image.values()):
            logger.warning(f"no detections on '{self._name}': every class scores 0")

    def _score(self, ground_truth: dict, detections: list[dict]) -> tuple[OrderedDict, list[dict]]:
        base, novel = (list(self._splits[split].values()) for split in ("base", "novel"))
        options = {"max_dets": self._max_dets, "backend": self._backend}
        num_images = len(ground_truth["images"])
        shown = {a["image_id"] for a in ground_truth["annotations"] if a["category_id"] in {*base, *novel}}
        summary, by_class = OrderedDict(), {}
        if self._protocol != "two_run":
            logger.info(f"generalized: {len(shown)} of {num_images} images show a base or novel object")
            scores = class_scores(
                ground_truth, detections, category_ids=base + novel, image_ids=shown, **options
            )
            summary |= group_means(scores, {"novel": novel, "base": base, "all": base + novel})
            by_class[""] = scores
        if self._protocol != "generalized":
            if len(shown) == num_images:
                logger.warning("two runs: every image shows a base or novel object; CLIM's file has others")
            scores = class_scores(ground_truth, detections, category_ids=base, **options)
            scores |= class_scores(ground_truth, detections, category_ids=novel, **options)
            summary |= group_means(scores, {"novel_run": novel, "base_run": base})
            by_class["_run"] = scores

        objects = Counter(a["category_id"] for a in ground_truth["annotations"] if not a.get("iscrowd", 0))
        per_class = []
        for split in ("base", "novel"):
            for name, category in sorted(self._splits[split].items()):
                row = {"class": name, "split": split, "num_gt": objects[category]}
                for suffix, scores in by_class.items():
                    row |= {metric + suffix: scores[category][metric] for metric in METRICS}
                per_class.append(row)
        return summary, per_class


def class_scores(ground_truth: dict, detections: list[dict], **options) -> dict[int, dict[str, float]]:
    """{category id: {"AP50", "AP", "AR"}} in percent, nan without ground truth; options of precision_at."""
    result = precision_at(ground_truth, detections, **options)
    columns = (result.average_precision(iou=0.5), result.average_precision(), result.average_recall())
    return {
        category: {metric: 100 * float(column[k]) for metric, column in zip(METRICS, columns, strict=True)}
        for k, category in enumerate(result.params.category_ids)
    }


def group_means(scores: dict[int, dict[str, float]], groups: dict[str, Iterable[int]]) -> OrderedDict:
    """{"AP50_<group>", …}: means over a group's classes that are not nan; nan where none is left."""
    means = OrderedDict()
    for metric in METRICS:
        for group, categories in groups.items():
            values = [v for c in categories if not math.isnan(v := scores[c][metric])]
            means[f"{metric}_{group}"] = math.fsum(values) / len(values) if values else math.nan
    return means


def summary_table(summary: Mapping[str, float]) -> str:
    """The groups of a summary as rows, AP50, AP and AR as columns."""
    groups = [key.removeprefix("AP50_") for key in summary if key.startswith("AP50_")]
    rows = [[group] + [summary[f"{metric}_{group}"] for metric in METRICS] for group in groups]
    return tabulate(rows, headers=["classes", *METRICS], tablefmt="pipe", floatfmt=".2f")


def class_table(per_class: list[dict]) -> str:
    """class, split, #GT and AP50 (one column a protocol), by split, then name."""
    columns = [key for key in ("AP50", "AP50_run") if per_class and key in per_class[0]]
    rows = [[row["class"], row["split"], row["num_gt"]] + [row[key] for key in columns] for row in per_class]
    return tabulate(rows, headers=["class", "split", "#GT", *columns], tablefmt="pipe", floatfmt=".2f")


def _split_ids(id_of: dict[str, int], **names: Iterable[str]) -> dict[str, dict[str, int]]:
    """{split: {class name: dataset id}}; every name known, none listed twice."""
    splits, seen = {}, set()
    for split, members in names.items():
        for name in members:
            if name not in id_of:
                raise UserError(f"{split} class '{name}' is not in thing_classes: correct the registration")
            if name in seen:
                raise UserError(f"class '{name}' is listed twice in base and novel: correct the registration")
            seen.add(name)
        splits[split] = {name: id_of[name] for name in members}
    return splits
