"""Data sets: importing this module registers the names that configs use; users register their own sets.

Registration reads no file. Paths are below ``clim.files.data_root()``, which is read again for each data set and its
metadata, so ``DETECTRON2_DATASETS`` may be set or changed after the import.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets.lvis import get_lvis_instances_meta

from clim.errors import UserError
from clim.files import data_root, read_json, resolve

from . import categories
from .captions import read_captions
from .categories import BASE_NAMES, COCO_INDEX, COCO_NAMES, LVIS_NAMES, LVIS_RARE_IDS, NOVEL_NAMES, STUFF_NAMES
from .readers import read_boxes, read_lvis, read_panoptic_regions, read_pseudo_labels, read_regions
from .schemas import CategoryFile
from .shards import read_shards

PREPARE_COCO = "make it with: python datasets/prepare_ovcoco.py --source COCO --output {root}"
PREPARE_LVIS = "make it with: python datasets/prepare_ovlvis.py --source LVIS --output {root}"
MAKE_MINI = "make it with: python tools/make_mini.py --output {root}"
MAKE_MINI_LVIS = f"{MAKE_MINI} --benchmark lvis"
MAKE_NOUNS = "make it with tools/index_pairs.py json, see datasets/README.md"
PSEUDO_LABEL = "make it with tools/pseudo_label.py"
GET_PANOPTIC = "get COCO's panoptic annotations, see datasets/README.md"
GET_CC3M = "get Conceptual Captions, see datasets/README.md"
INDEX_CC3M = "make it with: python tools/index_pairs.py shards --pattern 'cc3m-train-*.tar'"
INDEX_CC3M += " --shards {root}/cc3m-wds --output {root}/cc3m-wds"


class Vocabulary(NamedTuple):
    """Classes of a data set; the metadata has entries of the same names."""

    thing_classes: list[str]  # in contiguous order
    base_classes: list[str]
    novel_classes: list[str]
    thing_dataset_id_to_contiguous_id: dict[int, int]  # category id in the json: contiguous index
    class_image_count: list[dict] | None = None  # [{"id", "image_count"}], for the federated loss
    unused_classes: Sequence[str] = ()  # that the evaluation leaves out where the set has base or novel classes


class Files(NamedTuple):
    """Where a data set lies. The first json file that exists is read."""

    image_root: str
    json_files: tuple[str, ...]
    remedy: str  # how to get the files; {root} stands for the data root
    own: bool = False  # a user's paths may also be absolute, or relative to the working folder

    def find(self, path: str) -> str:
        return str(resolve(path) if self.own else data_root() / path)

    def image_path(self) -> str:
        return self.find(self.image_root)

    def json_path(self) -> str:
        return next(filter(os.path.exists, map(self.find, self.json_files)), self.find(self.json_files[0]))

    def how(self) -> str:
        """The remedy with today's data root."""
        return self.remedy.replace("{root}", str(data_root()))


class LazyMetadata(Metadata):
    """Detectron2's metadata with entries that are computed at every read instead of stored."""

    # Copying and unpickling call the constructor without arguments and fill ``__dict__`` afterwards.
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


def register(name: str, files: Files, read: Callable, vocabulary: Callable[[], Vocabulary] | None, **metadata) -> None:
    """Add a data set to both catalogues of Detectron2; a name that is taken keeps its data set.

    Without a ``vocabulary``, the reader numbers the categories of the file. ``metadata``: further entries.
    """
    if name in DatasetCatalog:
        return
    DatasetCatalog.register(name, partial(_load, files, read, vocabulary))
    entries: dict[str, Callable] = {"json_file": files.json_path, "image_root": files.image_path}
    if vocabulary is not None:
        entries |= {key: partial(_field, vocabulary, key) for key in Vocabulary._fields}
    MetadataCatalog[name] = LazyMetadata(name=name, entries=entries).set(**metadata)


