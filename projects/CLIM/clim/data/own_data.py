"""A user's data.yaml: its classes and its sets of boxes and of image-text pairs (docs/own_data.md).

Its keys are ``classes``, ``novel``, ``train``, ``val`` and ``captions``. A data.yaml of Ultralytics is one too.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clim.config_files import CONTROL, read_yaml, shown
from clim.errors import UserError, near
from clim.files import nfc, resolve
from clim.sources import files_below

from .datasets import json_categories
from .formats import voc_classes

logger = logging.getLogger(__name__)

PARTS = {"train": ("images", "boxes"), "val": ("images", "boxes"), "captions": ("images", "captions", "tags")}
KEYS = ("path", "classes", "names", "novel", *PARTS)
NOT_READ = ("nc", "test", "download", "roboflow", "channels")  # of Ultralytics and Roboflow
TAGS = ("words", "none")
_BOXES = "a .json of COCO or LVIS, a folder of YOLO's .txt or a folder of VOC's .xml"
_PAIRS = "a .json, .tsv, .csv or .txt, a folder of .txt, or the index of tar shards"


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
