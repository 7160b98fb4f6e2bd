"""A user's data.yaml: its sets and classes, their registration, and what they set in a config (docs/own_data.md).

The file holds ``classes``, ``novel``, ``train``, ``val`` and ``captions``; a data.yaml of Ultralytics is one too. Names
are read as they are written, so that ``10`` and ``yes`` are names.
"""

import difflib
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from clim.errors import UserError
from clim.files import read_text, resolve

from .datasets import DETECTION, LVIS, categories_of
from .formats import read_caption_files, read_caption_table, read_voc, read_yolo, voc_classes
from .readers import read_boxes, read_captions, read_lvis
from .shards import ShardRecords, read_shards
from .words import word_rule

logger = logging.getLogger(__name__)

PARTS = {"train": ("images", "boxes"), "val": ("images", "boxes"), "captions": ("images", "captions", "tags")}
KEYS = ("path", "classes", "names", "novel", *PARTS)
NOT_READ = ("nc", "test", "download", "roboflow", "channels")  # of Ultralytics and Roboflow
TAGS = ("words", "none")
_TABLES = (".tsv", ".csv", ".txt")


class OwnSet(NamedTuple):
    """A set of data.yaml."""

    name: str  # in Detectron2's catalogues
    part: str  # a key of PARTS
    images: Path  # folder of the images or of the shards
    texts: Path  # boxes or captions: a file or a folder
    kind: str  # "json", "lvis", "yolo", "voc"; "json", "table", "files", "shards" of captions
    tags: str = ""  # of captions: one of TAGS


class OwnData(NamedTuple):
    """The content of a data.yaml."""

    file: Path
    classes: list[str]  # the detector's, in its order
    novel: list[str]  # those without boxes in training
    sets: list[OwnSet]

    def names(self, part: str) -> tuple[str, ...]:
        """The names of the sets of ``part``."""
        return tuple(s.name for s in self.sets if s.part == part)

    def remedy(self, part: str) -> str:
        return f"correct {part} in {self.file}"


