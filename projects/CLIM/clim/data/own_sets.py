"""The sets of a data.yaml in Detectron2's catalogues, and what they set in a config. Names decide, not positions."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog

from clim.config_files import merge, override_entries
from clim.errors import UserError, near

from .captions import read_captions
from .datasets import DETECTION, LVIS, json_categories
from .formats import read_caption_files, read_caption_table, read_voc, read_yolo
from .own_data import OwnData, OwnSet, read_data
from .readers import read_boxes, read_lvis
from .records import PairRecords
from .shards import read_shards
from .words import word_rule

logger = logging.getLogger(__name__)

READERS = {
    "COCO": read_boxes, "LVIS": read_boxes, "YOLO": read_yolo, "VOC": read_voc,
    "json": read_captions, "table": read_caption_table, "files": read_caption_files, "shards": read_shards,
}  # fmt: skip
_registered: set[str] = set()
LOOKED_AT = 10_000  # pairs of a set whose tags are counted, because each costs microseconds


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
    """The metadata that number the classes, and {class in the file: index in ``data.classes``}."""
    numbers = {i: i for i in range(len(data.classes))}
    if own.kind in ("YOLO", "VOC"):
        metadata = DETECTION | {"thing_dataset_id_to_contiguous_id": numbers}
        return metadata, numbers if own.kind == "YOLO" else {name: i for i, name in enumerate(data.classes)}
    categories = json_categories(own.texts, remedy=own.remedy)
    index = _match(categories, own, data)
    unused, free = numbers.keys() - index.values(), max((*index, 0)) + 1  # classes that the json lacks get other ids
    ids = index | {free + i: i for i in sorted(unused)}
    metadata = (LVIS if own.kind == "LVIS" else DETECTION) | {"json_file": str(own.texts)}
    if all(category["image_count"] is not None for category in categories):  # for the federated loss
        counts = {category["name"]: category["image_count"] for category in categories}
        counts = [{"id": i, "image_count": counts.get(name, 0)} for i, name in enumerate(data.classes)]
        metadata["class_image_count"] = counts
    return metadata | {"thing_dataset_id_to_contiguous_id": ids}, index


def _match(categories: Sequence[Mapping], own: OwnSet, data: OwnData) -> dict[int, int]:
    """{category id: class} by name. UserError for boxes of another class, and for two categories of one name."""
    index: dict[int, int] = {}
    free = {name: i for i, name in enumerate(data.classes)}
    for category in categories:
        name = category["name"]
        if name in free:
            index[category["id"]] = free.pop(name)
        elif name in data.classes:
            raise UserError(f"{own.texts} has two categories {name!r}: give each its own name.")
        elif category["boxes"]:
            said = f"{own.texts} has {category['boxes']} boxes of {name!r}, which is no class of {data.file}"
            raise UserError(f"{said}: add it to the classes, or rename it{near(name, data.classes) or '.'}")
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
