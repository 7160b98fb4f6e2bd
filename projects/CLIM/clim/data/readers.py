"""Readers: json files of boxes and regions → records; those of captions are in captions.py.

Every reader takes (json file, image folder, ``index``, ``remedy``): ``index`` is {category id of the json: contiguous
0-based index}; ``remedy`` tells users how to get the files and ends an error message. Every record holds ``file_name``,
``height``, ``width`` (pixels) and ``image_id``. Readers raise UserError for a missing or broken json, one of another
kind, a missing image folder, and a category that is not in ``index``.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

import numpy as np
from detectron2.structures import BoxMode
from msgspec import UNSET

from clim.errors import UserError
from clim.files import read_json

from .categories import PANOPTIC_INDEX, STUFF_IDS
from .images import UnreadableImage, image_size
from .schemas import (
    Annotation,
    BoxFile,
    File,
    Image,
    MaskFile,
    PanopticFile,
    RegionFile,
    RunLengths,
    Segment,
    run_lengths,
    whole_polygons,
)
from .shards import SCHEME

T = TypeVar("T")
logger = logging.getLogger(__name__)


def read_boxes(json_file: str, image_root: str, *, index: Mapping[int, int], remedy: str) -> list[dict]:
    """Boxes of a COCO or LVIS json as Detectron2's records, by image id, crowds included.

    The classes come from ``index``, because OVR-CNN's files list only 48 or 17 of the 80. Masks and keypoints are not
    read, so a wrong polygon does no harm.
    """
    return _box_records(_read(json_file, image_root, remedy, BoxFile), json_file, image_root, index, crowds=True)


def read_lvis(
    json_file: str, image_root: str, *, index: Mapping[int, int], remedy: str, masks: bool = True
) -> list[dict]:
    """Boxes and masks of a json in LVIS's format as Detectron2's records, by image id, without crowds.

    An image without ``file_name`` lies where the last two parts of its ``coco_url`` say. ``segmentation`` is a list of
    polygons, float32 (2 P,) each, or compressed run lengths. Polygons of fewer than 3 points are left out, and so is
    an annotation with no other mask, as in Detectron2. Without ``masks``, they are not read.
    """
    content = _read(json_file, image_root, remedy, MaskFile if masks else BoxFile)
    return _box_records(content, json_file, image_root, index, crowds=False)


def _box_records(content: File, json_file: str, image_root: str, index: Mapping[int, int], *, crowds: bool):
    """The records of all images. Annotations with an empty mask are left out."""
    records, xywh, strays, bad = _records(content, json_file, image_root), BoxMode.XYWH_ABS, 0, []
    for number, a in enumerate(content.annotations):
        category_id, record = _category(a, index, number, json_file), records.get(a.image_id)
        if record is None:
            strays += 1
        if record is None or (a.iscrowd and not crowds):
            continue
        annotation = {"bbox": list(a.bbox), "bbox_mode": xywh, "category_id": category_id}
        if crowds:
            annotation["iscrowd"] = int(a.iscrowd)
        mask = getattr(a, "segmentation", UNSET)
        if isinstance(mask, list):
            whole = whole_polygons(mask)
            bad += [number] if len(whole) < len(mask) or not mask else []
            if not whole:
                continue
            mask = whole
        elif mask is not UNSET:
            mask = run_lengths(mask.as_dict(), *mask.size)
        if mask is not UNSET:
            annotation["segmentation"] = mask
        record["annotations"].append(annotation)
    records = list(records.values())
    if bad:
        which = f"{len(bad)} annotations, first annotations[{bad[0]}]"
        hint = "their other polygons count, and annotations without another are left out"
        logger.warning(f"{json_file}: {which}, have no polygons or some of no 3 points: {hint}")
    _warn_of_lost(strays, json_file)
    warn_of_strays(records, json_file)
    number = sum(len(record["annotations"]) for record in records)
    logger.info(f"Loaded {len(records)} images with {number} of {len(content.annotations)} boxes from {json_file}")
    return records


def _warn_of_lost(number: int, json_file: str) -> None:
    if number:
        logger.warning(f"{json_file}: left out {number} boxes whose image_id is not among its images")


def warn_of_strays(records: Sequence[Mapping], source: str) -> None:
    """Warn of boxes XYWH that reach beyond their images by more than a pixel, as corners do that are read as sizes."""
    strays = [
        record["file_name"] for record in records for x, y, w, h in (a["bbox"] for a in record["annotations"])
        if x < -1 or y < -1 or x + w > record["width"] + 1 or y + h > record["height"] + 1
    ]  # fmt: skip
    if strays:
        hint = "are these corners in place of sizes, or boxes of a turned or resized image?"
        logger.warning(f"{source}: {len(strays)} boxes reach beyond their images, first in {strays[0]}: {hint}")


def read_regions(
    json_file: str, image_root: str, *, index: Mapping[int, int], remedy: str, masks: bool = True
) -> list[dict]:
    """Boxes of a COCO instances json for classification, by image id, crowds included.

    ``annotations`` keep the order of the file: {category_id (contiguous), iscrowd, bbox (x, y, width, height in
    pixels)}, and ``segmentation`` (COCO's polygons or run lengths) if the file has it and ``masks`` is True.
    """
    content, strays = _read(json_file, image_root, remedy, RegionFile if masks else BoxFile), 0
    records = _records(content, json_file, image_root)
    for number, a in enumerate(content.annotations):
        category_id, record = _category(a, index, number, json_file), records.get(a.image_id)
        if record is None:
            strays += 1
            continue
        annotation = {"category_id": category_id, "iscrowd": int(a.iscrowd), "bbox": list(a.bbox)}
        mask = getattr(a, "segmentation", UNSET)
        mask = mask.as_dict() if isinstance(mask, RunLengths) else mask is not UNSET and whole_polygons(mask)
        record["annotations"].append(annotation | ({"segmentation": mask} if mask else {}))
    _warn_of_lost(strays, json_file)
    return list(records.values())


def read_panoptic_regions(json_file: str, image_root: str, *, remedy: str, **_) -> list[dict]:
    """All segments of COCO's panoptic json, by image id, with the indices of its 133 classes.

    A record also holds ``pan_seg_file_name``, the PNG of the segments; an annotation holds ``segment_id`` instead of
    ``segmentation``, and ``bbox`` unless it is stuff. The folder of the PNGs has the name of the json and lies in its
    folder (COCO's zip) or beside that folder (Detectron2).
    """
    content = _read(json_file, image_root, remedy, PanopticFile)
    folders = [place / Path(json_file).stem for place in (Path(json_file).parents[1], Path(json_file).parent)]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise UserError(f"no folder of panoptic PNGs at {folders[0]} or {folders[1]}: {remedy}")
    records = _records(content, json_file, image_root)
    for record in records.values():
        record["pan_seg_file_name"] = str(folder)
    lost = 0
    for number, panoptic in enumerate(content.annotations):
        record = records.get(panoptic.image_id)
        if record is None:
            lost += len(panoptic.segments_info)
            continue
        record["pan_seg_file_name"] = str(folder / panoptic.file_name)
        for place, segment in enumerate(panoptic.segments_info):
            category_id = _category(segment, PANOPTIC_INDEX, f"{number}].segments_info[{place}", json_file)
            annotation = {"category_id": category_id, "iscrowd": int(segment.iscrowd), "segment_id": int(segment.id)}
            if segment.category_id not in STUFF_IDS:
                if segment.bbox is UNSET:
                    where = f"annotations[{number}].segments_info[{place}] of {json_file} (id {segment.id})"
                    raise UserError(f"{where} has no bbox, which every segment but stuff needs: {remedy}")
                annotation["bbox"] = list(segment.bbox)
            record["annotations"].append(annotation)
    _warn_of_lost(lost, json_file)
    return list(records.values())


def read_pseudo_labels(json_file: str, image_root: str, *, index: Mapping[int, int], remedy: str) -> list[dict]:
    """Boxes of ``tools/pseudo_label.py`` as arrays, because there are millions of them.

    ``boxes`` (R, 4) are float32 xyxy in px, ``nouns`` (R,) int64, R >= 1. Boxes without area are left out, and images
    without another box.
    """
    records = []
    for record in read_regions(json_file, image_root, index=index, remedy=remedy, masks=False):
        annotations = record.pop("annotations")
        boxes = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
        nouns = np.array([a["category_id"] for a in annotations], np.int64)
        kept = (boxes[:, 2:] > 0).all(axis=1)
        boxes[:, 2:] += boxes[:, :2]
        if kept.any():
            records.append(record | {"boxes": boxes[kept], "nouns": nouns[kept]})
    return records


def require_folder(image_root: str) -> None:
    """UserError if the image folder is missing."""
    if not Path(image_root).is_dir():
        raise UserError(f"image folder {image_root} not found: set DETECTRON2_DATASETS, see datasets/README.md")


def _read(json_file: str, image_root: str, remedy: str, kind: type[T]) -> T:
    content = read_json(json_file, remedy=remedy, kind=kind)
    require_folder(image_root)
    return content


def _records(content: File, json_file: str, image_root: str) -> dict[int, dict]:
    """{id: the record of an image, without annotations yet} by ascending id."""
    try:
        records = [_image_record(image, image_root) for image in sorted(content.images, key=attrgetter("id"))]
    except UnreadableImage as error:
        raise UserError(f"{error}; {json_file} does not give its height and width, so the image must.") from error
    return {record["image_id"]: record for record in records}


def _image_record(image: Image, image_root: str) -> dict:
    """UnreadableImage if neither the json nor the image's header gives the size."""
    name = image.file_name or "/".join(image.coco_url.split("/")[-2:])  # LVIS
    scheme = SCHEME if name.startswith(SCHEME) else ""  # an image in a shard
    file_name = scheme + os.path.join(image_root, name.removeprefix(scheme))  # an absolute path stays
    height, width = (image.height, image.width) if image.height and image.width else image_size(file_name)
    return {"file_name": file_name, "height": height, "width": width, "image_id": image.id, "annotations": []}


def _category(annotation: Annotation | Segment, index: Mapping[int, int], number, json_file: str) -> int:
    """The contiguous index of the category of an annotation. UserError if it is none of the set."""
    if annotation.category_id in index:
        return index[annotation.category_id]
    where = f"annotations[{number}] of {json_file} (id {annotation.id})"
    few = f"it is none of the {len(index)} categories of this data set"
    raise UserError(
        f"{where} has category_id {annotation.category_id}, but {few}: correct it, or remove the annotation."
    )


def class_index(category_id: int, index: Mapping[int, int], image_id, json_file: str) -> int:
    """The contiguous index of a category. UserError if it is none of the set, with the image and the file."""
    if category_id not in index:
        raise UserError(
            f"image {image_id} of {json_file} has category {category_id!r}, but it is not one of the {len(index)} "
            "categories of this data set"
        )
    return index[category_id]
