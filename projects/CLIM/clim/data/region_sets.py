"""Region sets: pictures with boxes whose classes are to be recognised, from COCO instances or panoptic jsons.

A record is {file_name, height, width, image_id, annotations}, where an annotation has a contiguous
``category_id``, ``iscrowd`` and either ``bbox`` (x, y, width, height in pixels) or, for stuff, no box: its extent
in the picture's segmentation is taken then. A mask comes from an annotation's ``segmentation`` (COCO's polygons or
run lengths) or, in a panoptic set, from the pixels of the record's ``pan_seg_file_name`` that show ``segment_id``.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog

from clim.data.captions import require_folder
from clim.data.catalog import Files, Vocabulary, first_existing, own_vocabulary, register
from clim.data.categories import STUFF_IDS, panoptic_ids
from clim.errors import UserError
from clim.files import read_json
from clim.paths import data_root

PANOPTIC_FOLDERS = ("coco/panoptic_val2017", "coco/annotations/panoptic_val2017")  # Detectron2's, COCO's zip
GET_PANOPTIC = "get COCO's panoptic annotations, see datasets/README.md"


def register_region_set(name: str, json_file: str, image_root: str, **metadata) -> None:
    """Register a COCO-format instances json, so that ``DATASETS.TEST`` may name it; nothing is read yet.

    Its classes are the file's own categories by ascending id.

    Args:
        json_file, image_root: absolute, or relative to the data root.
        metadata: further entries of ``MetadataCatalog``, e.g. ``stuff_classes``.

    Raises:
        UserError: ``name`` is taken.
    """
    if name in DatasetCatalog:
        raise UserError(f"data set '{name}' is registered already: choose another name")
    files = Files(image_root, (json_file,), command="")
    remedy = f"register '{name}' with the path of its json"
    vocabulary = partial(own_vocabulary, files, remedy=remedy)
    load = partial(load_regions, remedy=remedy)
    register(name, files, vocabulary, load, evaluator_type="regions", **metadata)


def load_regions(files: Files, vocabulary: Callable[[], Vocabulary], *, remedy: str = "") -> list[dict]:
    """Records of an instances json by image id, annotations in the file's order, crowds included.

    Raises:
        UserError: json or image folder missing, a broken json, an annotation outside the vocabulary.
    """
    json_file, image_root = files.json_path(), files.image_path()
    content = read_json(json_file, remedy=remedy or f"make it with: {files.made_by()}")
    require_folder(image_root)
    index, by_image = vocabulary().index, {}
    for a in content["annotations"]:
        annotation = {
            "category_id": _contiguous(a, index, image_id=a["image_id"], json_file=json_file),
            "iscrowd": int(a.get("iscrowd", 0)),
            "bbox": list(a["bbox"]),
        }
        if a.get("segmentation"):
            annotation["segmentation"] = a["segmentation"]
        by_image.setdefault(a["image_id"], []).append(annotation)
    return _records(
        content["images"], image_root, lambda image: {"annotations": by_image.get(image["id"], [])}
    )


def load_panoptic_regions(files: Files, vocabulary: Callable[[], Vocabulary]) -> list[dict]:
    """Records of COCO's panoptic json: all segments of a picture, of 133 classes, stuff without ``bbox``.

    Raises:
        UserError: json, image folder or PNG folder missing, a broken json, an unknown category.
    """
    json_file, image_root = files.json_path(), files.image_path()
    content = read_json(json_file, remedy=GET_PANOPTIC)
    require_folder(image_root)
    folder = first_existing(PANOPTIC_FOLDERS)
    if not folder.is_dir():
        raise UserError(f"no folder of panoptic PNGs at {' or '.join(PANOPTIC_FOLDERS)} below {data_root()}: "
                        f"{GET_PANOPTIC}")  # fmt: skip
    index, by_image = panoptic_ids(), {a["image_id"]: a for a in content["annotations"]}

    def segments(image: dict) -> dict:
        picture = by_image.get(image["id"], {"file_name": "", "segments_info": []})
        annotations = []
        for segment in picture["segments_info"]:
            annotation = {
                "category_id": _contiguous(segment, index, image_id=image["id"], json_file=json_file),
                "iscrowd": int(segment.get("iscrowd", 0)),
                "segment_id": segment["id"],
            }
            if segment["category_id"] not in STUFF_IDS:
                annotation["bbox"] = list(segment["bbox"])
            annotations.append(annotation)
        return {"pan_seg_file_name": str(folder / picture["file_name"]), "annotations": annotations}

    return _records(content["images"], image_root, segments)


def _records(images: Iterable[dict], image_root: str, annotated: Callable[[dict], dict]) -> list[dict]:
    return [
        {
            "file_name": str(Path(image_root) / image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            **annotated(image),
        }
        for image in sorted(images, key=lambda image: image["id"])
    ]


def _contiguous(annotation: dict, index: dict[int, int], *, image_id, json_file: str) -> int:
    category = annotation["category_id"]
    if category not in index:
        raise UserError(
            f"image {image_id} of {json_file} has a region of category {category}, which is none of this data "
            f"set's {len(index)} categories"
        )
    return index[category]
