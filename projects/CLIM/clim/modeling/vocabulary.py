"""The configured vocabulary: names or an embeddings file, which classes have boxes, which compete at test.

At test the classes are MODEL.VOCABULARY.NAMES, read by the text tower; else the rows of MODEL.VOCABULARY.EMBEDDINGS;
else those that the checkpoint holds. :func:`clim.data.names.vocabulary_names` gives the names of the rows.
"""

import logging
from operator import attrgetter
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor

from clim.data import categories
from clim.data.names import declared_names
from clim.data.schemas import CategoryInfo
from clim.errors import UserError
from clim.files import nfc, read_json, resolve
from clim.text import CLASS_FEATURES, load_embeddings, require_width

logger = logging.getLogger(__name__)

WIDTHS = {"embedding": "DIM", "hidden": "WORD_DIM", "words": "DIM"}  # features of class names: MODEL.TEXT key of width
NAMED_LISTS = {  # class lists that tools/build_text_embeddings.py knows by name
    categories.COCO_NAMES: "coco", categories.SPLIT_NAMES: "coco_65",
    categories.PANOPTIC_NAMES: "coco_panoptic", categories.LVIS_NAMES: "lvis",
}  # fmt: skip
_COMPARED = 3  # classes
_ALIKE = 0.5  # cosine; other prompts give larger ones, another layer or tower gives smaller ones
_SETS = {"ovcoco": "coco_generalized_zeroshot_val"}  # value of MODEL.OPEN_VOCAB.BASE_CLASSES: data set
_BASE, _NOVEL = categories.BASE_INDICES, categories.NOVEL_INDICES
TEST_CLASSES = {"ovcoco": _BASE + _NOVEL, "ovcoco_base": _BASE, "ovcoco_novel": _NOVEL}


def num_classes(cfg) -> int:
    """K of the configured vocabulary."""
    return len(cfg.MODEL.VOCABULARY.NAMES) or cfg.MODEL.ROI_HEADS.NUM_CLASSES


def is_configured(cfg) -> bool:
    """Whether the config gives the classes, by names or embeddings."""
    return bool(cfg.MODEL.VOCABULARY.NAMES or cfg.MODEL.VOCABULARY.EMBEDDINGS)


def needs_cosines(cfg, name: str) -> None:
    """UserError if the config names another classifier, because ``name`` has its own and would ignore it."""
    if (classifier := cfg.MODEL.OPEN_VOCAB.CLASSIFIER) != "cosine":
        raise UserError(f'MODEL.OPEN_VOCAB.CLASSIFIER is "{classifier}", but {name} has its own: set "cosine".')


def vocabulary_embeddings(cfg, encoder, *, features: str = "embedding") -> Tensor:
    """(K, D) from names, else from the embeddings file, else random rows that a checkpoint replaces.

    ``features``: a key of :data:`clim.text.CLASS_FEATURES`; rows of "words" are not normalised.
    """
    vocabulary, width_key = cfg.MODEL.VOCABULARY, WIDTHS[features]
    if vocabulary.NAMES:
        embeddings = CLASS_FEATURES[features](encoder, list(vocabulary.NAMES), vocabulary.PROMPT)
        require_width(embeddings.shape[1], cfg, what=f"MODEL.TEXT.NAME {cfg.MODEL.TEXT.NAME}", key=width_key)
        return embeddings
    expected = (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.TEXT[width_key])
    if not vocabulary.EMBEDDINGS:
        return torch.randn(expected, generator=torch.Generator().manual_seed(0))
    command = _command(cfg, features)
    embeddings = load_embeddings(vocabulary.EMBEDDINGS, unit=features != "words", made_by=command)
    file = resolve(vocabulary.EMBEDDINGS)
    if tuple(embeddings.shape) != expected:
        remedy = f"set MODEL.ROI_HEADS.NUM_CLASSES and MODEL.TEXT.{width_key}, or name another file"
        raise UserError(f"{file} holds {tuple(embeddings.shape)} embeddings, but the config has {expected}: {remedy}.")
    if features == "words" and (embeddings.norm(dim=1) - 1).abs().max() < 1e-3:
        remedy = f"build means of BERT's word embeddings with `{command} --output FILE`"
        raise UserError(f"{file} holds unit vectors, such as sentence embeddings, not OV-RCNN's features: {remedy}.")
    if features == "hidden":  # then the tower is loaded anyway, because it reads pseudo words
        _warn_of_other_features(cfg, embeddings, encoder)
    return embeddings