def register_own_set(name: str, kind: str, json_file: str, image_root: str, **metadata) -> None:
    """Register a user's data set; its classes are the categories of the json by ascending id.

    ``kind`` and paths as in an entry of DATASETS.OWN (clim/config.py, docs/own_data.md), ``metadata`` as in
    :func:`register`. UserError if ``name`` is taken.
    """
    if name in DatasetCatalog:
        raise UserError(f"{name} is another data set already: choose another name.")
    read, extra = _KINDS[kind]
    remedy = f"check the paths of data set {name}"
    if kind == "shards":
        remedy += f", or python tools/index_pairs.py shards --shards {image_root} --output {json_file}"
    files = Files(str(image_root), (str(json_file),), remedy, own=True)
    vocabulary = None if kind in ("captions", "shards") else partial(own_vocabulary, files)
    register(name, files, read, vocabulary, **extra, **metadata)


def register_own_sets(entries: Sequence[Sequence[str]]) -> None:
    """Register DATASETS.OWN, [[name, kind, json, image folder], …]. UserError for another form or a taken name."""
    for entry in map(tuple, entries):
        if len(entry) != 4 or entry[1] not in _KINDS:
            form = f"[name, kind, json, image folder], kind one of {', '.join(_KINDS)}"
            raise UserError(f"DATASETS.OWN holds {list(entry)}: give {form}.")
        if _registered.get(entry[0]) != entry:
            register_own_set(*entry)
            _registered[entry[0]] = entry


def coco_vocabulary() -> Vocabulary:
    """COCO's 80 classes, also if a file lists fewer."""
    unused = [name for name in COCO_NAMES if name not in {*BASE_NAMES, *NOVEL_NAMES}]
    return Vocabulary(list(COCO_NAMES), list(BASE_NAMES), list(NOVEL_NAMES), dict(COCO_INDEX), None, unused)


def split_vocabulary() -> Vocabulary:
    """VLDet's 65 classes: the base and novel ones of COCO by ascending id. Files hold COCO's ids (vldet §2)."""
    return Vocabulary(list(categories.SPLIT_NAMES), list(BASE_NAMES), list(NOVEL_NAMES), dict(categories.SPLIT_INDEX))


def lvis_vocabulary() -> Vocabulary:
    """LVIS v1's 1,203 classes; 866 frequent and common ones are base, 337 rare ones novel."""
    index = {i + 1: i for i in range(len(LVIS_NAMES))}
    novel = [LVIS_NAMES[index[key]] for key in LVIS_RARE_IDS]
    base = [name for key, name in zip(index, LVIS_NAMES, strict=True) if key not in LVIS_RARE_IDS]
    return Vocabulary(list(LVIS_NAMES), base, novel, index, get_lvis_instances_meta("lvis_v1")["class_image_count"])


def own_vocabulary(files: Files, *, split: bool = False) -> Vocabulary:
    """The categories of the json by ascending id; ``split`` in them may be "base", "novel" or "unused".

    Without it, LVIS's ``frequency`` counts: "r" is novel, "c" and "f" are base. If some are novel and none is base, all
    without a split are base. UserError for a broken file; with ``split`` also if no category is base or novel.
    """
    path = Path(files.json_path())
    categories = json_categories(path, remedy=files.how())
    if not categories:
        raise UserError(f"{path} has no categories, so its boxes have no classes: {files.how()}")
    index = {category["id"]: i for i, category in enumerate(categories)}
    undeclared, base, novel, unused = (
        [c["name"] for c in categories if c["split"] == wanted] for wanted in ("", "base", "novel", "unused")
    )
    if split and not base + novel:
        raise UserError(f"{path} does not say which categories are novel: {files.how()}")
    base = base if base or not novel else undeclared
    counts = None if any(c["image_count"] is None for c in categories) else list(categories)
    return Vocabulary([c["name"] for c in categories], base, novel, index, counts, unused)


def json_categories(json_file: str | os.PathLike, *, remedy: str) -> tuple[dict, ...]:
    """{id, name, split or "", frequency, image_count (both may be None), boxes (number)} of a json's categories by id.

    () if it has none. A json is read once, unless it is rewritten. UserError for a missing or broken file.
    """
    path = Path(json_file)
    return _categories(str(path), path.stat().st_mtime_ns if path.is_file() else 0, remedy)


