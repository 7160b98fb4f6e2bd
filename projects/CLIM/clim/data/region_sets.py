"""Registering region sets: images with boxes whose classes are to be recognised."""

from collections.abc import Callable
from functools import partial

from detectron2.data import DatasetCatalog

from clim.data.captions import require_folder
from clim.data.catalog import Files, Vocabulary, first_existing, own_vocabulary, register
from clim.data.categories import panoptic_ids
from clim.data.region_classification import load_panoptic_regions, load_regions
from clim.errors import UserError
from clim.files import data_root

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
    load = partial(region_records, remedy=remedy)
    register(name, files, vocabulary, load, evaluator_type="regions", **metadata)


def region_records(files: Files, vocabulary: Callable[[], Vocabulary], *, remedy: str = "") -> list[dict]:
    """Records of an instances json; UserError as :func:`load_regions`, and if the image folder is missing."""
    remedy = remedy or f"make it with: {files.made_by()}"
    records = load_regions(files.json_path(), files.image_path(), index=vocabulary().index, remedy=remedy)
    require_folder(files.image_path())
    return records


def panoptic_records(files: Files, vocabulary: Callable[[], Vocabulary]) -> list[dict]:
    """Records of COCO's panoptic json and its 133 classes; UserError also if images or PNGs are missing."""
    folder = first_existing(PANOPTIC_FOLDERS)
    records = load_panoptic_regions(
        files.json_path(), files.image_path(), folder, index=panoptic_ids(), remedy=GET_PANOPTIC
    )
    require_folder(files.image_path())
    if not folder.is_dir():
        raise UserError(f"no folder of panoptic PNGs at {' or '.join(PANOPTIC_FOLDERS)} below {data_root()}: "
                        f"{GET_PANOPTIC}")  # fmt: skip
    return records
