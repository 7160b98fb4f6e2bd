"""Readers: json files of boxes and regions → records; those of captions are in captions.py.

Every reader takes (json file, image folder, ``index``, ``remedy``): ``index`` is {category id of the json: contiguous
0-based index}; ``remedy`` tells users how to get the files and ends an error message. Every record holds ``file_name``,
``height``, ``width`` (pixels) and ``image_id``. Readers raise UserError for a missing or broken json, one of another
kind, a missing image folder, and a category that is not in ``index``.
"""

import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isfinite
from pathlib import Path

import numpy as np
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from clim.errors import UserError
from clim.files import read_json

from .categories import PANOPTIC_INDEX, STUFF_IDS
from .images import UnreadableImage, image_size
from .shards import SCHEME

logger = logging.getLogger(__name__)


def read_boxes(json_file: str, image_root: str, *, index: Mapping[int, int], remedy: str) -> list[dict]:
    """Boxes of a COCO or LVIS json as Detectron2's records, by image id, crowds included.

    The classes come from ``index``, because OVR-CNN's files list only 48 or 17 of the 80. Masks and keypoints need
    most of the memory, so the records have none, and a wrong polygon does no harm.
    """
    content = _open(json_file, image_root, remedy, object_hook=_without_shape)
    return _box_records(content, json_file, image_root, index, keys=("iscrowd", "bbox"))


def read_lvis(json_file: str, image_root: str, *, index: Mapping[int, int], remedy: str) -> list[dict]:
    """Boxes and masks of a json in LVIS's format as Detectron2's records, by image id, without crowds.

    An image without ``file_name`` lies where the last two parts of its ``coco_url`` say. ``segmentation`` is a list of
    polygons, float32 (2 P,) each, or compressed run lengths. Polygons of fewer than 3 points are left out, and so is
    an annotation with no other mask, as in Detectron2.
    """
    # LVIS has 1.3 million polygons for training: they become arrays while the file is read.
    content = _open(json_file, image_root, remedy, object_hook=_compact)
    return _box_records(content, json_file, image_root, index, keys=("bbox", "segmentation"))


def _box_records(content: Mapping, json_file: str, image_root: str, index: Mapping[int, int], *, keys) -> list[dict]:
    """The records of all images, with ``keys`` of the annotations. With masks, crowds and empty masks are left out."""
    by_image, annotations = defaultdict(list), content["annotations"]
    for number, a in enumerate(annotations):
        _check_box(a, number, json_file)
        if "segmentation" in keys and (a.get("iscrowd") or a.get("segmentation") == []):
            continue
        kept = {key: a[key] for key in keys if key in a}
        category_id = class_index(a["category_id"], index, a["image_id"], json_file)
        by_image[a["image_id"]].append(kept | {"bbox_mode": BoxMode.XYWH_ABS, "category_id": category_id})
    records = _with_annotations(content, image_root, by_image)
    number = sum(len(record["annotations"]) for record in records)
    logger.info(f"Loaded {len(records)} images with {number} of {len(annotations)} boxes from {json_file}")
    warn_of_strays(records, json_file)
    if stray := sum(map(len, by_image.values())) - number:
        logger.warning(f"{json_file}: left out {stray} boxes whose image_id is not among its images")
    return records


def warn_of_strays(records: Sequence[Mapping], source: str) -> None:
    """Warn of boxes XYWH that reach beyond their images by more than a pixel, as corners do that are read as sizes."""
    strays = [
        record["file_name"] for record in records for x, y, w, h in (a["bbox"] for a in record["annotations"])
        if x < -1 or y < -1 or x + w > record["width"] + 1 or y + h > record["height"] + 1
    ]  # fmt: skip
    if strays:
        hint = "are these corners in place of sizes, or boxes of a turned or resized image?"
        logger.warning(f"{source}: {len(strays)} boxes reach beyond their images, first in {strays[0]}: {hint}")


