"""Readers: json files of boxes and regions → records; those of captions are in captions.py.

Every reader takes (json file, image folder, ``index``, ``remedy``): ``index`` is {category id of the json: contiguous
0-based index}; ``remedy`` tells users how to get the files and ends an error message. Every record holds ``file_name``,
``height``, ``width`` (pixels) and ``image_id``. Readers raise UserError for a missing or broken json, one of another
kind, a missing image folder, and a category that is not in ``index``.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.structures import BoxMode
from msgspec import UNSET

from clim.errors import UserError
from clim.files import read_json

from .categories import PANOPTIC_INDEX, STUFF_IDS
from .images import UnreadableImage, image_size
from .schemas import BoxFile, File, Image, MaskFile, Pair, PanopticFile, TestMaskFile, coco_mask, run_lengths
from .shards import SCHEME

logger = logging.getLogger(__name__)


def read_lvis(
    json_file: str, image_root: str, *, index: Mapping[int, int], remedy: str, masks: bool = True
) -> list[dict]:
    """As :func:`read_boxes`, of a json in LVIS's format: without crowds and, if they are wanted, with ``masks``.

    ``segmentation`` is a list of polygons, float32 (2 P,) each, or compressed run lengths. Polygons of fewer than 3
    points are left out, and so is an annotation with no other mask, as in Detectron2.
    """
    return read_boxes(json_file, image_root, index=index, remedy=remedy, masks=masks, crowds=False)


def read_boxes(
    json_file: str, image_root: str, *, index: Mapping[int, int], remedy: str, masks: bool = False, crowds: bool = True
) -> list[dict]:
    """Boxes of a COCO or LVIS json as Detectron2's records, by image id.

    The classes come from ``index``, because OVR-CNN's files list only 48 or 17 of the 80.
    """
    content, records = _read(json_file, image_root, remedy, MaskFile if masks else BoxFile)
    xywh, bad = BoxMode.XYWH_ABS, []
    for number, a in enumerate(content.annotations):
        category_id = class_index(a.category_id, index, f"annotations[{number}].category_id", json_file, a.id)
        record = records.get(a.image_id)
        if record is None or (a.iscrowd and not crowds):
            continue
        annotation = {"bbox": list(a.bbox), "bbox_mode": xywh, "category_id": category_id}
        if crowds:
            annotation["iscrowd"] = int(a.iscrowd)
        if (given := getattr(a, "segmentation", UNSET)) is not UNSET:
            mask = coco_mask(given)
            if isinstance(mask, list) and (len(mask) < len(given) or not given):
                bad.append(number)
            if not mask:
                continue
            annotation["segmentation"] = mask if isinstance(mask, list) else run_lengths(mask, *given.size)
        record["annotations"].append(annotation)
    records = list(records.values())
    if bad:
        which = f"{len(bad)} annotations, first annotations[{bad[0]}]"
        hint = "their other polygons count, and annotations without another are left out"
        logger.warning(f"{json_file}: {which}, have no polygons or some of no 3 points: {hint}")
    warn_of_strays(records, json_file)
    number = sum(len(record["annotations"]) for record in records)
    logger.info(f"Loaded {len(records)} images with {number} of {len(content.annotations)} boxes from {json_file}")
    return records


def warn_of_strays(records: Sequence[Mapping], source: str) -> None:
    """Warn of boxes XYWH that reach beyond their images by more than a pixel, as corners do that are read as sizes."""
    strays = [
        record["file_name"] for record in records
        for x, y, w, h in (a["bbox"] for a in record["annotations"] if "bbox" in a)
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
    pixels)}, and ``segmentation`` (arrays of polygons, or COCO's run lengths) if the file has it and ``masks`` is True.
    """
    content, records = _read(json_file, image_root, remedy, TestMaskFile if masks else BoxFile)
    for number, a in enumerate(content.annotations):
        category_id = class_index(a.category_id, index, f"annotations[{number}].category_id", json_file, a.id)
        if record := records.get(a.image_id):
            annotation = {"category_id": category_id, "iscrowd": int(a.iscrowd), "bbox": list(a.bbox)}
            mask = coco_mask(getattr(a, "segmentation", UNSET))
            record["annotations"].append(annotation | ({"segmentation": mask} if mask else {}))
    return list(records.values())


