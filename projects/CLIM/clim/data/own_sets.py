"""Data sets that a config names by their files: own image-text pairs, boxes, regions to be classified."""

from collections.abc import Sequence
from functools import partial

from detectron2.data import DatasetCatalog

from clim.errors import UserError

from .builtin import load_detection
from .captions import register_captions
from .catalog import Files, own_vocabulary, register
from .region_sets import register_region_set

_registered: dict[str, tuple] = {}


def register_own_sets(entries: Sequence[Sequence[str]]) -> None:
    """Register every [name, kind, json, image folder]; paths are absolute or below the data root.

    Kinds: "captions", image-text pairs; "boxes", a COCO-format json to train on or to detect in; "regions", the
    same format with boxes to be classified. The same entry may come again. Raises UserError for one that is
    not of this form, and for a name that means something else already.
    """
    for entry in entries:
        if len(entry) != 4 or entry[1] not in _KINDS:
            raise UserError(
                f"DATASETS.OWN holds {list(entry)}: give [name, kind, json, image folder], kind one of "
                f"{', '.join(_KINDS)}."
            )
        name, kind, *paths = entry
        if _registered.get(name) == tuple(entry):
            continue
        if name in DatasetCatalog:
            raise UserError(f"DATASETS.OWN names {name}, which is another data set already: choose another name.")
        _KINDS[kind](name, *paths)
        _registered[name] = tuple(entry)


def _register_boxes(name: str, json_file: str, image_root: str) -> None:
    files = Files(image_root, (json_file,), command="")
    vocabulary = partial(own_vocabulary, files, remedy=f"correct the path of {name} in DATASETS.OWN")
    register(name, files, vocabulary, load_detection, evaluator_type="ov_coco")


_KINDS = {"captions": register_captions, "boxes": _register_boxes, "regions": register_region_set}
