"""What runs find, miss and confuse on one data set, from the detections that their evaluations have written.

N objects of an image, R recall levels (0, .01, …, 1), K classes in the set's order, A ranges of area. A box and an
object match at an IoU of .5 or more.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import supervision as sv
from detectron2.data import DatasetCatalog, MetadataCatalog
from faster_coco_eval import COCOeval_faster

from clim.checkpoints.reading import read_weights
from clim.data.schemas import Box
from clim.errors import UserError
from clim.evaluation.base import indexed
from clim.files import read_json

AGAIN = "run the evaluation again"
IOU = 0.5
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # square pixels


class Detection(msgspec.Struct):
    """One of COCO's list of results."""

    image_id: int
    category_id: int
    bbox: Box
    score: Annotated[float, msgspec.Meta(ge=0, le=1)]


class Analysis:
    """Ground truth and, by run, what :data:`shown` keeps of the detections in ``folder``/RUN/inference/``dataset``.

    Attributes:
        names, novel: of the classes; novel ones by index.
        records: of the images, in the set's order.
        truth: an sv.Detections for each image.
        shown: {run: an sv.Detections for each image}: the best of overlapping boxes, with a probability of at least
            ``threshold``; at most ``top``.
        precision: {run: (R, K, A) precision, -1 for a class without objects of that size}.
    """

    def __init__(self, folder: Path, dataset: str, runs: Sequence[str], *, threshold: float, overlap: float, top: int):
        metadata = MetadataCatalog.get(dataset)
        self.records, self.names = DatasetCatalog.get(dataset), list(metadata.thing_classes)
        self.novel = frozenset(k for k, name in enumerate(self.names) if name in metadata.novel_classes)
        self.truth = [truth_of(record) for record in self.records]
        self.shown, self.precision = {}, {}
        for run in runs:
            found = read_detections(folder / run, dataset, self.records)
            self.precision[run] = precision(self.truth, found, num_classes=len(self.names))
            bias = _bias(folder / run / "model_final.pth")
            self.shown[run] = [_shown(one, bias=bias, threshold=threshold, overlap=overlap, top=top) for one in found]

    def groups(self) -> dict[str, list[int]]:
        """Classes of "novel" and "base"; a group without classes is left out."""
        parts = {"novel": sorted(self.novel), "base": [k for k in range(len(self.names)) if k not in self.novel]}
        return {name: classes for name, classes in parts.items() if classes}

    def hits(self, run: str) -> list[np.ndarray]:
        """For each image (N,) bool: a shown box of the object's class matches the object."""
        return [
            ((sv.box_iou_batch(t.xyxy, s.xyxy) >= IOU) & (t.class_id[:, None] == s.class_id)).any(axis=1)
            for t, s in zip(self.truth, self.shown[run], strict=True)
        ]

    def found_by_one(self, one: str, other: str) -> list[np.ndarray]:
        """For each image the indices of the objects that ``one`` finds and ``other`` misses."""
        return [np.flatnonzero(found & ~missed) for found, missed in zip(self.hits(one), self.hits(other), strict=True)]

    def confusion(self, run: str) -> np.ndarray:
        """(K + 1, K + 1) numbers of objects by class and the class of the shown box that matches, K: no box."""
        options = {"classes": self.names, "conf_threshold": 0.0, "iou_threshold": IOU}
        return sv.ConfusionMatrix.from_detections(self.shown[run], self.truth, **options).matrix


def read_detections(run: Path, dataset: str, records: Sequence[Mapping]) -> list[sv.Detections]:
    """What the evaluation of the folder ``run`` has written: an sv.Detections for each record of ``dataset``."""
    path = run / "inference" / dataset / "coco_instances_results.json"
    try:
        results = read_json(path, kind=list[Detection], remedy=AGAIN)
        return _detections(results, records, MetadataCatalog.get(dataset))
    except KeyError as error:
        raise UserError(f"{path} has the id {error}, which {dataset} has not: {AGAIN}.") from error


def precision(
    truth: Sequence[sv.Detections], found: Sequence[sv.Detections], *, num_classes: int, areas=AREAS
) -> np.ndarray:
    """(R, K, A) precision at IoU .5 of COCO's evaluation; -1 for a class without objects of that size.

    ``areas``: {name: (lowest, highest)} in square pixels.
    """
    evaluation = COCOeval_faster(iouType="bbox", print_function=lambda *_: None)
    params = evaluation.params
    params.imgIds, params.catIds, params.iouThrs = list(range(1, len(truth) + 1)), list(range(num_classes)), [IOU]
    params.areaRng, params.areaRngLbl = list(map(list, areas.values())), list(areas)
    params.maxDets = [max([1, *map(len, found)])]
    images, categories = [{"id": i} for i in params.imgIds], [{"id": k} for k in params.catIds]
    evaluation.cocoGt = indexed(images, categories, _annotations(truth))
    evaluation.cocoDt = indexed(images, categories, _annotations(found))
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]).reshape(-1, num_classes, len(areas))


def class_mean(precision: np.ndarray, classes: Sequence[int]) -> np.ndarray | None:
    """(R,) percent: the mean over those of ``classes`` that have objects, of (R, K); None if none has."""
    chosen = precision[:, list(classes)]
    chosen = chosen[:, chosen[0] > -1]
    return 100 * chosen.mean(axis=1) if chosen.size else None


def _annotations(images: Sequence[sv.Detections]):
    for i, boxes in enumerate(images, start=1):
        scores = np.zeros(len(boxes)) if boxes.confidence is None else boxes.confidence
        for (x0, y0, x1, y1), k, score in zip(boxes.xyxy.tolist(), boxes.class_id.tolist(), scores, strict=True):
            box = [x0, y0, x1 - x0, y1 - y0]
            yield {"image_id": i, "category_id": k, "score": score, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}


def truth_of(record: Mapping) -> sv.Detections:
    """The boxes of a record of a data set, without crowds."""
    boxes = [(a["bbox"], a["category_id"]) for a in record["annotations"] if not a.get("iscrowd", 0)]
    return _boxes([box for box, _ in boxes], [k for _, k in boxes])


def _detections(results: Sequence[Detection], records: Sequence[Mapping], metadata) -> list[sv.Detections]:
    """COCO results as one sv.Detections for each record, the classes by index, the highest score first."""
    of_image = {record["image_id"]: [] for record in records}
    for result in results:
        of_image[result.image_id].append(result)
    index = metadata.thing_dataset_id_to_contiguous_id
    return [
        _boxes([r.bbox for r in rows], [index[r.category_id] for r in rows], [r.score for r in rows])
        for rows in of_image.values()
    ]


def _boxes(boxes: list, classes: list, scores: list | None = None) -> sv.Detections:
    boxes = np.array(boxes, dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = None if scores is None else np.array(scores, dtype=float)
    return sv.Detections(xyxy=boxes, class_id=np.array(classes, dtype=int), confidence=scores)


def _bias(checkpoint: Path) -> float:
    """CLIM's learnt bias on logits, which probabilities contain and the scores of the evaluation do not."""
    weights = read_weights(checkpoint)
    return next((float(value) for name, value in weights.items() if name.endswith("cls_score.cls_bias")), 0.0)


def _shown(found: sv.Detections, *, bias: float, threshold: float, overlap: float, top: int) -> sv.Detections:
    score = found.confidence.clip(1e-300, 1 - 1e-16)
    found.confidence = 1 / (1 + np.exp(-bias) * (1 - score) / score)
    found = found[found.confidence >= threshold].with_nms(overlap, class_agnostic=True)
    return found[np.argsort(-found.confidence, kind="stable")[:top]]