@lru_cache(maxsize=8)
def _categories(json_file: str, modified_ns: int, remedy: str) -> tuple[dict, ...]:
    content = read_json(json_file, remedy=remedy, kind=CategoryFile)
    counts = Counter(a.category_id for a in content.annotations)
    splits = {"r": "novel", "c": "base", "f": "base"}
    return tuple(
        {"id": c.id, "name": c.name, "split": splits.get(c.frequency, "") if c.split is None else c.split,
         "frequency": c.frequency, "image_count": c.image_count, "boxes": counts[c.id]}
        for c in sorted(content.categories, key=attrgetter("id"))
    )  # fmt: skip


def get_records(name: str, *, masks: bool = True) -> Sequence[dict]:
    """The records of a registered set; without ``masks``, readers that read masks leave them out."""
    load = DatasetCatalog[name]
    called = (load.func, *load.args) if isinstance(load, partial) else ()
    choice = any(reader in called for reader in (read_lvis, read_regions))
    return load(masks=masks) if choice else load()


def _load(files: Files, read: Callable, vocabulary: Callable[[], Vocabulary] | None, **options) -> list[dict]:
    index = vocabulary().thing_dataset_id_to_contiguous_id if vocabulary else None
    return read(files.json_path(), files.image_path(), index=index, remedy=files.how(), **options)


def _field(vocabulary: Callable[[], Vocabulary], key: str):
    return getattr(vocabulary(), key)


_registered: dict[str, tuple] = {}  # entries of DATASETS.OWN by name

DETECTION, REGIONS, LVIS = ({"evaluator_type": name} for name in ("ov_coco", "regions", "lvis"))
_KINDS = {
    "captions": (read_captions, {}), "boxes": (read_boxes, DETECTION), "lvis": (read_lvis, LVIS),
    "regions": (read_regions, REGIONS), "pseudo_labels": (read_pseudo_labels, {}), "shards": (read_shards, {}),
}  # fmt: skip

# (reader, metadata, image folder, {name: json files below coco/}), the better file first: Detic's instructions and
# code name different places, and only the "oriorder" files list all 80 classes, which the evaluator needs.
_COCO = (
    (read_boxes, {}, "train2017", {
        "coco_zeroshot_train_oriorder": ["zero-shot/instances_train2017_seen_2_oriorder"],
        "coco_zeroshot_train_del": [f"zero-shot/instances_train2017_seen_2{order}" for order in ("_oriorder", "")],
        "coco_ovd_base_train": ["wusize/instances_train2017_base"],
    }),
    (read_boxes, DETECTION, "val2017", {
        "coco_generalized_zeroshot_val": ["zero-shot/instances_val2017_all_2_oriorder"],
        "coco_generalized_del_val": [f"zero-shot/instances_val2017_all_2{order}" for order in ("_oriorder", "")],
        "coco_zeroshot_val": [f"zero-shot/instances_val2017_unseen_2{order}" for order in ("_oriorder", "")],
        "coco_not_zeroshot_val": [f"zero-shot/instances_val2017_seen_2{order}" for order in ("_oriorder", "")],
        "coco_ovd_val": ["annotations/instances_val2017"],  # all 5,000 images, for CLIM's two runs
        "coco_ovd_base_val": ["wusize/instances_val2017_base"],
        "coco_ovd_novel_val": ["wusize/instances_val2017_novel"],
    }),
    (read_captions, {}, "train2017", {
        "coco_caption_train_tags": [f"{place}captions_train2017_tags_allcaps" for place in ("annotations/", "")],
        "coco_caption_train": ["annotations/captions_train2017"],  # all images, no tags
    }),
    (read_regions, REGIONS, "val2017", {"coco_val_regions": ["annotations/instances_val2017"]}),
)  # fmt: skip

_OF_65 = ("coco_zeroshot_train_del", "coco_generalized_del_val")  # VLDet's own files of them have other ids