def _check_box(annotation: Mapping, number: int, json_file: str) -> None:
    """UserError for an annotation without an image, a category or a box."""
    where = f"annotations[{number}] of {json_file}"
    if not isinstance(annotation, Mapping):
        raise UserError(f"{where} is {annotation!r}: it must be an object with image_id, category_id and bbox.")
    where = f"{where} (id {annotation.get('id')})"
    for key in ("image_id", "category_id"):
        if not isinstance(annotation.get(key), int | float | str):
            raise UserError(f"{where} has no {key}, so it is no box of COCO's or LVIS's format: correct the file.")
    box = annotation.get("bbox")
    numbers = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) and isfinite(v) for v in box)
    if not numbers or min(box[2:]) < 0:
        raise UserError(f"{where} has bbox {json.dumps(box)}: it must be [x, y, width, height] in pixels.")


def _without_shape(item: dict) -> dict:
    """An object of a json without mask and keypoints."""
    item.pop("segmentation", None)
    item.pop("keypoints", None)
    return item


def _compact(item: dict) -> dict:
    """An object of a json: polygons become arrays, and lists of run lengths are compressed."""
    if isinstance(item.get("counts"), list):
        return run_lengths(item, *item["size"])
    if isinstance(item.get("segmentation"), list):
        polygons = (np.array(polygon, np.float32) for polygon in item["segmentation"])
        item["segmentation"] = [p for p in polygons if len(p) >= 6 and len(p) % 2 == 0]
    return item


def run_lengths(segmentation: list | Mapping, height: int, width: int) -> Mapping:
    """COCO's polygons or run lengths of an image as compressed run lengths."""
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return segmentation


def read_regions(json_file: str, image_root: str, *, index: Mapping[int, int], remedy: str) -> list[dict]:
    """Boxes of a COCO instances json for classification, by image id, crowds included.

    ``annotations`` keep the order of the file: {category_id (contiguous), iscrowd, bbox (x, y, width, height in
    pixels)}, and ``segmentation`` (COCO's polygons or run lengths) if the file has it.
    """
    content, by_image = _open(json_file, image_root, remedy), defaultdict(list)
    for number, a in enumerate(content["annotations"]):
        _check_box(a, number, json_file)
        category_id = class_index(a["category_id"], index, a["image_id"], json_file)
        annotation = {"category_id": category_id, "iscrowd": int(a.get("iscrowd", 0)), "bbox": list(a["bbox"])}
        if a.get("segmentation"):
            annotation["segmentation"] = a["segmentation"]
        by_image[a["image_id"]].append(annotation)
    return _with_annotations(content, image_root, by_image)


def read_panoptic_regions(json_file: str, image_root: str, *, remedy: str, **_) -> list[dict]:
    """All segments of COCO's panoptic json, by image id, with the indices of its 133 classes.

    A record also holds ``pan_seg_file_name``, the PNG of the segments; an annotation holds ``segment_id`` instead of
    ``segmentation``, and ``bbox`` unless it is stuff. The folder of the PNGs has the name of the json and lies in its
    folder (COCO's zip) or beside that folder (Detectron2).
    """
    content = _open(json_file, image_root, remedy)
    folders = [place / Path(json_file).stem for place in (Path(json_file).parents[1], Path(json_file).parent)]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise UserError(f"no folder of panoptic PNGs at {folders[0]} or {folders[1]}: {remedy}")
    files, by_image = {}, defaultdict(list)
    for panoptic in content["annotations"]:
        image_id = panoptic["image_id"]
        files[image_id] = panoptic["file_name"]
        for segment in panoptic["segments_info"]:
            category_id = class_index(segment["category_id"], PANOPTIC_INDEX, image_id, json_file)
            annotation = {"category_id": category_id, "iscrowd": int(segment.get("iscrowd", 0))}
            annotation["segment_id"] = segment["id"]
            if segment["category_id"] not in STUFF_IDS:
                annotation["bbox"] = list(segment["bbox"])
            by_image[image_id].append(annotation)
    records = _with_annotations(content, image_root, by_image)
    return [r | {"pan_seg_file_name": str(folder / files.get(r["image_id"], ""))} for r in records]


