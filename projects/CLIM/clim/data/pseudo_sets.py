"""Data sets of pictures with pseudo-labelled boxes, from the jsons of ``tools/pseudo_label.py``."""

from collections.abc import Callable
from functools import partial

import numpy as np

from clim.data.catalog import Files, Vocabulary, own_vocabulary, register
from clim.data.region_sets import region_records

REMEDY = "make it with tools/pseudo_label.py"


def register_pseudo_labels(name: str, json_file: str, image_root: str) -> None:
    """Register a json of ``tools/pseudo_label.py``, for DATASETS.REGIONS; nothing is read yet.

    Its classes are the file's categories by ascending id. A name that is taken stays as it is.

    Args:
        json_file, image_root: absolute, or relative to the data root.
    """
    files = Files(image_root, (json_file,), command="")
    register(name, files, partial(own_vocabulary, files, remedy=REMEDY), load_pseudo_labels)


def load_pseudo_labels(files: Files, vocabulary: Callable[[], Vocabulary]) -> list[dict]:
    """{file_name, height, width, image_id, boxes (R, 4) float32 xyxy in pixels, nouns (R,) int64, 0-based}, R >= 1.

    Pictures without a box that has an area are left out. Arrays, because there are millions of boxes.

    Raises:
        UserError: json or image folder missing, a broken json, a box of an unknown category.
    """
    records = []
    for record in region_records(files, vocabulary, remedy=REMEDY):
        annotations = record.pop("annotations")
        boxes = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
        nouns = np.array([a["category_id"] for a in annotations], np.int64)
        kept = (boxes[:, 2:] > 0).all(axis=1)
        boxes[:, 2:] += boxes[:, :2]
        if kept.any():
            records.append(record | {"boxes": boxes[kept], "nouns": nouns[kept]})
    return records