def _warn_of_other_features(cfg, embeddings: Tensor, encoder) -> None:
    """Warn if the first rows of the vocabulary's file differ from the tower's features of these class names."""
    sets = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    of_sets = (MetadataCatalog.get(name).get("thing_classes") for name in sets)
    names = declared_names(cfg) or next(filter(None, of_sets), ())
    if len(names) != len(embeddings):
        return
    made = CLASS_FEATURES["hidden"](encoder, list(names[:_COMPARED]), cfg.MODEL.VOCABULARY.PROMPT).cpu()
    if made.shape[1] != embeddings.shape[1] or (made * embeddings[:_COMPARED]).sum(1).min() < _ALIKE:
        logger.warning(
            f"MODEL.VOCABULARY.EMBEDDINGS {cfg.MODEL.VOCABULARY.EMBEDDINGS} holds other features of {names[0]!r} than "
            f"the last layer of MODEL.TEXT.NAME, which regions need: `{_command(cfg, 'hidden')} --output FILE`."
        )


def _command(cfg, features: str) -> str:
    """The command that builds the embeddings of the configured data set's classes, without its output."""
    classes, text = cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.TEXT
    sets = (MetadataCatalog.get(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    there = (s for s in sets if Path(s.get("json_file", "")).is_file())
    lists = {len(names): word for names, word in NAMED_LISTS.items()}
    lists |= {len(s.thing_classes): s.json_file for s in there if tuple(s.thing_classes) not in NAMED_LISTS}
    dataset = lists.get(classes, f"JSON_OF_{classes}_CATEGORIES")
    options = f"--prompt {cfg.MODEL.VOCABULARY.PROMPT} --tower {text.NAME} --pretrained '{text.PRETRAINED}'"
    return f"python tools/build_text_embeddings.py classes --dataset {dataset} --features {features} {options}"


def class_mask(cfg) -> Tensor:
    """(K,) positive for classes that have box annotations, 0 for the others (novel and unused), by their names.

    All are 1 where the config gives names and none is a base class. Unknown names are rows of BASE_CLASSES in order.
    """
    base, count = cfg.MODEL.OPEN_VOCAB.BASE_CLASSES, num_classes(cfg)
    if not base:
        return torch.ones(count)
    names, mask = _base_classes(base)
    if not mask.any():
        remedy = 'give its categories a "split", or set "" if all classes have boxes'
        raise UserError(f"MODEL.OPEN_VOCAB.BASE_CLASSES {base} has no base class: {remedy}.")
    words = declared_names(cfg)
    if words and names:
        weight = dict(zip(names, mask.tolist(), strict=True))
        mask = torch.tensor([weight.get(word, 0.0) for word in words])
        return mask if mask.any() else torch.ones(count)
    if len(mask) == count:
        return mask
    if cfg.MODEL.VOCABULARY.NAMES:  # the user's own names
        return torch.ones(count)
    raise UserError(
        f"MODEL.OPEN_VOCAB.BASE_CLASSES {base} has {len(mask)} classes, but MODEL.ROI_HEADS.NUM_CLASSES is {count}."
    )


def _base_classes(base: str) -> tuple[list[str], Tensor]:
    """Names of the classes of MODEL.OPEN_VOCAB.BASE_CLASSES, [] if they have none, and which have boxes."""
    if base in (*_SETS, *DatasetCatalog):
        metadata = MetadataCatalog.get(_SETS.get(base, base))
        base_classes, classes = set(metadata.base_classes), metadata.thing_classes  # read once: LVIS's takes 10 ms
        return list(map(nfc, classes)), torch.tensor([float(name in base_classes) for name in classes])
    remedy = 'a cat_info json of datasets/prepare_ov{coco,lvis}.py, a data set with base classes, or "ovcoco"'
    remedy = f"MODEL.OPEN_VOCAB.BASE_CLASSES takes {remedy}."
    info = sorted(read_json(resolve(base), remedy=remedy, kind=list[CategoryInfo]), key=attrgetter("id"))
    if len({c.id for c in info}) < len(info):
        raise UserError(f"{resolve(base)} has two classes of one id: {remedy}")
    # Square roots of image counts, as official Detic's freq_weight; a class without images is masked.
    mask = torch.tensor([float(c.image_count) for c in info]).sqrt()
    return [nfc(c.name) for c in info] if all(c.name for c in info) else [], mask


def competing_classes(cfg) -> Tensor:
    """(K,) bool, the classes of MODEL.OVRCNN.TEST_CLASSES; of configured names, all but COCO's other classes.

    All where that is "", or where none would be left.
    """
    name, count = cfg.MODEL.OVRCNN.TEST_CLASSES, num_classes(cfg)
    if not name:
        return torch.ones(count, dtype=torch.bool)
    words = declared_names(cfg)
    if name not in TEST_CLASSES or (not words and count != len(categories.COCO_NAMES)):
        remedy = f'choose one of {", ".join(TEST_CLASSES)} for COCO\'s 80 classes, else ""'
        raise UserError(f'MODEL.OVRCNN.TEST_CLASSES is "{name}", with {count} classes: {remedy}.')
    others = set(categories.COCO_NAMES) - {categories.COCO_NAMES[i] for i in TEST_CLASSES[name]}
    competes = torch.tensor([word not in others for word in words or categories.COCO_NAMES])
    return competes if competes.any() else torch.ones_like(competes)