def read_panoptic_regions(json_file: str, image_root: str, *, remedy: str, **_) -> list[dict]:
    """All segments of COCO's panoptic json, by image id, with the indices of its 133 classes.

    A record also holds ``pan_seg_file_name``, the PNG of the segments; an annotation holds ``segment_id`` instead of
    ``segmentation``, and ``bbox`` unless it is stuff. The folder of the PNGs has the name of the json and lies in its
    folder (COCO's zip) or beside that folder (Detectron2).
    """
    content, records = _read(json_file, image_root, remedy, PanopticFile)
    folders = [place / Path(json_file).stem for place in (Path(json_file).parents[1], Path(json_file).parent)]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise UserError(f"no folder of panoptic PNGs at {folders[0]} or {folders[1]}: {remedy}")
    for record in records.values():
        record["pan_seg_file_name"] = str(folder)
    for number, panoptic in enumerate(content.annotations):
        record = records.get(panoptic.image_id)
        if record is None:
            continue
        record["pan_seg_file_name"] = str(folder / panoptic.file_name)
        for i, segment in enumerate(panoptic.segments_info):
            place = f"annotations[{number}].segments_info[{i}]"
            key = class_index(segment.category_id, PANOPTIC_INDEX, f"{place}.category_id", json_file, segment.id)
            annotation = {"category_id": key, "iscrowd": int(segment.iscrowd), "segment_id": int(segment.id)}
            if segment.category_id not in STUFF_IDS:
                if segment.bbox is None:
                    where = f"{place} of {json_file} (id {segment.id})"
                    raise UserError(f"{where} has no bbox, which every segment but stuff needs: {remedy}")
                annotation["bbox"] = list(segment.bbox)
            record["annotations"].append(annotation)
    return list(records.values())


def read_pseudo_labels(json_file: str, image_root: str, *, index: Mapping[int, int], remedy: str) -> list[dict]:
    """Boxes of ``tools/pseudo_label.py`` as arrays, because there are millions of them.

    ``boxes`` (R, 4) are float32 xyxy in px, ``nouns`` (R,) int64, R >= 1. Boxes without area are left out.
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


def _read(json_file: str, image_root: str, remedy: str, kind: type[File]) -> tuple[File, dict[int, dict]]:
    """The content, and {id: the record of an image, without annotations yet} by ascending id.

    Images without a size, neither in the json nor in their header, are left out. UserError if no other is there.
    """
    content = read_json(json_file, remedy=remedy, kind=kind)
    require_folder(image_root)
    records, unreadable, folder = {}, [], os.path.join(image_root, "")
    for place, image in enumerate(content.images):
        name = image_file(image, folder)
        if name == folder:
            where = f"images[{place}] of {json_file} (id {image.id})"
            raise UserError(f"{where} has no file_name and no coco_url: {remedy}")
        try:
            height, width = (image.height, image.width) if image.height and image.width else image_size(name)
        except UnreadableImage as error:
            unreadable.append(error)
            continue
        size = {"height": height, "width": width}
        records[image.id] = {"file_name": name, "image_id": image.id, "annotations": []} | size
    if unreadable:
        reason = f"{len(unreadable)} images that give no height and width, first {unreadable[0]}"
        if not records:
            raise UserError(f"{json_file} has only {reason}: {remedy}")
        logger.warning(f"{json_file}: left out {reason}")
    if strays := sum(a.image_id not in records for a in content.annotations):
        logger.warning(f"{json_file}: left out {strays} annotations whose image_id is not among these images")
    return content, dict(sorted(records.items()))


def image_file(image: Image | Pair, folder: str) -> str:
    """The path of an image; ``folder`` ends with a slash. Without a name, the end of the address counts, as in LVIS."""
    name = image.file_name or "/".join((image.coco_url or "").split("/")[-2:])
    if name.startswith(SCHEME):  # an image in a shard
        return SCHEME + os.path.join(folder, name.removeprefix(SCHEME))
    return name if name.startswith("/") else folder + name


def class_index(category_id, index: Mapping, place: str, source, identity=None) -> int:
    """The contiguous index of a category. UserError with ``place`` of ``source`` if it is none of the set."""
    if category_id in index:
        return index[category_id]
    where = f"{place} of {source}" + ("" if identity is None else f" (id {identity})")
    few = f"it is none of the {len(index)} categories of this data set"
    raise UserError(f"{where} is {category_id!r}, but {few}: correct it, or remove the annotation.")