def read_data(path: str | os.PathLike) -> OwnData:
    """Read and check a data.yaml, absolute, relative to the working folder or below the data root. UserError for
    mistakes in it, and for folders and files that are not there.
    """
    file = resolve(path)
    try:
        # This loader makes no numbers and booleans.
        content = yaml.load(read_text(file, remedy="give a data.yaml"), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no keys: give {', '.join(KEYS)}.")
    _check_keys(content, (*KEYS, *NOT_READ), where=file)
    root = file.parent / _word(content.get("path", ""), f"path of {file}")
    root = root if root.is_dir() else resolve(content["path"])
    sets = [s for part in PARTS for s in _sets(content.get(part, []), part, root, file)]
    if not sets:
        raise UserError(f"{file} names no set: give train, val or captions.")
    if "classes" in content and "names" in content:
        raise UserError(f"{file} has classes and names, which mean the same: remove one.")
    key = "classes" if "classes" in content else "names"
    data = OwnData(file, _names(content.get(key, []), f"{key} of {file}"), [], sets)
    novel = _names(content.get("novel", []), f"novel of {file}")
    classes = data.classes or list(dict.fromkeys(_classes_of_sets(data)))
    return data._replace(classes=list(dict.fromkeys(classes + novel)), novel=novel)


def register_data(data: OwnData, *, masks: bool = False) -> None:
    """Register the sets of ``data``; sets of an earlier data.yaml with these names are replaced. UserError for a name
    that is taken, and for boxes of a class that ``data`` does not have. ``masks``: train with the masks of json files.
    """
    for own in data.sets:
        if own.name in DatasetCatalog:
            if own.name not in _registered:
                raise UserError(f"{own.name} is another data set already: give {data.file} another name.")
            DatasetCatalog.remove(own.name)
            MetadataCatalog.remove(own.name)
        describe = _describe_pairs if own.part == "captions" else _describe_boxes
        load, metadata = describe(own, data, masks=masks)
        DatasetCatalog.register(own.name, load)
        base = [name for name in data.classes if name not in data.novel] if data.novel else []
        classes = {"thing_classes": data.classes, "base_classes": base, "novel_classes": data.novel}
        MetadataCatalog.get(own.name).set(image_root=str(own.images), **classes, **metadata)
        _registered.add(own.name)


_registered: set[str] = set()


def use_own_data(cfg, *, written: Collection[str]) -> None:
    """Register the sets of DATASETS.DATA, and set the keys that follow from it, but none of ``written``."""
    data = read_data(cfg.DATASETS.DATA)
    register_data(data, masks=cfg.MODEL.MASK_ON)
    train, val, captions = map(data.names, PARTS)
    if captions and cfg.MODEL.METHOD.NAME == "VLDet" and "DATASETS.CAPTIONS" not in written:
        raise UserError(f"VLDet learns from nouns, which the captions of {data.file} have not: see docs/own_data.md.")
    split = data.novel and len(data.novel) < len(data.classes)
    values = {"DATASETS.TRAIN": train, "DATASETS.TEST": val, "DATASETS.CAPTIONS": captions}
    if data.classes:
        values |= {"MODEL.ROI_HEADS.NUM_CLASSES": len(data.classes), "MODEL.VOCABULARY.NAMES": data.classes}
        values["MODEL.OPEN_VOCAB.BASE_CLASSES"] = (train + val + captions)[0] if split else ""
    if captions and all(own.tags == "none" for own in data.sets if own.part == "captions"):
        values["MODEL.METHOD.DETIC.TAG_WEIGHT"] = 0.0  # images without tags would be examples of no class at all
    if "MODEL.VOCABULARY.EMBEDDINGS" in written:  # of these classes; names would win
        values.pop("MODEL.VOCABULARY.NAMES", None)
    cfg.merge_from_list([item for key, value in values.items() if key not in written for item in (key, value)])


def written_keys(config_file: str, overrides: Sequence) -> set[str]:
    """The keys that stand beside DATASETS.DATA or above it: in the overrides, in the YAML file, in its bases."""
    keys, file = {str(key) for key in overrides[::2]}, config_file
    while file and "DATASETS.DATA" not in keys:
        content = yaml.load(read_text(file, remedy="it is the config"), Loader=yaml.BaseLoader) or {}
        base = content.pop("_BASE_", None)
        keys |= set(_flat(content))
        file = os.path.join(os.path.dirname(file), os.path.expanduser(base)) if isinstance(base, str) else None
    return keys


def _flat(tree: Mapping, prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")


# ---- the file


def _check_keys(content: Mapping, known: Sequence[str], *, where) -> None:
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"do you mean {near[0]}?" if near else f"known keys are {', '.join(known)}."
            raise UserError(f"{where} has the unknown key {key!r}: {hint}")


def _word(value, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where} is a {'list' if isinstance(value, list) else 'mapping'}: give one word or path.")
    return value.strip()


def _names(value, where: str) -> list[str]:
    """A list of names, or Ultralytics' {0: name, 1: name, …}."""
    if isinstance(value, dict):
        if sorted(value) != sorted(map(str, range(len(value)))):
            raise UserError(f"{where} has the numbers {', '.join(value)}: they must be 0, 1, 2, …, without a gap.")
        value = [value[str(i)] for i in range(len(value))]
    if not isinstance(value, list):
        raise UserError(f"{where} is {value!r}: give a list, as [car, dog].")
    names = [_word(name, f"name {i} of {where}") for i, name in enumerate(value)]
    for i, name in enumerate(names):
        if not name or name in names[:i]:
            reason = "is empty" if not name else f"is {name!r}, like name {names.index(name)}"
            raise UserError(f"name {i} of {where} {reason}: give each class its own name.")
    return names


def _sets(value, part: str, root: Path, file: Path) -> Iterator[OwnSet]:
    """The sets of one key of the file."""
    texts = PARTS[part][1]
    for number, entry in enumerate(value if isinstance(value, list) else [value], start=1):
        where = f"{part} of {file}"
        entry = {"images": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not entry.get("images"):
            raise UserError(f"{where} must be a folder of images, or {{images: FOLDER, {texts}: FILE_OR_FOLDER}}.")
        _check_keys(entry, PARTS[part], where=where)
        entry = {key: _word(value, f"{key} in {where}") for key, value in entry.items()}
        images = _path(root, entry["images"])
        if not images.is_dir():
            raise UserError(f"images in {where} is {images}, where there is no folder: give the folder of the images.")
        if texts in entry:
            source = _path(root, entry[texts])
        else:
            source = images if part == "captions" else _labels_beside(images)
        tags = entry.get("tags", TAGS[0])
        if tags not in TAGS:
            raise UserError(f"tags in {where} is {tags!r}: choose one of {', '.join(TAGS)}.")
        kind, source = (_pairs_kind if part == "captions" else _boxes_kind)(source, images, where)
        name = f"{file.stem}_{part}" + (f"_{number}" if number > 1 else "")
        yield OwnSet(name, part, images, source, kind, tags if part == "captions" else "")


def _path(root: Path, path: str) -> Path:
    # Roboflow writes ../train/images for a folder beside the yaml.
    candidates = [root / Path(p).expanduser() for p in (path, path.removeprefix("../"))]
    return next((candidate for candidate in candidates if candidate.exists()), candidates[0])


def _labels_beside(images: Path) -> Path:
    """Ultralytics: the last folder "images" of the path becomes "labels"; without one, labels lie beside the images."""
    parts = list(images.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def _boxes_kind(boxes: Path, images: Path, where: str) -> tuple[str, Path]:
    if boxes.suffix.lower() == ".json":
        categories = categories_of(boxes, remedy=f"correct boxes in {where}")
        return "lvis" if any(c["frequency"] for c in categories) else "json", boxes
    if boxes.is_dir():
        return "voc" if next(boxes.rglob("*.xml"), None) else "yolo", boxes
    found = "which is not of these" if boxes.exists() else "where there is nothing"
    form = "a .json of COCO or LVIS, a folder of YOLO's .txt or a folder of VOC's .xml"
    raise UserError(f"boxes in {where} would be {boxes}, {found}: give {form}.")


def _pairs_kind(captions: Path, images: Path, where: str) -> tuple[str, Path]:
    if captions.is_file() and (suffix := captions.suffix.lower()) in (".json", *_TABLES):
        return "json" if suffix == ".json" else "table", captions
    if (captions / "facts.json").is_file():
        return "shards", captions
    if next(images.glob("*.tar"), None):
        index = captions if captions != images else images / "index"
        if (index / "facts.json").is_file():
            return "shards", index
        command = f"python tools/index_pairs.py shards --shards {images} --output {index} --tag-rule none"
        raise UserError(f"The shards of {where} have no index at {index}: make it with {command}")
    if captions.is_dir():
        return "files", captions
    found = "which is not of these" if captions.exists() else "where there is nothing"
    raise UserError(f"captions in {where} would be {captions}, {found}: give a .json, .tsv, .csv, .txt or a folder.")


# ---- the sets


def _classes_of_sets(data: OwnData) -> Iterator[str]:
    """The categories of the train sets; without train sets, of the val sets."""
    part = "train" if data.names("train") else "val"
    for own in data.sets:
        if own.part != part:
            continue
        if own.kind == "yolo":
            raise UserError(f"{data.file} has no names, but YOLO's boxes in {own.texts} are numbers: add names: [...].")
        if own.kind == "voc":
            yield from sorted(voc_classes(own.texts))
        else:
            yield from (category["name"] for category in categories_of(own.texts, remedy=data.remedy(part)))


def _describe_boxes(own: OwnSet, data: OwnData, *, masks: bool) -> tuple[Callable[[], list[dict]], dict]:
    """The function that loads the records, and the metadata."""
    index: dict = {name: i for i, name in enumerate(data.classes)}
    metadata, remedy = dict(DETECTION), data.remedy(own.part)
    if own.kind in ("json", "lvis"):
        read = read_lvis if masks else read_boxes
        categories = categories_of(own.texts, remedy=remedy)
        metadata = (LVIS if own.kind == "lvis" else DETECTION) | {"json_file": str(own.texts)}
        if all(c["image_count"] is not None for c in categories):
            counts = {c["name"]: c["image_count"] for c in categories}
            counts = [{"id": i, "image_count": counts.get(name, 0)} for name, i in index.items()]
            metadata["class_image_count"] = counts
        index = _match(categories, own, data)
        unused = iter(range(max(index, default=0) + 1, max(index, default=0) + 1 + len(data.classes)))
        rest = [i for i in range(len(data.classes)) if i not in index.values()]
        metadata["thing_dataset_id_to_contiguous_id"] = index | dict(zip(unused, rest, strict=False))
    else:
        read = read_voc if own.kind == "voc" else read_yolo
        numbers = {i: i for i in range(len(data.classes))}
        metadata["thing_dataset_id_to_contiguous_id"] = numbers
        index = index if own.kind == "voc" else numbers
    load = partial(read, str(own.texts), str(own.images), index=index, remedy=remedy)
    novel = {i for i, name in enumerate(data.classes) if name in data.novel}
    return partial(_without, novel, load, own.name) if own.part == "train" and novel else load, metadata


def _match(categories: Sequence[dict], own: OwnSet, data: OwnData) -> dict[int, int]:
    """{category id: class} by name. UserError for boxes of another class, and for two categories of one name."""
    index: dict[int, int] = {}
    for category in categories:
        name, number = category["name"], category["id"]
        if name not in data.classes:
            if category["boxes"]:
                near = difflib.get_close_matches(name, data.classes, n=1)
                hint = f" (near it: {near[0]})" if near else ""
                said = f"{own.texts} has {category['boxes']} boxes of {name!r}, which is no class of {data.file}{hint}"
                raise UserError(f"{said}: add it to the classes, or rename it.")
            continue
        if data.classes.index(name) in index.values():
            raise UserError(f"{own.texts} has two categories {name!r}: give each its own name.")
        index[number] = data.classes.index(name)
    return index


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


def _describe_pairs(own: OwnSet, data: OwnData, *, masks: bool) -> tuple[Callable[[], Sequence[dict]], dict]:
    """The function that loads the records, and the metadata."""
    read = {"json": read_captions, "table": read_caption_table, "files": read_caption_files, "shards": read_shards}
    remedy = data.remedy("captions")
    table = {}
    if own.kind in ("json", "shards"):
        file = own.texts if own.kind == "json" else own.texts / "facts.json"
        categories = enumerate(categories_of(file, remedy=remedy, optional=True))
        table = {i: data.classes.index(c["name"]) for i, c in categories if c["name"] in data.classes}
    find = word_rule({i: (name,) for i, name in enumerate(data.classes)})
    change = partial(_retag, table, find) if own.tags == "words" else _untagged
    load = partial(read[own.kind], str(own.texts), str(own.images), remedy=remedy)
    return partial(_changed, load, change, own.name), {}


def _retag(table: Mapping[int, int], find: Callable[[Sequence[str]], list[int]], record: dict) -> dict:
    """The record with its file's tags, by ``table`` the detector's classes; without any, with what ``find`` finds."""
    tags = [table[tag] for tag in record["tags"] if tag in table]
    return record | {"tags": tags or find(record["captions"])}


def _untagged(record: dict) -> dict:
    return record | {"tags": []}


def _changed(load: Callable[[], Sequence[dict]], change: Callable[[dict], dict], name: str) -> Sequence[dict]:
    records = load()
    if isinstance(records, ShardRecords):
        return records.changed_by(change)
    records = [change(record) for record in records]
    tagged = sum(bool(record["tags"]) for record in records)
    hint = "" if tagged or change is _untagged else ": set tags: none, so that there is no loss for tags"
    logger.log(logging.WARNING if hint else logging.INFO, f"{name}: {tagged} of {len(records)} images have tags{hint}")
    return records