# Pairs whose tags number the categories of their file: (name, folder of images or shards, json or index, remedy).
_PAIRS = (
    # Where Detic's scripts put Conceptual Captions 3M; CLIM's list of it has the same format.
    ("cc3m_v1_train", "cc3m/training", "cc3m/train_image_info.json", GET_CC3M),
    ("cc3m_wds_train_tags", "cc3m-wds", "cc3m-wds/index", f"{INDEX_CC3M}/index"),
    ("cc3m_wds_train", "cc3m-wds", "cc3m-wds/index_all", f"{INDEX_CC3M}/index_all --keep-untagged"),
    ("cc3m_wds_train_nouns", "cc3m-wds", "cc3m-wds/index_nouns", f"{INDEX_CC3M}/index_nouns --nouns NOUNS"),
    ("cc3m_v1_nouns_train_6250tags", "cc3m/training", "cc3m/VLDet/nouns_train_image_info_6250tags.json", MAKE_NOUNS),
    ("coco_caption_nouns_train_4764tags", "coco/train2017",
     "coco/VLDet/nouns_captions_train2017_4764tags_allcaps.json", MAKE_NOUNS),
    ("mini_ov_captions_nouns", "mini/pairs", "mini/annotations/captions_pairs_nouns.json", MAKE_MINI),
    ("mini_lvis_pairs", "mini_lvis/pairs", "mini_lvis/index", MAKE_MINI_LVIS),
    ("mini_lvis_pairs_nouns", "mini_lvis/pairs", "mini_lvis/pairs/index_nouns", MAKE_MINI_LVIS),
)  # fmt: skip
_MINI = (
    ("mini_ov_train", "train", "instances_train_base", read_boxes, {}),
    ("mini_ov_val", "val", "instances_val_all", read_boxes, DETECTION),
    ("mini_ov_captions", "pairs", "captions_pairs_tags", read_captions, {}),
    ("mini_ov_captions_cluttered", "cluttered", "captions_cluttered_tags", read_captions, {}),
    ("mini_val_regions", "val", "instances_val_all", read_regions, REGIONS),
)


def register_builtin() -> None:
    """Register every data set of this file."""
    for read, metadata, images, sets in _COCO:
        for name, json_files in sets.items():
            files = Files(f"coco/{images}", tuple(f"coco/{stem}.json" for stem in json_files), PREPARE_COCO)
            register(name, files, read, split_vocabulary if name in _OF_65 else coco_vocabulary, **metadata)
    panoptic = Files("coco/val2017", ("coco/annotations/panoptic_val2017.json",), GET_PANOPTIC)
    stuff = {"stuff_classes": list(STUFF_NAMES)}
    register("coco_panoptic_val_regions", panoptic, read_panoptic_regions, coco_vocabulary, **REGIONS, **stuff)
    for name, images, json_file, read, metadata in _MINI:
        files = Files(f"mini/{images}", (f"mini/annotations/{json_file}.json",), MAKE_MINI)
        register(name, files, read, partial(own_vocabulary, files, split=True), **metadata)
    for name, json_file, metadata in (("train", "train_norare", {}), ("val", "val", LVIS)):
        files = Files("mini_lvis", (f"mini_lvis/lvis/instances_{json_file}.json",), MAKE_MINI_LVIS)
        register(f"mini_lvis_{name}", files, read_lvis, partial(own_vocabulary, files, split=True), **metadata)
    for name, images, pairs, remedy in _PAIRS:
        register(name, Files(images, (pairs,), remedy), read_captions if pairs.endswith("json") else read_shards, None)
    for name, images in (("coco_pseudo_regions", "coco/train2017"), ("mini_pseudo_regions", "mini/pairs")):
        files = Files(images, (f"{images.split('/')[0]}/annotations/pseudo_regions.json",), PSEUDO_LABEL)
        register(name, files, read_pseudo_labels, partial(own_vocabulary, files))
    tagged = Files("cc3m/training", ("cc3m/train_image_info_tags.json",), PREPARE_LVIS)
    register("cc3m_v1_train_tags", tagged, read_captions, lvis_vocabulary)
    for name in ("lvis_v1_train", "lvis_v1_train_norare", "lvis_v1_val"):
        if name in DatasetCatalog and type(MetadataCatalog.get(name)) is Metadata:
            # Detectron2's own set, which keeps the data root of its import.
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register(name, Files("coco", (f"lvis/{name}.json",), PREPARE_LVIS), read_lvis, lvis_vocabulary, **LVIS)


register_builtin()
