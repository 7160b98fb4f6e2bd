"""A user's data.yaml (docs/own_data.md): its classes and sets, these in Detectron2's catalogues, and what they set.

Its keys are ``classes``, ``novel``, ``train``, ``val`` and ``captions``. A data.yaml of Ultralytics is one too.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from clim.config_files import CONTROL, merge, override_entries, read_yaml, shown
from clim.errors import UserError, near
from clim.files import nfc, resolve
from clim.sources import files_below

from .captions import read_captions
from .datasets import DETECTION, LVIS, json_categories
from .formats import read_caption_files, read_caption_table, read_voc, read_yolo, voc_classes
from .readers import read_boxes, read_lvis
from .records import PairRecords
from .shards import read_shards
from .words import word_rule

logger = logging.getLogger(__name__)

PARTS = {"train": ("images", "boxes"), "val": ("images", "boxes"), "captions": ("images", "captions", "tags")}
KEYS = ("path", "classes", "names", "novel", *PARTS)
NOT_READ = ("nc", "test", "download", "roboflow", "channels")  # of Ultralytics and Roboflow
TAGS = ("words", "none")
_BOXES = "a .json of COCO or LVIS, a folder of YOLO's .txt or a folder of VOC's .xml"
_PAIRS = "a .json, .tsv, .csv or .txt, a folder of .txt, or the index of tar shards"
READERS = {
    "COCO": read_boxes, "LVIS": read_boxes, "YOLO": read_yolo, "VOC": read_voc,
    "json": read_captions, "table": read_caption_table, "files": read_caption_files, "shards": read_shards,
}  # fmt: skip
_registered: set[str] = set()
LOOKED_AT = 10_000  # pairs of a set whose tags are counted, because each costs microseconds


class OwnSet(NamedTuple):
    """A set of data.yaml."""

    name: str  # in Detectron2's catalogues
    part: str  # a key of PARTS
    images: Path  # folder of the images or of the shards
    texts: Path  # file or folder of the boxes or captions
    kind: str  # of boxes "COCO", "LVIS", "YOLO" or "VOC"; of captions "json", "table", "files" or "shards"
    tags: str  # of captions: one of TAGS
    remedy: str  # which line of data.yaml to correct


class OwnData(NamedTuple):
    """The content of a data.yaml."""

    file: Path
    classes: list[str]  # the detector's, in its order
    novel: list[str]  # those without boxes in training
    sets: list[OwnSet]

    def names(self, part: str) -> tuple[str, ...]:
        """The names of the sets of ``part``."""
        return tuple(own.name for own in self.sets if own.part == part)


def read_data(data: str | os.PathLike) -> OwnData:
    """Read a data.yaml, absolute, relative to the working folder or below the data root.

    UserError for mistakes in it, and for files and folders that are not there.
    """
    file = resolve(data)
    content = read_yaml(file, remedy="name a data.yaml in UTF-8", words=True)
    if not isinstance(content, dict):
        raise UserError(f"{file} has no keys: give {', '.join(KEYS)}.")
    _check_keys(content, (*KEYS, *NOT_READ), where=str(file))
    content = {key: value for key, value in content.items() if value not in ("", "~", "null")}
    if "classes" in content and "names" in content:
        raise UserError(f"{file} has classes and names, which mean the same: remove one of them.")
    path = _word(content.get("path", ""), f"path of {file}")
    root = file.parent / path if (file.parent / path).is_dir() else resolve(path)
    sets = [own for part in PARTS for own in _sets(content.get(part, []), part, root, file)]
    if not sets:
        raise UserError(f"{file} names no set: give train, val or captions.")
    key = "names" if "names" in content else "classes"
    classes, novel = (_names(content.get(k, []), f"{k} of {file}") for k in (key, "novel"))
    classes = classes or _classes_of(sets, file)
    if not classes and any(own.part != "captions" for own in sets):
        raise UserError(f"{file} has no classes, and its boxes name none: add classes: [...].")
    if "novel" not in content:
        _warn_of_splits(sets, file)
    return OwnData(file, list(dict.fromkeys(classes + novel)), novel, sets)


def _warn_of_splits(sets: Sequence[OwnSet], file: Path) -> None:
    """Warn of the first class that a json declares novel, because this file alone decides. LVIS's "r" is a count."""
    for own in (own for own in sets if own.kind in ("COCO", "LVIS")):
        listed = json_categories(own.texts, remedy=own.remedy)
        for name in (c["name"] for c in listed if c["split"] == "novel" and c["frequency"] != "r"):
            effect = f"but {file} has no novel:, so it counts as a class with boxes"
            said = f'{own.texts} has "split": "novel" at {name!r}, {effect}'
            logger.warning(f"{said}: add novel: [{name}, …] to it, or novel: [] if that is right.")
            return


