"""Open-vocabulary LVIS: mask and box AP of all classes, by frequency and of base and novel classes, in percent.

LVIS's rules (detic §6): the 300 best detections of an image count, over all classes; a class counts on the images that
show it or name it as absent; where its objects are not all annotated, unmatched detections are ignored. LVIS has no
crowds: those of a COCO json are no objects, and say that the objects of this image are not all annotated.
faster-coco-eval computes precision class by class, on the class's images alone, which takes little memory.

Shapes: N detections, T IoU thresholds (.50:.05:.95), R recall thresholds (0:.01:1), K categories, A area ranges (all,
small, medium, large). The area is a ground truth's own; of a detection, its box's or its mask's.
"""

import json
import logging
import math
import os
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
from faster_coco_eval import COCOeval_faster
from pycocotools import mask as mask_util

from clim.data.schemas import TestBoxFile, TestMaskFile, run_lengths
from clim.errors import UserError
from clim.files import replacing

from .base import AREAS, DetectionEvaluator, check_images, indexed, pack, unpack

LISTS = {"neg_category_ids": [], "not_exhaustive_category_ids": []}  # of an image, where the file has none
IMAGE_KEYS = ("id", "height", "width", *LISTS)
PER_PROCESS = 1_000_000  # detections that are worth the start of another process

logger = logging.getLogger(__name__)


class LVISEvaluator(DetectionEvaluator):
    """Scores detections of a registered set in LVIS's format as Detectron2's LVISEvaluator does.

    Results are ``{"segm": {"AP": …, "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"}, "bbox": {…}}``; no
    "segm" from a model without masks, no APr, APc and APf if the json has no frequencies. A set whose novel classes are
    not the rare ones also gets AP_base and AP_novel. Figures are means over classes with ground truth, nan without.
    """

    columns, report_file, keys = ("AP",), "lvis_results.json", {"masks": "MODEL.MASK_ON"}

    def __init__(self, dataset_name: str, *, max_dets: int = 300, masks: bool = True, **base):
        """The metadata is OVCOCOEvaluator's, of a file in LVIS's format. Without ``masks``, only boxes are read."""
        self.truth = TestMaskFile if masks else TestBoxFile
        super().__init__(dataset_name, max_dets=max_dets, **base)

    def score(self, results, skipped):
        detections = np.concatenate([pack([]), *(image.found for image in results.values())])
        if self.output_dir is not None:
            lines = map(json.dumps, unpack(detections))  # one by one: as a list of dicts, they would take gigabytes
            with replacing(self.output_dir / "lvis_instances_results.json") as path, path.open("w") as file:
                file.write("[" + next(lines, ""))
                file.writelines(f",\n{line}" for line in lines)
                file.write("]")
        ground_truth = self.ground_truth(results)
        rows = self._rows(ground_truth)
        groups = {f: [row["frequency"] == f for row in rows] for f in "rcf"}  # rare, common, frequent
        groups = groups if any(map(any, groups.values())) else {}
        novel = [row["split"] == "novel" for row in rows]
        if any(novel) and novel != groups.get("r"):
            groups |= {"_base": [row["split"] == "base" for row in rows], "_novel": novel}
        figures = {}
        for task in self._tasks(ground_truth, results):
            precision = lvis_precision(ground_truth, detections, iou_type=task, max_dets=self._max_dets)
            figures[task] = OrderedDict((name, _nan(ap)) for name, ap in lvis_figures(precision, groups).items())
            for k, row in enumerate(rows):
                row[f"AP_{task}"] = _nan(_percent(precision[:, :, k, 0]))
        return {"backend": "faster", "max_dets": self._max_dets}, figures, rows

    def _tasks(self, ground_truth: Mapping, results: Mapping) -> tuple[str, ...]:
        """What can be scored. Warns about what the json file lacks."""
        if not any("neg_category_ids" in image for image in ground_truth["images"]):
            hint = "a class counts only on images that show it, and wrong detections on others cost nothing"
            logger.warning(f"{self._json_file} has no neg_category_ids: {hint}")
        if not any(image.has_masks for image in results.values()):
            return ("bbox",)
        sized = all(image["height"] and image["width"] for image in ground_truth["images"])  # or masks would be empty
        if not sized or any("segmentation" not in annotation for annotation in ground_truth["annotations"]):
            lack = "objects without masks" if sized else "images without height and width"
            logger.warning(f"{self._json_file} has {lack}: only boxes are scored")
            return ("bbox",)
        return "segm", "bbox"

    def _rows(self, ground_truth: Mapping) -> list[dict]:
        objects = Counter(a["category_id"] for a in ground_truth["annotations"] if not a.get("iscrowd"))
        splits = {category: split for split, ids in self._splits.items() for category in ids.values()}
        return [
            {"class": c["name"], "frequency": c.get("frequency"), "split": splits.get(i), "num_gt": objects[i]}
            for i, c in sorted({c["id"]: c for c in ground_truth["categories"]}.items())
        ]


