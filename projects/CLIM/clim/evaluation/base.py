"""The base of all evaluators: it gathers one result for each image, and writes tables and a json report."""

import logging
import math
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from faster_coco_eval import COCO
from msgspec import UNSET, Struct
from msgspec.structs import asdict
from tabulate import tabulate

from clim.data.loader import NO_REGION, Skipped, SkippingLoader, build_detection_loader
from clim.data.names import set_categories
from clim.data.schemas import TestBoxFile, coco_mask
from clim.errors import UserError
from clim.files import nan_to_none, nfc, read_json, write_json

# Detections in columns, a tenth of the memory of dicts. ``bbox`` is XYWH in pixels, nan without a box; ``counts`` the
# bytes of a compressed mask.
PACKED = np.dtype(
    [("image_id", "i8"), ("category_id", "i8"), ("score", "f8"), ("bbox", "f8", 4), ("size", "i4", 2), ("counts", "O")]
)
AREAS = {"": [0, 1e10], "s": [0, 32**2], "m": [32**2, 96**2], "l": [96**2, 1e10]}  # COCO's, square pixels
LOGGED_CLASSES = 200  # a longer table of classes is in the report alone

logger = logging.getLogger(__name__)
table = partial(tabulate, tablefmt="pipe", floatfmt=".2f")


class ImageEvaluator(DatasetEvaluator):
    """Keeps one result for each image and scores all results in the main process.

    A subclass stores ``self.results[image_id]`` in :meth:`process` and computes figures in :meth:`score`.
    An image that a sampler repeats counts once. ``output_dir`` is the folder of the files; None: no files.
    """

    columns: tuple[str, ...]  # columns of a summary's table; the other parts of a figure's name are its row
    report_file: str  # name of the report in ``output_dir``
    keys: Mapping[str, str] = {}  # arguments that keys of cfg give
    build_loader: Callable[..., SkippingLoader]  # (cfg, data set, on_skip=…) → batches for the model

    def __init__(self, dataset_name: str, *, output_dir: str | os.PathLike | None = None):
        self.name = dataset_name
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.reset()

    def reset(self):
        self.results: dict[int, object] = {}
        self.skipped: list[Skipped] = []

    def skip(self, image: Skipped):
        """Store an image that does not reach the model. Warns if it could not be read."""
        self.skipped.append(image)
        if image.reason != NO_REGION:
            logger.warning("Image left out of the evaluation on '%s': %s (%s)", self.name, *image)

    def score(self, results: dict, skipped: list[Skipped]) -> tuple[dict, dict[str, Mapping], list[dict]]:
        """More entries of the report, {task: {figure: value}}, and one row {column: value} for each class.

        ``results`` are {image id: result} and ``skipped`` the skipped images of all processes, both sorted.
        """
        raise NotImplementedError

    def evaluate(self) -> OrderedDict | dict:
        """{task: {figure: value}} of all images, also logged and written; {} in all processes but the main one.

        UserError if no image could be read.
        """
        comm.synchronize()
        parts = comm.gather((self.results, self.skipped), dst=0)
        if not comm.is_main_process():
            return {}
        results = {image_id: result for part, _ in parts for image_id, result in part.items()}
        skipped = sorted({image for _, part in parts for image in part})
        unreadable = [image for image in skipped if image.reason != NO_REGION]
        if unreadable and not results:
            raise UserError(f"No image of '{self.name}' could be read, the first is {': '.join(unreadable[0])}.")
        details, figures, per_class = self.score(dict(sorted(results.items())), skipped)
        for task, summary in figures.items():
            logger.info(f"Results ({task}) on '{self.name}':\n{summary_table(summary, self.columns)}")
        if len(per_class) <= LOGGED_CLASSES:
            logger.info(f"Results by class on '{self.name}':\n{table(per_class, headers='keys')}")
        report = {"dataset": self.name, **details, "summary": without_task(figures)}
        self.write(self.report_file, report | {"per_class": [nan_to_none(row) for row in per_class]})
        return OrderedDict(figures)

    def write(self, file_name: str, content):
        if self.output_dir is not None:
            write_json(self.output_dir / file_name, content)


class ImageDetections(NamedTuple):
    """The detections of one image."""

    found: np.ndarray  # PACKED, with the set's own category ids
    was_cut: bool  # there were more
    has_masks: bool  # of the model, also where it finds nothing


