"""Image-caption data sets: Detic's json of captions with tags, or COCO's own -> records for the mappers."""

import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tqdm import tqdm

from clim.errors import UserError
from clim.files import read_json, resolve

PREPARE_OV_COCO = "python datasets/prepare_ovcoco.py --source COCO"

logger = logging.getLogger(__name__)


def load_captions_json(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    category_index: Mapping[int, int] | None = None,
    made_by: str = PREPARE_OV_COCO,
) -> list[dict]:
    """Read a caption file in the format of Detic's ``captions_train2017_tags_allcaps.json``, or of COCO's without tags.

    Args:
        json_file: {"images": [{id, file_name, height, width, captions [str], pos_category_ids [id]}],
            "categories": [{id, name}]}. ``pos_category_ids`` may be absent (no tags), ``height`` and
            ``width`` too: then they are read from the picture's header. COCO keeps the captions apart, in
            "annotations": [{image_id, caption}].
        image_root: folder that ``file_name`` is relative to (an absolute ``file_name`` stays).
        category_index: {category id: contiguous 0-based index} of the vocabulary that ``tags`` refer to.
            None: the file's own categories in ascending id order.
        made_by: the command that writes ``json_file``, named in the error when it is missing.

    Returns:
        One dict per image with at least one caption: ``file_name``, ``height``, ``width`` (pixels, upright),
        ``image_id``, ``captions`` (list of str, blank ones left out), ``tags`` (contiguous indices). Images
        without a caption, or whose missing size cannot be read, are skipped; the log counts them.

    Raises:
        UserError: no such file or folder, not such a file, a tag outside the categories, or nothing left.
    """
    content = read_json(json_file, remedy=f"make it with: {made_by}")
    require_folder(image_root)
    if not isinstance(content, Mapping) or "images" not in content:
        raise UserError(f"{json_file} is no caption file (it has no 'images'): make it with: {made_by}")
    index = category_index
    if index is None:
        index = {key: i for i, key in enumerate(sorted(c["id"] for c in content.get("categories", ())))}

    apart = _captions_apart(content)
    records, unreadable, silent = [], [], 0
    sized = all("height" in image and "width" in image for image in content["images"])
    for image in tqdm(content["images"], desc="image sizes", disable=sized):
        captions = [c for c in image.get("captions", apart.get(image["id"], ())) if c.strip()]
        if not captions:
            silent += 1
            continue
        file_name = os.path.join(image_root, image["file_name"])
        size = _size_hw(image, file_name)
        if size is None:
            unreadable.append(file_name)
            continue
        unknown = [key for key in image.get("pos_category_ids", ()) if key not in index]
        if unknown:
            raise UserError(
                f"image {image['id']} of {json_file} has tag {unknown[0]}, which is none of this data set's "
                f"{len(index)} categories"
            )
        records.append(
            {
                "file_name": file_name,
                "height": size[0],
                "width": size[1],
                "image_id": image["id"],
                "captions": captions,
                "tags": [index[key] for key in image.get("pos_category_ids", ())],
            }
        )

    if unreadable:
        logger.warning(f"{json_file}: skipped {len(unreadable)} unreadable images, first {unreadable[0]}")
    if not records:
        reason = f"image {unreadable[0]} cannot be read" if unreadable else "no images[*].captions"
        raise UserError(f"{json_file} gives no image with a caption ({reason}): make it with: {made_by}")
    logger.info(f"Loaded {len(records)} images with captions from {json_file}, skipped {silent} without")
    return records


def register_captions(
    name: str,
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    made_by: str = PREPARE_OV_COCO,
    **metadata,
) -> None:
    """Register a caption file as data set ``name``; nothing is read before the data set is asked for.

    Args:
        json_file, image_root: absolute, relative to the working folder, or relative to the data root.
        metadata: further entries of ``MetadataCatalog``, e.g. ``thing_classes``.

    Raises:
        UserError: ``name`` is taken.
    """
    if name in DatasetCatalog:
        raise UserError(f"data set '{name}' is registered already: choose another name")
    DatasetCatalog.register(name, partial(_load_resolved, json_file, image_root, made_by))
    MetadataCatalog.get(name).set(json_file=str(json_file), image_root=str(image_root), **metadata)


def require_folder(image_root: str | os.PathLike) -> None:
    """UserError where the folder of the images does not exist."""
    if not Path(image_root).is_dir():
        raise UserError(f"image folder {image_root} not found: set DETECTRON2_DATASETS, see datasets/README.md")


def _captions_apart(content: Mapping) -> dict[int, list[str]]:
    """{image id: captions} of COCO's own files; {} of Detic's, whose annotations are empty."""
    captions: dict[int, list[str]] = {}
    for annotation in content.get("annotations", ()):
        if "caption" in annotation:  # files of boxes may tell captions beside their pictures
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return captions


def _load_resolved(json_file, image_root, made_by) -> list[dict]:
    return load_captions_json(resolve(json_file), resolve(image_root), made_by=made_by)


def _size_hw(image: Mapping, file_name: str) -> tuple[int, int] | None:
    """(height, width) in pixels: as stated, else from the picture's header, upright; None: unreadable."""
    if "height" in image and "width" in image:
        return image["height"], image["width"]
    try:
        with Image.open(file_name) as opened:
            width, height = opened.size
            sideways = opened.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5-8 lie on their side
    except (OSError, SyntaxError):
        return None
    return (width, height) if sideways else (height, width)
