"""Names decide: the detector's words, and the classes of data sets that are matched to them by name.

Row k of the class embeddings is the k-th word of the vocabulary. A set has its own order, so its indices are mapped:
those of training records here (:func:`training_records`), those of detections by the evaluators.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from clim.errors import UserError
from clim.files import nfc, read_json, resolve
from clim.text.classes import load_nouns, require_rows

from .captions import pairs_of
from .datasets import get_records, json_categories
from .records import PairRecords, listed
from .schemas import class_name

logger = logging.getLogger(__name__)


def names_file(embeddings: str | Path) -> Path:
    """Where the names of the rows of an embeddings file are: ``mine.names.json`` beside ``mine.npy``."""
    return Path(embeddings).with_suffix(".names.json")


def declared_names(cfg) -> list[str]:
    """MODEL.VOCABULARY.NAMES, else the names beside EMBEDDINGS, else the checkpoint's, else []; UserError if wrong."""
    vocabulary, count = cfg.MODEL.VOCABULARY, cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if vocabulary.NAMES or not vocabulary.EMBEDDINGS:
        return _different(vocabulary.NAMES or vocabulary.STORED, "MODEL.VOCABULARY.NAMES")
    path = names_file(resolve(vocabulary.EMBEDDINGS))
    if not path.is_file():
        return []
    remedy = "it lists the embeddings' rows: set the number, or build both with tools/build_text_embeddings.py"
    names = read_json(path, remedy=remedy, kind=list[str])
    if len(names) != count:
        raise UserError(f"{path} holds {len(names)} names, but MODEL.ROI_HEADS.NUM_CLASSES is {count}: {remedy}.")
    return _different(names, path)


def vocabulary_names(cfg) -> list[str]:
    """The detector's K words: :func:`declared_names`, else the classes of the first set that has K, else numbers.

    The sets are those of DATASETS.TRAIN, then of DATASETS.TEST. UserError if none of their files is there.
    """
    return _names_and_source(cfg)[0]


def _names_and_source(cfg) -> tuple[list[str], str]:
    """:func:`vocabulary_names`, and what gives them, "" for numbers."""
    if names := declared_names(cfg):
        return names, "MODEL.VOCABULARY"
    count, missing = cfg.MODEL.ROI_HEADS.NUM_CLASSES, []
    for key in ("TRAIN", "TEST"):
        for name in filter(DatasetCatalog.__contains__, cfg.DATASETS[key]):
            try:
                classes = set_classes(name)
            except UserError as error:
                missing.append(error)
                continue
            if classes is not None and len(classes) == count:
                return classes, f"DATASETS.{key} {name}"
    if missing:
        raise missing[0]
    return [f"class {i}" for i in range(count)], ""


def set_categories(name: str) -> dict[int, str] | None:
    """{category id: class name} of a registered set, in the order of its indices. None if nothing names its classes.

    They are in the metadata, else in the json file, whose categories Detectron2 sorts by id.
    """
    metadata = MetadataCatalog.get(name)
    classes, index = metadata.get("thing_classes"), metadata.get("thing_dataset_id_to_contiguous_id")
    json_file = metadata.get("json_file")
    listed = {}
    if json_file and (classes is None or index is None):
        path = Path(json_file, "facts.json") if Path(json_file).is_dir() else json_file  # of an index of shards
        listed = {c["id"]: c["name"] for c in json_categories(path, remedy=f"check the paths of data set {name}")}
    if classes is None:
        return listed or None
    if index is None:
        of_name, words = {word: key for key, word in listed.items()}, list(map(nfc, classes))
        # by position where a name differs: LVIS's metadata has one that its json lacks
        keys = [of_name[word] for word in words] if of_name.keys() >= set(words) else listed
        index = {key: i for i, key in zip(range(len(words)), keys, strict=False)}
    ids = {i: category for category, i in index.items()}
    return {ids.get(i, i): word for i, word in enumerate(classes)}


def set_classes(name: str) -> list[str] | None:
    """Class names of a registered set in the order of its indices; of a set of regions, stuff follows the things."""
    categories, metadata = set_categories(name), MetadataCatalog.get(name)
    stuff = metadata.get("stuff_classes") if metadata.get("evaluator_type") == "regions" else None
    return None if categories is None else [nfc(word) for word in (*categories.values(), *(stuff or ()))]