def _check_keys(content: Mapping, known: Sequence[str], *, where: str) -> None:
    for key in content:
        if key not in known:
            hint = near(key, known) or f": known keys are {', '.join(known)}."
            raise UserError(f"{where} has the unknown key {shown(key)}{hint}")


def _word(value, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where} is a {'list' if isinstance(value, list) else 'mapping'}: give one word or path.")
    if CONTROL.search(value):
        raise UserError(f"{where} is {shown(value)}, which has a line break or another control character: remove it.")
    return value.strip()


def _names(value, where: str) -> list[str]:
    """A list of names, or Ultralytics' {0: name, 1: name, …}."""
    if isinstance(value, dict):
        if set(value) != set(map(str, range(len(value)))):
            raise UserError(f"{where} has the numbers {shown(list(value))}: they must be 0, 1, 2, …")
        value = [value[str(i)] for i in range(len(value))]
    if not isinstance(value, list):
        raise UserError(f"{where} is {shown(value)}: give a list, as [car, dog].")
    names: dict[str, int] = {}
    for i, word in enumerate(value):
        name = nfc(_word(word, f"name {i} of {where}"))
        if not name or names.setdefault(name, i) < i:
            reason = f"is {shown(name)}, like name {names[name]}" if name else "is empty"
            raise UserError(f"name {i} of {where} {reason}: give each class its own name.")
    return list(names)