class DetectionEvaluator(ImageEvaluator):
    """Keeps the ``max_dets`` best detections of each image, whatever their classes, as :class:`ImageDetections`.

    The ground truth is the set's json file, else its records. ``indices`` are the model's indices of the set's classes
    (:func:`clim.data.names.matched`); None: the same indices. Detections of other words take places among the
    ``max_dets`` best, and then they are left out.
    """

    build_loader = staticmethod(build_detection_loader)
    truth: type = TestBoxFile  # kind of the json
    splits: tuple[str, ...] = ("base", "novel")  # of the classes, which the metadata lists as base_classes and so on

    def __init__(self, dataset_name: str, *, max_dets: int, indices: Sequence[int] | None = None, **base):
        """UserError for wrong lists of classes, a missing json, or a set without boxes or without names of classes."""
        super().__init__(dataset_name, **base)
        self._max_dets, metadata = max_dets, MetadataCatalog.get(dataset_name)
        categories = set_categories(dataset_name)
        if categories is None:
            remedy = f"set MetadataCatalog.get({dataset_name!r}).thing_classes"
            raise UserError(f"The classes of data set '{dataset_name}' have no names: {remedy}.")
        self._dataset_ids = dict(zip(range(len(categories)) if indices is None else indices, categories, strict=True))
        id_of = {nfc(name): category for category, name in categories.items()}
        splits = {split: list(map(nfc, metadata.get(f"{split}_classes") or ())) for split in self.splits}
        self._has_split = bool(splits["base"] or splits["novel"])
        if not self._has_split:
            splits = dict.fromkeys(splits, [])
        counts = Counter(name for split in splits.values() for name in split)
        if wrong := sorted(name for name, count in counts.items() if count > 1 or name not in id_of):
            where = f"'{dataset_name}' ({metadata.get('json_file', 'no json')})"
            said = "are there twice, have two splits, or are no thing_classes"
            raise UserError(f"The classes {', '.join(wrong)} of {where} {said}: correct the file or the registration.")
        self._splits = {split: {name: id_of[name] for name in names} for split, names in splits.items()}
        self._undeclared = {name: category for name, category in id_of.items() if name not in counts}
        self._json_file, self._numbers = metadata.get("json_file"), {}
        if self._json_file is not None:
            remedy = f"it is the ground truth of data set '{self.name}'"
            content = read_json(self._json_file, remedy=remedy, kind=self.truth)
            truth = {kind: list(map(_as_dict, getattr(content, kind))) for kind in ("images", "categories")}
            images = {image.id for image in content.images}
            truth["annotations"] = [_as_dict(a) for a in content.annotations if a.image_id in images]
        else:
            truth = {"annotations": []} | convert_to_coco_dict(dataset_name)  # which leaves out an empty list
            self._numbers = _number_images(truth, dataset_name)
            if wrong := {a["category_id"] for a in truth["annotations"]} - categories.keys():
                remedy = "number them from 0, as its thing_classes do"
                said = f"has boxes of class {min(wrong)}, but {len(categories)} classes"
                raise UserError(f"The data set '{dataset_name}' {said}: {remedy}.")
        if not truth["annotations"]:
            source = self._json_file or f"The data set '{dataset_name}'"
            raise UserError(f"{source} has no box, so nothing can be scored: correct it, or choose another test set.")
        self._truth = truth if comm.is_main_process() else None  # which alone scores

    def process(self, inputs, outputs):
        """``inputs``: B records with ``image_id``; ``outputs``: B dicts with ``instances`` at the image's own size."""
        for record, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            image = self._numbers.get(record["image_id"], record["image_id"])
            best = instances.scores.argsort(descending=True, stable=True)[: self._max_dets]
            found = instances_to_coco_json(instances[best], image)
            found = [
                one | {"category_id": self._dataset_ids[one["category_id"]]}
                for one in found
                if one["category_id"] in self._dataset_ids
            ]
            was_cut, has_masks = len(best) < len(instances), instances.has("pred_masks")
            self.results[image] = ImageDetections(pack(found), was_cut, has_masks)

    def ground_truth(self, results: dict[int, ImageDetections]) -> dict:
        """A COCO instances dict. Warns about causes of low scores."""
        images, annotations = self._truth["images"], self._truth["annotations"]
        if missing := len({image["id"] for image in images} - results.keys()):
            logger.warning(f"{missing} of {len(images)} images of '{self.name}' were not processed and count as empty")
        if num_cut := sum(image.was_cut for image in results.values()):
            logger.warning(f"{num_cut} images had more than {self._max_dets} detections: the best were kept")
        scored = [names.values() for split, names in self._splits.items() if split != "unused"]
        counting = set(self._undeclared.values()).union(*scored)
        if not any(a["category_id"] in counting and not a.get("iscrowd") for a in annotations):
            crowds = sum(bool(a.get("iscrowd")) for a in annotations)
            others = f"{crowds} are crowds, the others of classes that do not count"
            logger.warning(f"none of the {len(annotations)} boxes of '{self.name}' counts, so all is nan: {others}")
        if not any(len(image.found) for image in results.values()):
            logger.warning(f"no detections on '{self.name}': every class scores 0")
        return self._truth


