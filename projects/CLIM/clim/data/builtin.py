"""Data sets that the configs name, registered on import: OV-COCO under Detic's names, CLIM's files, the mini
sets.

Registering reads nothing. Paths are worked out from ``clim.files.data_root()`` whenever a data set or its
metadata is asked for, so ``DETECTRON2_DATASETS`` may be set or changed after the import.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.data.datasets import load_coco_json

from clim.data.captions import PREPARE_OV_COCO, load_captions_json, register_captions, require_folder
from clim.data.catalog import Files, Vocabulary, own_vocabulary, register
from clim.data.categories import BASE_NAMES, COCO_NAMES, NOVEL_NAMES, STUFF_NAMES, contiguous_ids
from clim.data.pseudo_sets import register_pseudo_labels
from clim.data.region_sets import panoptic_records, region_records
from clim.errors import UserError

MAKE_MINI = "python tools/make_mini.py"


def coco_vocabulary() -> Vocabulary:
    """All 80 COCO categories, whichever of them a file holds."""
    return Vocabulary(list(COCO_NAMES), list(BASE_NAMES), list(NOVEL_NAMES), contiguous_ids())


def mini_vocabulary(files: Files) -> Vocabulary:
    """The categories of the set's own json, each base or novel. UserError where it lacks this split."""
    vocabulary = own_vocabulary(files, remedy=f"make it with: {files.made_by()}")
    if not vocabulary.base and not vocabulary.novel:
        raise UserError(
            f"{files.json_path()} does not say which categories are novel: make it again with: {files.made_by()}"
        )
    return vocabulary


def load_detection(files: Files, vocabulary: Callable[[], Vocabulary]) -> list[dict]:
    """Boxes of a COCO instances file as Detectron2's records; category ids become contiguous indices.

    The vocabulary decides the indices, not the file's own ``categories``: OVR-CNN's files list 48 or 17 of
    the 80. Masks and keypoints are left out: nothing here trains on them, and they are most of the memory.

    Raises:
        UserError: json or image folder missing, broken json, an annotation outside the vocabulary.
    """
    json_file, image_root = files.json_path(), files.image_path()
    if not Path(json_file).is_file():
        raise UserError(f"{json_file} not found: make it with: {files.made_by()}")
    require_folder(image_root)
    try:
        records = load_coco_json(json_file, image_root)
    except ValueError as error:
        raise UserError(f"{json_file} cannot be read ({error}): make it again with: {files.made_by()}") from error
    index = vocabulary().index
    for record in records:
        for annotation in record["annotations"]:
            if annotation["category_id"] not in index:
                raise UserError(
                    f"image {record['image_id']} of {json_file} has an object of category "
                    f"{annotation['category_id']}, which is none of this data set's {len(index)} categories"
                )
            annotation["category_id"] = index[annotation["category_id"]]
            annotation.pop("segmentation", None)
            annotation.pop("keypoints", None)
    return records


def load_captions(files: Files, vocabulary: Callable[[], Vocabulary]) -> list[dict]:
    """Caption records of ``files``; see :func:`clim.data.captions.load_captions_json`."""
    return load_captions_json(
        files.json_path(), files.image_path(), category_index=vocabulary().index, made_by=files.made_by()
    )


# Where Detic's instructions and code name different places, or its file lists half of the categories although
# an evaluator needs all that the detector predicts ("oriorder" has the 80), the better file is tried first.
_COCO_TRAIN = {
    "coco_zeroshot_train_oriorder": ("coco/zero-shot/instances_train2017_seen_2_oriorder.json",),
    "coco_ovd_base_train": ("coco/wusize/instances_train2017_base.json",),
}
_COCO_VAL = {
    "coco_generalized_zeroshot_val": ("coco/zero-shot/instances_val2017_all_2_oriorder.json",),
    "coco_zeroshot_val": (
        "coco/zero-shot/instances_val2017_unseen_2_oriorder.json",
        "coco/zero-shot/instances_val2017_unseen_2.json",
    ),
    "coco_not_zeroshot_val": (
        "coco/zero-shot/instances_val2017_seen_2_oriorder.json",
        "coco/zero-shot/instances_val2017_seen_2.json",
    ),
    "coco_ovd_val": ("coco/annotations/instances_val2017.json",),  # all 5,000 images, for CLIM's two runs
    "coco_ovd_base_val": ("coco/wusize/instances_val2017_base.json",),
    "coco_ovd_novel_val": ("coco/wusize/instances_val2017_novel.json",),
}
_COCO_CAPTIONS = {
    "coco_caption_train_tags": (
        "coco/annotations/captions_train2017_tags_allcaps.json",
        "coco/captions_train2017_tags_allcaps.json",
    ),
    "coco_caption_train": ("coco/annotations/captions_train2017.json",),  # all photos, no tags
}
_COCO_REGIONS = {
    "coco_val_regions": ("instances_val2017.json", region_records, {}),
    "coco_panoptic_val_regions": ("panoptic_val2017.json", panoptic_records, {"stuff_classes": list(STUFF_NAMES)}),
}


def register_builtin() -> None:
    """Register every data set of this file; names that are taken (a second import, Detic's own) stay."""
    for name, json_files in _COCO_TRAIN.items():
        _register_coco(name, "coco/train2017", json_files, load_detection)
    for name, json_files in _COCO_VAL.items():
        _register_coco(name, "coco/val2017", json_files, load_detection, evaluator_type="ov_coco")
    for name, json_files in _COCO_CAPTIONS.items():
        _register_coco(name, "coco/train2017", json_files, load_captions)
    # Conceptual Captions 3M where Detic's scripts put it; CLIM's list of it has the same format.
    if "cc3m_v1_train" not in DatasetCatalog:
        register_captions(
            "cc3m_v1_train", "cc3m/train_image_info.json", "cc3m/training", made_by="see datasets/README.md"
        )
    _register_mini("mini_ov_train", "train", "instances_train_base.json", load_detection)
    _register_mini("mini_ov_val", "val", "instances_val_all.json", load_detection, evaluator_type="ov_coco")
    _register_mini("mini_ov_captions", "pairs", "captions_pairs_tags.json", load_captions)
    _register_mini("mini_ov_captions_cluttered", "cluttered", "captions_cluttered_tags.json", load_captions)
    for name, (json_file, load, metadata) in _COCO_REGIONS.items():
        json_files = (f"coco/annotations/{json_file}",)
        _register_coco(name, "coco/val2017", json_files, load, evaluator_type="regions", **metadata)
    _register_mini("mini_val_regions", "val", "instances_val_all.json", region_records, evaluator_type="regions")
    register_pseudo_labels("coco_pseudo_regions", "coco/annotations/pseudo_regions.json", "coco/train2017")
    register_pseudo_labels("mini_pseudo_regions", "mini/annotations/pseudo_regions.json", "mini/pairs")


def _register_coco(name: str, folder: str, json_files: tuple[str, ...], load: Callable, **metadata) -> None:
    register(name, Files(folder, json_files, PREPARE_OV_COCO), coco_vocabulary, load, **metadata)


def _register_mini(name: str, folder: str, json_file: str, load: Callable, **metadata) -> None:
    files = Files(f"mini/{folder}", (f"mini/annotations/{json_file}",), MAKE_MINI)
    register(name, files, partial(mini_vocabulary, files), load, **metadata)


register_builtin()