def read_pseudo_labels(json_file: str, image_root: str, *, index: Mapping[int, int], remedy: str) -> list[dict]:
    """Boxes of ``tools/pseudo_label.py`` as arrays, because there are millions of them.

    ``boxes`` (R, 4) are float32 xyxy in px, ``nouns`` (R,) int64, R >= 1. Boxes without area are left out, and images
    without another box.
    """
    records = []
    for record in read_regions(json_file, image_root, index=index, remedy=remedy):
        annotations = record.pop("annotations")
        boxes = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
        nouns = np.array([a["category_id"] for a in annotations], np.int64)
        kept = (boxes[:, 2:] > 0).all(axis=1)
        boxes[:, 2:] += boxes[:, :2]
        if kept.any():
            records.append(record | {"boxes": boxes[kept], "nouns": nouns[kept]})
    return records


def _open(json_file: str, image_root: str, remedy: str, *, keys=("images", "annotations"), **options) -> dict:
    content = read_json(json_file, remedy=remedy, **options)
    require_folder(image_root)
    if not isinstance(content, Mapping) or not all(isinstance(content.get(key), list) for key in keys):
        raise UserError(f"{json_file} has no {' or no '.join(keys)}, so it is a file of another kind: {remedy}")
    for number, image in enumerate(content["images"]):
        if not isinstance(image, Mapping) or "id" not in image:
            raise UserError(f"images[{number}] of {json_file} has no id: {remedy}")
    return content


def require_folder(image_root: str) -> None:
    """UserError if the image folder is missing."""
    if not Path(image_root).is_dir():
        raise UserError(f"image folder {image_root} not found: set DETECTRON2_DATASETS, see datasets/README.md")


def _with_annotations(content: Mapping, image_root: str, by_image: Mapping[int, list[dict]]) -> list[dict]:
    """The records of all images by ascending id."""
    if wrong := next((image for image in content["images"] if not isinstance(image["id"], int)), None):
        raise UserError(f"Image {wrong.get('file_name')} in {image_root} has id {wrong['id']!r}: it must be a number.")
    images = sorted(content["images"], key=lambda image: image["id"])
    for image, following in pairwise(images):
        if image["id"] == following["id"]:
            names = " and ".join(str(i.get("file_name")) for i in (image, following))
            raise UserError(f"{names} have the same image id {image['id']} in the json: give each image its own.")
    try:
        return [_record(image, image_root) | {"annotations": by_image.get(image["id"], [])} for image in images]
    except UnreadableImage as error:
        raise UserError(f"{error}; the json does not give its height and width, so the image must.") from error


def _record(image: Mapping, image_root: str) -> dict:
    """The entries of every record; UnreadableImage if neither the json nor the image's header gives the size."""
    if not {"file_name", "coco_url"} & image.keys():
        raise UserError(f"image {image['id']} (of folder {image_root}) has no file_name and no coco_url in the json")
    name = image["file_name"] if "file_name" in image else "/".join(image["coco_url"].split("/")[-2:])  # LVIS
    scheme = SCHEME if name.startswith(SCHEME) else ""  # an image in a shard
    file_name = scheme + os.path.join(image_root, name.removeprefix(scheme))  # an absolute path stays
    sized = image.get("height") and image.get("width")
    height, width = (image["height"], image["width"]) if sized else image_size(file_name)
    return {"file_name": file_name, "height": height, "width": width, "image_id": image["id"]}


def class_index(category_id: int, index: Mapping[int, int], image_id, json_file: str) -> int:
    """The contiguous index of a category. UserError if it is none of the set, with the image and the file."""
    if category_id not in index:
        raise UserError(
            f"image {image_id} of {json_file} has category {category_id!r}, but it is not one of the {len(index)} "
            "categories of this data set"
        )
    return index[category_id]