def matched(cfg, key: str, name: str) -> list[int] | None:
    """The detector's index of each class of ``name``, a set of DATASETS.``key``; None if the set names no class.

    UserError at the first word that the vocabulary lacks, or that the set lists twice.
    """
    classes = set_classes(name)
    if classes is None:
        return None
    where = f"DATASETS.{key} {name}"
    words, source = _names_and_source(cfg)
    if not source:
        remedy = "set MODEL.VOCABULARY.NAMES, or build MODEL.VOCABULARY.EMBEDDINGS anew: its rows have no names yet"
        raise UserError(f"{where} has {len(classes)} classes, but the detector {len(words)}: {remedy}.")
    file = MetadataCatalog.get(name).get("json_file")
    where += f" ({file})" if file else ""
    index = {word: i for i, word in enumerate(words)}
    for i, word in enumerate(_different(classes, where)):
        if word not in index:
            there = f"class {i + 1} is {words[i]!r}" if i < len(words) else f"class {len(words)} is the last"
            lacks = f"Class {i + 1} of {where} is {word!r}, which the detector's vocabulary ({source}) lacks"
            remedy = f"rename the class, add {word!r} to MODEL.VOCABULARY.NAMES, or choose another data set"
            raise UserError(f"{lacks}, where {there}: {remedy}.")
    return [index[word] for word in classes]


def training_records(cfg, name: str) -> list[dict]:
    """The records of a set of DATASETS.TRAIN with the detector's class indices. UserError for an index of no class."""
    indices = matched(cfg, "TRAIN", name)
    count = len(cfg.MODEL.VOCABULARY.NAMES) or cfg.MODEL.ROI_HEADS.NUM_CLASSES if indices is None else len(indices)
    same = indices in (None, list(range(count)))
    records = []
    for record in listed(get_records(name, masks=cfg.MODEL.MASK_ON), "annotations", f"DATASETS.TRAIN {name}"):
        for a in record["annotations"]:
            if not 0 <= a["category_id"] < count:
                wrong = f"a box of {record['file_name']} has class {a['category_id']}, but there are {count} classes"
                raise UserError(f"DATASETS.TRAIN {name}: {wrong}: number them from 0, as its thing_classes do.")
        if not same:  # copies: a user's function may give the same records again
            mapped = [a | {"category_id": indices[a["category_id"]]} for a in record["annotations"]]
            record = record | {"annotations": mapped}
        records.append(record)
    return records


def pair_records(cfg, name: str) -> PairRecords:
    """The records of a set of DATASETS.CAPTIONS. Where tags are classes (Detic), they are the detector's indices.

    Tags that the vocabulary lacks are left out, with a warning; UserError if it lacks all, or VLDet's rows lack one.
    """
    records, method = pairs_of(DatasetCatalog.get(name), name), cfg.MODEL.METHOD
    if method.NAME == "VLDet" and (path := method.VLDET.EMBEDDINGS):
        key, what = "MODEL.METHOD.VLDET.EMBEDDINGS", f"DATASETS.CAPTIONS {name}"
        require_rows(load_nouns(path, cfg, key=key), records.tag_count - 1, key=f"{path} ({key})", what=what)
    if method.NAME not in ("Detic", "OfficialDetic") or not method.DETIC.TAG_WEIGHT:
        return records
    classes = set_classes(name)
    words, source = _names_and_source(cfg) if classes else ([], "")
    index = {word: i for i, word in enumerate(words)}
    if records.tag_count > (count := len(classes or ()) or cfg.MODEL.ROI_HEADS.NUM_CLASSES):
        wrong = f"has tags up to {records.tag_count - 1}, but there are {count} classes"
        remedy = "number them from 0, or set MODEL.METHOD.DETIC.TAG_WEIGHT 0.0"
        raise UserError(f"DATASETS.CAPTIONS {name} {wrong}: {remedy}.")
    if not source or (indices := [index.get(word) for word in classes]) == list(range(len(classes))):
        return records
    if lacking := [word for word, i in zip(classes, indices, strict=True) if i is None]:
        what = f"{len(lacking)} of the {len(classes)} tags of DATASETS.CAPTIONS {name}"
        if len(lacking) == len(classes):
            remedy = "use pairs with tags of these classes, or set MODEL.METHOD.DETIC.TAG_WEIGHT 0.0"
            raise UserError(f"{what}, such as {lacking[0]!r}, are no classes of the detector: {remedy}.")
        logger.warning(f"{what} are no classes of the detector, such as {lacking[0]!r}: they are left out.")
    return records.changed_by(partial(with_tags, indices))


def with_tags(indices: Sequence[int | None], record: dict) -> dict:
    """The record with ``indices[tag]`` of its tags, without those that have None."""
    return record | {"tags": [indices[tag] for tag in record["tags"] if indices[tag] is not None]}


def _different(names: Iterable[str], where) -> list[str]:
    """The names in NFC. UserError for one that is listed twice, is empty or holds characters that are no text."""
    said, seen = "give each class a name of its own", []
    for place, name in enumerate(names):
        try:
            seen.append(class_name(name))
        except ValueError as error:
            raise UserError(f"Entry {place} of {where} {error}: {said}.") from error
    for name, times in Counter(seen).items():
        if times > 1:
            raise UserError(f"{where} lists the class name {name!r} {times} times: {said}.")
    return seen
