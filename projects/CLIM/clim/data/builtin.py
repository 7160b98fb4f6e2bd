"""Data sets that the configs name, registered on import: OV-COCO under Detic's names, CLIM's files, the mini
sets.

Registering reads nothing. Paths are worked out from ``clim.paths.data_root()`` whenever a data set or its
metadata is asked for, so ``DETECTRON2_DATASETS`` may be set or changed after the import.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import load_coco_json

from clim.data.captions import PREPARE_OV_COCO, load_captions_json, read_json, require_folder
from clim.data.coco_splits import BASE_NAMES, COCO_NAMES, NOVEL_NAMES, contiguous_ids
from clim.errors import UserError
from clim.paths import data_root

MAKE_MINI = "python tools/make_mini.py"


class Vocabulary(NamedTuple):
    """Names in contiguous order, their split, and {category id of the json: contiguous index}."""

    names: list[str]
    base: list[str]
    novel: list[str]
    index: dict[int, int]


class Files(NamedTuple):
    """A data set on disk, relative to the data root; of several json files the first that exists is taken."""

    image_root: str
    json_files: tuple[str, ...]
    command: str

    def image_path(self) -> str:
        return str(data_root() / self.image_root)

    def json_path(self) -> str:
        paths = [data_root() / json_file for json_file in self.json_files]
        return str(next((path for path in paths if path.is_file()), paths[0]))

    def made_by(self) -> str:
        return f"{self.command} --output {data_root()}"


class LazyMetadata(Metadata):
    """Detectron2's metadata with entries that are computed at every read instead of stored.

    Copying and unpickling call the constructor without arguments and fill ``__dict__`` afterwards.
    """

    def __init__(self, *, name: str = "", entries: Mapping[str, Callable[[], object]] | None = None):
        super().__init__(name=name)
        self.__dict__["_entries"] = dict(entries or {})

    def __getattr__(self, key):
        if not key.startswith("_") and key in self._entries:
            return self._entries[key]()
        return super().__getattr__(key)

    def as_dict(self) -> dict:
        stored = {key: value for key, value in self.__dict__.items() if key != "_entries"}
        return {key: compute() for key, compute in self._entries.items()} | stored


def coco_vocabulary() -> Vocabulary:
    """All 80 COCO categories, whichever of them a file holds."""
    return Vocabulary(list(COCO_NAMES), list(BASE_NAMES), list(NOVEL_NAMES), contiguous_ids())


def mini_vocabulary(files: Files) -> Vocabulary:
    """The 65 concepts as the set's own json numbers them; while there is none, as the package does."""
    from clim.data.mini_concepts import MINI_BASE, MINI_CATEGORIES, MINI_NOVEL

    path = Path(files.json_path())
    categories = tuple(enumerate(MINI_CATEGORIES, start=1))
    if path.is_file():
        categories = _categories(str(path), path.stat().st_mtime_ns)
    names = [name for _, name in categories]
    base, novel = ([name for name in names if name in part] for part in (MINI_BASE, MINI_NOVEL))
    return Vocabulary(names, base, novel, {key: position for position, (key, _) in enumerate(categories)})


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
        raise UserError(
            f"{json_file} cannot be read ({error}): make it again with: {files.made_by()}"
        ) from error
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


@lru_cache(maxsize=8)
def _categories(json_file: str, modified_ns: int) -> tuple[tuple[int, str], ...]:
    """(id, name) by ascending id; ``modified_ns`` makes a rewritten file another cache entry."""
    content = read_json(json_file, remedy=f"make it with: {MAKE_MINI}")
    return tuple(sorted((category["id"], category["name"]) for category in content["categories"]))


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
}


def register_builtin() -> None:
    """Register every data set of this file; names that are taken stay as they are."""
    for name, json_files in _COCO_TRAIN.items():
        _register_coco(name, "coco/train2017", json_files, load_detection)
    for name, json_files in _COCO_VAL.items():
        _register_coco(name, "coco/val2017", json_files, load_detection, evaluator_type="ov_coco")
    for name, json_files in _COCO_CAPTIONS.items():
        _register_coco(name, "coco/train2017", json_files, load_captions)
    _register_mini("mini_ov_train", "train", "instances_train_base.json", load_detection)
    _register_mini("mini_ov_val", "val", "instances_val_all.json", load_detection, evaluator_type="ov_coco")
    _register_mini("mini_ov_captions", "pairs", "captions_pairs_tags.json", load_captions)
    _register_mini("mini_ov_captions_cluttered", "cluttered", "captions_cluttered_tags.json", load_captions)


def _register_coco(name: str, folder: str, json_files: tuple[str, ...], load: Callable, **metadata) -> None:
    _register(name, Files(folder, json_files, PREPARE_OV_COCO), coco_vocabulary, load, **metadata)


def _register_mini(name: str, folder: str, json_file: str, load: Callable, **metadata) -> None:
    files = Files(f"mini/{folder}", (f"mini/annotations/{json_file}",), MAKE_MINI)
    _register(name, files, partial(mini_vocabulary, files), load, **metadata)


def _register(
    name: str, files: Files, vocabulary: Callable[[], Vocabulary], load: Callable, **metadata
) -> None:
    """Fill both catalogues; a name that is there already (a second import, or Detic's own) stays."""
    if name in DatasetCatalog:
        return
    DatasetCatalog.register(name, partial(load, files, vocabulary))
    entries = {
        "json_file": files.json_path,
        "image_root": files.image_path,
        "thing_classes": partial(_field, vocabulary, "names"),
        "thing_dataset_id_to_contiguous_id": partial(_field, vocabulary, "index"),
        "base_classes": partial(_field, vocabulary, "base"),
        "novel_classes": partial(_field, vocabulary, "novel"),
    }
    MetadataCatalog[name] = LazyMetadata(name=name, entries=entries).set(**metadata)


def _field(vocabulary: Callable[[], Vocabulary], key: str):
    return getattr(vocabulary(), key)


register_builtin()
