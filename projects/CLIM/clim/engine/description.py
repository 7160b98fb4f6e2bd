"""What a checkpoint says about itself: config, classes, train sets. So its file is enough to use the model."""

import yaml
from detectron2.config import CfgNode, get_cfg

from clim.checkpoints.reading import read_description
from clim.config import add_clim_config
from clim.errors import UserError
from clim.modeling.vocabulary import class_mask, vocabulary_names

# Keys that name files, folders or sets of the training. The checkpoint holds what inference needs of them.
_OF_THE_TRAINING = """
    DATASETS.OWN DATASETS.DATA MODEL.WEIGHTS MODEL.TRUST_WEIGHTS MODEL.DEVICE MODEL.VOCABULARY.NAMES
    MODEL.VOCABULARY.EMBEDDINGS MODEL.OPEN_VOCAB.BASE_CLASSES MODEL.TEXT.CACHE MODEL.IMAGE_ENCODER.PRETRAINED
    MODEL.METHOD.VLDET.EMBEDDINGS OUTPUT_DIR"""


def describe(cfg) -> dict:
    """A checkpoint's entry about itself, as :func:`clim.checkpoints.read_description` returns it."""
    names, base = vocabulary_names(cfg), None
    if cfg.MODEL.OPEN_VOCAB.BASE_CLASSES:
        base = [name for name, count in zip(names, class_mask(cfg).tolist(), strict=True) if count > 0]
    return {
        "config": cfg.dump(), "class_names": names, "base_classes": base, "train_sets": list(cfg.DATASETS.TRAIN),
        "rows": None,
    }  # fmt: skip


def merge_described(cfg: CfgNode, path: str) -> None:
    """Merge into ``cfg`` the config that the checkpoint ``path`` describes, with MODEL.WEIGHTS ``path``.

    Classes and weights come from the file itself. Paths of the training, which may be gone, get their defaults, and so
    does the device. UserError if the file has no description.
    """
    description = read_description(path)
    if description is None:
        raise UserError(
            f"{path} does not hold the config of its training (an older file, or another program's): name its config "
            "too, as --config-file or Detector(path, config=…); docs/checkpoints.md lists those of published files."
        )
    stored, defaults = CfgNode(yaml.safe_load(description["config"])), get_cfg()
    add_clim_config(defaults)
    for key in _OF_THE_TRAINING.split():
        *parents, name = key.split(".")
        node, default = stored, defaults
        for parent in parents:
            node, default = node[parent], default[parent]
        if name in default:
            node[name] = default[name]
    stored.MODEL.WEIGHTS = str(path)
    stored.MODEL.ROI_HEADS.NUM_CLASSES = len(description["rows"] or description["class_names"])
    cfg.merge_from_other_cfg(stored)