def _as_dict(item: Struct) -> dict:
    """The fields that a json gives, as COCO's evaluation takes them."""
    fields = {key: value for key, value in asdict(item).items() if value is not UNSET and value is not None}
    if "bbox" in fields:
        fields["bbox"] = list(fields["bbox"])
    mask = coco_mask(fields.pop("segmentation", ()))
    return fields | ({"segmentation": mask} if mask else {})


def _number_images(ground_truth: Mapping, name: str) -> dict:
    """{image id: number}; the ids of images become these numbers, as ids may be texts. UserError for equal ids."""
    numbers: dict = {}
    for number, image in enumerate(ground_truth["images"]):
        if numbers.setdefault(image["id"], number) != number:
            raise UserError(f"{image['id']!r} is the image_id of two images of '{name}': give each image its own.")
        image["id"] = number
    for annotation in ground_truth["annotations"]:
        annotation["image_id"] = numbers[annotation["image_id"]]
    return numbers


def without_task(figures: Mapping[str, Mapping[str, float]]) -> dict:
    """For json: {figure: value} of one task, {task: {figure: value}} of several, with None in place of nan."""
    tasks = {task: nan_to_none(summary) for task, summary in figures.items()}
    return tasks if len(tasks) > 1 else next(iter(tasks.values()))


def pack(results: Iterable[Mapping]) -> np.ndarray:
    """(N,) PACKED of COCO results {image_id, category_id, score} with a bbox (XYWH), a segmentation (RLE) or both."""
    rows = []
    for result in results:
        mask = result.get("segmentation", {"size": (0, 0), "counts": None})
        counts = mask["counts"].encode() if isinstance(mask["counts"], str) else mask["counts"]
        box = tuple(result.get("bbox", (math.nan,) * 4))
        rows.append((result["image_id"], result["category_id"], result["score"], box, tuple(mask["size"]), counts))
    return np.array(rows, PACKED)


def unpack(detections: np.ndarray) -> Iterator[dict]:
    """The COCO results, with bbox, and with segmentation if there are masks."""
    columns = (detections[name].tolist() for name in PACKED.names)
    for image, category, score, box, size, counts in zip(*columns, strict=True):
        mask = {} if counts is None else {"segmentation": {"size": size, "counts": counts.decode()}}
        yield {"image_id": image, "category_id": category, "bbox": box, "score": score} | mask


def check_images(ground_truth: Mapping, image_ids: Iterable[int]) -> None:
    """UserError if one of the detections' ``image_ids`` is not in the ground truth."""
    if unknown := set(image_ids) - {image["id"] for image in ground_truth["images"]}:
        raise UserError(f"A detection is of image {min(unknown)}, which is not in the ground truth: use one with it.")


def indexed(images: list[dict], categories: list[dict], annotations: Iterable[Mapping]) -> COCO:
    """A COCO object of annotations or detections. Their ids start at 1: faster-coco-eval counts id 0 as unmatched."""
    coco = COCO()
    annotations = [annotation | {"id": i} for i, annotation in enumerate(annotations, start=1)]
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    coco.createIndex()
    return coco


def summary_table(summary: Mapping[str, float], columns: Sequence[str]) -> str:
    """Table of {prefix + column + group: value}, a row for each prefix and group: "all", "novel", "crops things"."""
    rows = []
    for key in summary:
        prefix, found, group = key.partition(columns[0])
        if found:
            label = f"{prefix.strip('.')} {group.strip('_')}".strip() or "all"
            rows.append([label, *(summary[f"{prefix}{column}{group}"] for column in columns)])
    return table(rows, headers=["group", *columns])