def _sets(value, part: str, root: Path, file: Path) -> Iterator[OwnSet]:
    """The sets of one key of the file."""
    where, texts = f"{part} of {file}", PARTS[part][1]
    for number, entry in enumerate(value if isinstance(value, list) else [value], start=1):
        entry = {"images": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not entry.get("images"):
            raise UserError(f"{where} must be a folder of images, or {{images: FOLDER, {texts}: FILE_OR_FOLDER}}.")
        _check_keys(entry, PARTS[part], where=where)
        entry = {key: _word(word, f"{key} in {where}") for key, word in entry.items()}
        images = _path(root, entry["images"])
        if images.is_file():
            raise UserError(f"images in {where}: {images} is a file. Lists of images are not read: give their folder.")
        if not images.is_dir():
            raise UserError(f"images in {where}: there is no folder {images}.")
        source = _path(root, entry[texts]) if entry.get(texts) else None
        if part == "captions":
            kind, source = _pairs(source or images, images, where)
        else:
            source = source or _labels_beside(images)
            kind = _boxes(source, where)
        tags = entry.get("tags", TAGS[0])
        if tags not in TAGS:
            raise UserError(f"tags in {where} is {tags!r}: choose one of {', '.join(TAGS)}.")
        name = f"{file.stem}_{part}" + (f"_{number}" if number > 1 else "")
        yield OwnSet(name, part, images, source, kind, tags, f"correct {where}")


def _path(root: Path, path: str) -> Path:
    """``path`` below ``root``. Roboflow writes ../train/images for a folder beside the yaml."""
    places = [root / Path(p).expanduser() for p in (path, path.removeprefix("../"))]
    return next((place for place in places if place.exists()), places[0])


def _labels_beside(images: Path) -> Path:
    """Ultralytics: the last folder "images" of the path becomes "labels"; without one, labels lie beside the images."""
    before, found, after = str(images).rpartition(f"{os.sep}images")
    return Path(f"{before}{os.sep}labels{after}") if found and after[:1] in ("", os.sep) else images


def _boxes(boxes: Path, where: str) -> str:
    """The kind of the boxes."""
    if boxes.suffix.lower() == ".json":
        listed = json_categories(boxes, remedy=f"correct {where}")
        if not listed:
            raise UserError(f"{boxes} has no categories, so its boxes have no classes: correct {where}.")
        return "LVIS" if any(category["frequency"] for category in listed) else "COCO"
    if boxes.is_dir():
        kinds = Counter(path.suffix for path in files_below(boxes))  # labelImg's classes.txt lies among .xml
        return "VOC" if kinds[".xml"] and kinds[".xml"] >= kinds[".txt"] else "YOLO"
    raise UserError(f"boxes in {where}: {boxes} is not there, or of another kind: give {_BOXES}.")


def _pairs(captions: Path, images: Path, where: str) -> tuple[str, Path]:
    """The kind of the captions, and their file or folder."""
    kind = {".json": "json", ".tsv": "table", ".csv": "table", ".txt": "table"}.get(captions.suffix.lower())
    if kind and captions.is_file():
        return kind, captions
    index = images / "index" if captions == images else captions
    if (index / "facts.json").is_file():
        return "shards", index
    if next(images.glob("*.tar"), None):
        command = f"python tools/index_pairs.py shards --shards {images} --output {index} --tag-rule none"
        raise UserError(f"captions in {where}: the shards have no index {index}: make it with {command}")
    if captions.is_dir():
        return "files", captions
    raise UserError(f"captions in {where}: {captions} is not there, or of another kind: give {_PAIRS}.")


def _classes_of(sets: Sequence[OwnSet], file: Path) -> list[str]:
    """The categories of the train sets; without train sets, of the val sets."""
    part, classes = ("train" if any(own.part == "train" for own in sets) else "val"), []
    for own in sets:
        if own.part == part and own.kind == "YOLO":
            raise UserError(f"{file} has no classes, and YOLO's boxes in {own.texts} are numbers: add classes: [...].")
        if own.part == part and own.kind == "VOC":
            classes += sorted(voc_classes(own.texts))
        elif own.part == part:
            classes += [c["name"] for c in json_categories(own.texts, remedy=own.remedy)]
    return list(dict.fromkeys(classes))


# ---- the sets in catalogues and config


def use_own_data(cfg, overrides: Sequence) -> None:
    """Register the sets of DATASETS.DATA and set the keys that follow from it; then ``overrides`` count once more."""
    data = read_data(cfg.DATASETS.DATA)
    register_data(data, masks=cfg.MODEL.MASK_ON)
    train, val, captions = map(data.names, ("train", "val", "captions"))
    keys = {"DATASETS.TRAIN": train, "DATASETS.TEST": val, "DATASETS.CAPTIONS": captions}
    if data.classes:
        split = data.novel and len(data.novel) < len(data.classes)
        keys["MODEL.OPEN_VOCAB.BASE_CLASSES"] = data.sets[0].name if split else ""
        keys["MODEL.ROI_HEADS.NUM_CLASSES"] = len(data.classes)
        if not (cfg.MODEL.VOCABULARY.EMBEDDINGS and "MODEL.VOCABULARY.EMBEDDINGS" in overrides):  # names would win
            keys["MODEL.VOCABULARY.NAMES"] = data.classes
    if captions and all(own.tags == "none" for own in data.sets if own.part == "captions"):
        keys["MODEL.METHOD.DETIC.TAG_WEIGHT"] = 0.0  # otherwise the images are examples of no class at all
    cfg.merge_from_list([item for pair in keys.items() for item in pair])
    merge(cfg, override_entries(overrides))
    if captions and cfg.MODEL.METHOD.NAME == "VLDet" and set(captions) & set(cfg.DATASETS.CAPTIONS):
        raise UserError(f"VLDet learns from tags that are nouns; those of {data.file} are classes: see docs/train.md.")


def register_data(data: OwnData, *, masks: bool = False) -> None:
    """Register the sets of ``data``; they replace those of an earlier data.yaml with the same names.

    ``masks``: jsons are read with masks. UserError for a name that is taken, and for boxes of a class that ``data``
    does not have.
    """
    novel = {i for i, name in enumerate(data.classes) if name in data.novel}
    base = [name for i, name in enumerate(data.classes) if i not in novel] if novel else []
    classes = {"thing_classes": data.classes, "base_classes": base, "novel_classes": data.novel}
    for own in data.sets:
        if own.name in DatasetCatalog and own.name not in _registered:
            raise UserError(f"{own.name} is another data set already: give {data.file} another name.")
        read = read_lvis if masks and own.kind in ("COCO", "LVIS") else READERS[own.kind]
        load = partial(read, str(own.texts), str(own.images), remedy=own.remedy)
        if own.part == "captions":
            metadata, load = {}, partial(_tagged, load, own, data)
        else:
            metadata, index = _numbering(own, data)
            load = partial(load, index=index)
            load = partial(_without, novel, load, own.name) if own.part == "train" else load
        DatasetCatalog.pop(own.name, None)
        MetadataCatalog.pop(own.name, None)
        DatasetCatalog.register(own.name, load)
        MetadataCatalog.get(own.name).set(image_root=str(own.images), **classes, **metadata)
        _registered.add(own.name)


# ---- boxes


def _numbering(own: OwnSet, data: OwnData) -> tuple[dict, dict]:
    """The metadata that number the classes, and {class in the file: index in ``data.classes``}.

    UserError for boxes of another class, and for two categories of one name.
    """
    numbers = {i: i for i in range(len(data.classes))}
    places, index = {name: i for i, name in enumerate(data.classes)}, {}
    if own.kind in ("YOLO", "VOC"):
        return DETECTION | {"thing_dataset_id_to_contiguous_id": numbers}, numbers if own.kind == "YOLO" else places
    categories = json_categories(own.texts, remedy=own.remedy)
    for category in categories:
        name = category["name"]
        if name in places:
            index[category["id"]] = places.pop(name)
        elif name in data.classes:
            raise UserError(f"{own.texts} has two categories {name!r}: give each its own name.")
        elif category["boxes"]:
            said = f"{own.texts} has {category['boxes']} boxes of {name!r}, which is no class of {data.file}"
            raise UserError(f"{said}: add it to the classes, or rename it{near(name, data.classes) or '.'}")
    free = max((*index, 0)) + 1  # classes that the json lacks get other ids
    ids = index | {free + i: i for i in sorted(places.values())}
    metadata = (LVIS if own.kind == "LVIS" else DETECTION) | {"json_file": str(own.texts)}
    if all(category["image_count"] is not None for category in categories):  # for the federated loss
        counts = {category["name"]: category["image_count"] for category in categories}
        counts = [{"id": i, "image_count": counts.get(name, 0)} for i, name in enumerate(data.classes)]
        metadata["class_image_count"] = counts
    return metadata | {"thing_dataset_id_to_contiguous_id": ids}, index


def _without(novel: Collection[int], load: Callable[[], list[dict]], name: str) -> list[dict]:
    """The records without boxes of novel classes."""
    records, count = load(), 0
    for record in records:
        kept = [a for a in record["annotations"] if a["category_id"] not in novel]
        count += len(record["annotations"]) - len(kept)
        record["annotations"] = kept
    if count:
        logger.warning(f"{name}: left out {count} boxes of novel classes, which are not trained")
    return records


# ---- image-text pairs


def _tagged(load: Callable[[], PairRecords], own: OwnSet, data: OwnData) -> PairRecords:
    """The records with classes as tags: those of their file, by name; without any, those that the captions name."""
    classes, listed = {name: i for i, name in enumerate(data.classes) if own.tags == "words"}, ()
    if own.kind in ("json", "shards"):
        file = own.texts if own.kind == "json" else own.texts / "facts.json"
        listed = json_categories(file, remedy=own.remedy)
    table = {i: classes[c["name"]] for i, c in enumerate(listed) if c["name"] in classes}
    tag = partial(_tag, table, word_rule({i: (name,) for name, i in classes.items()}))  # workers receive it
    records = load().changed_by(tag)
    looked = range(0, len(records), -(-len(records) // LOOKED_AT))
    count = sum(bool(records[i]["tags"]) for i in looked)
    hint = "" if count or not classes else ": set tags: none, so that there is no loss for tags"
    log = logger.warning if hint else logger.info
    log(f"{own.name}: {count} of {len(looked)} images have tags{hint}")
    return records


def _tag(table: Mapping[int, int], find: Callable[[Sequence[str]], list[int]], record: dict) -> dict:
    return record | {"tags": [table[tag] for tag in record["tags"] if tag in table] or find(record["captions"])}