def lvis_precision(
    ground_truth: Mapping, detections: np.ndarray | Iterable[Mapping], *, iou_type: str = "bbox", max_dets: int = 300,
    processes: int | None = None,
) -> np.ndarray:  # fmt: skip
    """(T, R, K, A) precision of "bbox" or "segm", by ascending category id; -1 without ground truth in an area range.

    ``ground_truth`` is an LVIS instances dict; ``detections`` are COCO results or :func:`pack` of them. ``processes``:
    how many score classes at the same time; None: as many as there are cores, if that saves time. UserError if a
    detection has no box or no mask, or an image that is not in the ground truth.
    """
    detections = detections if isinstance(detections, np.ndarray) else pack(detections)
    check_images(ground_truth, np.unique(detections["image_id"]).tolist())
    if np.isnan(detections["bbox"]).any() if iou_type == "bbox" else None in detections["counts"]:
        raise UserError(f"A detection has no {'bbox' if iou_type == 'bbox' else 'segmentation'} to evaluate.")
    if processes is None:
        processes = max(1, min(os.cpu_count() or 1, len(detections) // PER_PROCESS))
    tasks = _by_class(ground_truth, best_of_images(detections, limit=max_dets))
    precision = partial(_class_precision, iou_type)
    if processes == 1:
        return np.stack([precision(task) for task in tasks], axis=2)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return np.stack(list(pool.map(precision, tasks, chunksize=4)), axis=2)


def lvis_figures(precision: np.ndarray, groups: Mapping[str, np.ndarray] | None = None) -> dict[str, float]:
    """{"AP", "AP50", "AP75", "APs", "APm", "APl"} and {"AP" + group: AP of the classes that (K,) bools choose}.

    In percent: means over the classes with ground truth of (T, R, K, A) ``precision``, -1 if there are none.
    """
    parts = {"": precision[..., 0], "50": precision[0, ..., 0], "75": precision[5, ..., 0]}
    parts |= {area: precision[..., a] for a, area in enumerate(AREAS) if area}
    parts |= {group: precision[:, :, np.asarray(chosen, bool), 0] for group, chosen in (groups or {}).items()}
    return {f"AP{name}": _percent(part) for name, part in parts.items()}


def best_of_images(detections: np.ndarray, *, limit: int) -> np.ndarray:
    """The ``limit`` best of each image over all classes, sorted by image and score. Equal scores keep their order."""
    detections = detections[np.lexsort((-detections["score"], detections["image_id"]))]
    places = np.arange(len(detections)) - np.searchsorted(detections["image_id"], detections["image_id"])
    return detections[places < limit]


def _nan(figure: float) -> float:
    return figure if figure > -1 else math.nan


def _percent(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else -1.0


def _by_class(ground_truth: Mapping, detections: np.ndarray) -> Iterator[tuple]:
    """Of each class its id, its annotations, its detections that count, and the images of both."""
    truth, judged = defaultdict(list), defaultdict(set)
    images = {image["id"]: LISTS | image for image in ground_truth["images"]}
    for annotation in ground_truth["annotations"]:
        image, category = images[annotation["image_id"]], annotation["category_id"]
        if annotation.get("iscrowd"):
            image["not_exhaustive_category_ids"] = [*image["not_exhaustive_category_ids"], category]
        else:
            truth[category].append(annotation)
            judged[category].add(image["id"])
    for image in images.values():
        for category in image["neg_category_ids"]:
            judged[category].add(image["id"])
    detections = detections[np.argsort(detections["category_id"], kind="stable")]
    for category in sorted(category["id"] for category in ground_truth["categories"]):
        found = detections[slice(*np.searchsorted(detections["category_id"], (category, category + 1)))]
        found = found[np.isin(found["image_id"], list(judged[category]))]
        needed = {*found["image_id"].tolist(), *(a["image_id"] for a in truth[category])}
        yield category, truth[category], found, [{key: images[i][key] for key in IMAGE_KEYS} for i in sorted(needed)]


def _class_precision(iou_type: str, task: tuple) -> np.ndarray:
    """(T, R, A) precision of one class, given what :func:`_by_class` yields."""
    category, truth, found, images = task
    if not truth:
        return -np.ones((10, 101, len(AREAS)))
    categories = [{"id": category, "frequency": "f"}]  # any: the library only asks for one
    keys = ("image_id", "category_id", "bbox" if iou_type == "bbox" else "segmentation")
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    truth = [{key: a[key] for key in keys} | {"area": _area(a, *sizes[a["image_id"]])} for a in truth]
    for a in truth:
        if isinstance(mask := a.get("segmentation"), list):
            a["segmentation"] = [np.asarray(polygon).tolist() for polygon in mask]
    results = _results(iou_type, found, {a["image_id"] for a in truth})
    both = (indexed(images, categories, annotations) for annotations in (truth, results))
    options = {"lvis_style": True, "print_function": logger.debug, "rle_iou_max_workers": 1}
    evaluation = COCOeval_faster(*both, iouType=iou_type, **options)
    params = evaluation.params
    params.areaRng, params.areaRngLbl, params.maxDets = list(AREAS.values()), list(AREAS), [len(found) + 1]
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]).reshape(10, 101, len(AREAS))


def _area(annotation: Mapping, height: int, width: int) -> float:
    """What the file says, else the area of the mask, else that of the box, in square pixels."""
    if "area" in annotation:
        return annotation["area"]
    if mask := annotation.get("segmentation"):
        return float(mask_util.area(run_lengths(mask, height, width)))
    return annotation["bbox"][2] * annotation["bbox"][3]


def _results(iou_type: str, found: np.ndarray, shown: set[int]) -> list[dict]:
    """COCO results with areas. A mask on an image that does not show the class is compared with nothing: left out."""
    results = list(unpack(found))
    if iou_type == "bbox":
        return [result | {"area": result["bbox"][2] * result["bbox"][3]} for result in results]
    areas = [int(mask_util.area(result["segmentation"])) for result in results]  # a list of over 255 fails there
    nothing = {"size": [1, 1], "counts": "1"}
    return [
        result | {"area": area} | ({} if result["image_id"] in shown else {"segmentation": nothing})
        for result, area in zip(results, areas, strict=True)
    ]
