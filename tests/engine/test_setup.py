"""From the command line to a checked config."""

import logging
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from clim.engine import load_config, setup
from clim.engine.setup import RANGES, check_datasets, check_training
from clim.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
CLIM = str(CONFIGS / "mini/detic_clim.yaml")


@pytest.mark.parametrize(
    "key, value, named",
    [
        ("MODEL.FOO", "1", "Non-existent key: MODEL.FOO"),
        ("SOLVER.BASE_LR", "fast", "SOLVER.BASE_LR"),
        ("DATASETS.TEST", "mini_ov_val", "DATASETS.TEST"),
        ("SOLVER.IMS_PER_BATCH", "8", "DATALOADER.DETECTION_PER_GPU"),
        ("INPUT.MOSAIC.GROUPS", "0", "INPUT.MOSAIC.GROUPS was renamed to MODEL.METHOD.DETIC.GROUPS"),
        ("INPUT.MOSAIC.GRIDS", "[2.5]", None),
        ("INPUT.MOSAIC.GRIDS", "['2']", None),
        ("INPUT.MOSAIC.GRIDS", "[]", None),
        ("INPUT.MOSAIC.CROP_SCALE", "[0, 1]", None),
        ("INPUT.MOSAIC.CROP_SCALE", "[1, 0.5]", None),
        ("INPUT.MOSAIC.CROP_RATIO", "[2, 1]", None),
        ("DATALOADER.ALTERNATE", "(0, 0)", None),
        ("MODEL.METHOD.BARON.FREQUENCIES", "7", None),
        ("MODEL.METHOD.BARON.RATIO", "[4.0]", None),
        ("MODEL.METHOD.GROUNDING.CONTRAST_GROUP", "1", None),
        *((key, "foo", None) for key in ("INPUT.FORMAT", "INPUT.MOSAIC.COMPOSE", "SOLVER.OPTIMIZER")),
    ],
)
def test_wrong_overrides(key, value, named):
    with pytest.raises(UserError) as caught:
        load_config(CLIM, [key, value])
    assert (named or key) in str(caught.value) and "\n" not in str(caught.value)


BELOW = {words: keys.split() for words, _, keys in RANGES if words in ("above 0", "0 or more", "between 0 and 1")}


@pytest.mark.parametrize("words, key", [(words, key) for words, keys in BELOW.items() for key in keys])
def test_numbers_out_of_range(words, key):
    number = type(reduce(getitem, key.split("."), load_config(CLIM, [])))
    for value in {"above 0": (0,), "0 or more": (-1,), "between 0 and 1": (-1, 2)}[words]:
        with pytest.raises(UserError, match=f"{key} is {number(value)}: it must be {words}"):
            load_config(CLIM, [key, number(value)])


@pytest.mark.parametrize(
    "content",
    ["MODEL: [1,\n", "just text\n", "MODEL:\n  FOO: 1\n", "INPUT: {MOSAIC: {GROUPS: 0}}\n", "_BASE_: none.yaml\n"],
)
def test_wrong_files(tmp_path, content):
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(UserError, match="x.yaml") as caught:
        load_config(str(tmp_path / "x.yaml"), [])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="missing.yaml"):
        load_config(str(tmp_path / "missing.yaml"), [])


def test_without_cuda_the_device_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", "cpu"):
        assert load_config(CLIM, ["MODEL.DEVICE", device]).MODEL.DEVICE == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load_config(CLIM, ["MODEL.DEVICE", "cuda:1"]).MODEL.DEVICE == "cuda:1"
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        load_config(CLIM, ["MODEL.DEVICE", "cpu"])


def test_setup_logs_and_keeps_the_config(tiny_mini, tiny_overrides, monkeypatch, capsys, arguments):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_mini))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = Path(tiny_overrides[-1])
    cfg = setup(arguments("--config-file", CLIM, *tiny_overrides, "MODEL.DEVICE", "cuda"))
    kept = load_config(str(output / "config.yaml"), [])
    assert yaml.safe_load(kept.dump()) == yaml.safe_load(cfg.dump())  # as text, shared lists may differ by an anchor
    log = (output / "log.txt").read_text()
    assert log.count("Running on the CPU: no CUDA device was found.") == 1
    logging.getLogger("clim.anything").info("heard")
    assert "heard" in (output / "log.txt").read_text()
    assert "heard" in capsys.readouterr().out


def test_setup_checks_training_only_where_there_is_one(tiny_mini, tiny_overrides, monkeypatch, arguments):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_mini))
    wrong = ["--config-file", CLIM, *tiny_overrides, "DATASETS.TRAIN", "('x',)", "MODEL.METHOD.NAME", ""]
    with pytest.raises(UserError, match="MODEL.METHOD.NAME"):
        setup(arguments(*wrong))
    setup(arguments("--eval-only", *wrong))


DEVICE = ("INPUT.MOSAIC.COMPOSE", "device")
NO_PAIRS = ("DATALOADER.CAPTIONS_PER_GPU", 0, "DATALOADER.MOSAICS_PER_GPU", 0)
CLIP = "mini/clip_clim.yaml"


@pytest.mark.parametrize(
    "config, overrides, named",
    [
        ("mini/detic_clim.yaml", (), None),
        ("mini/base_stage.yaml", (), None),
        ("mini/detic_clim.yaml", ("MODEL.METHOD.NAME", ""), "set MODEL.METHOD.NAME"),
        ("mini/detic_clim.yaml", NO_PAIRS, "Detic needs image-text pairs"),
        ("mini/detic_clim.yaml", ("DATALOADER.REGIONS_PER_GPU", 1), "REGIONS_PER_GPU is 1, .* OpenVocabRCNN"),
        ("mini/ovrcnn_pretrain.yaml", ("DATALOADER.DETECTION_PER_GPU", 2), "DETECTION_PER_GPU is 2, .* GridTextModel"),
        ("mini/clip_region_clip.yaml", ("DATALOADER.CAPTIONS_PER_GPU", 3), "CAPTIONS_PER_GPU is 3, .* RegionClip"),
        (CLIP, (*DEVICE, "DATALOADER.MOSAICS_PER_GPU", 0), None),
        (CLIP, (*DEVICE, "DATALOADER.MOSAICS_PER_GPU", 2), "INPUT.MOSAIC.COMPOSE"),
        ("mini/detic_clim.yaml", (*DEVICE, "DATALOADER.MOSAICS_PER_GPU", 0), "INPUT.MOSAIC.COMPOSE"),
        ("mini/ovrcnn_clim_pretrain.yaml", (*DEVICE, "DATALOADER.MOSAICS_PER_GPU", 0), "INPUT.MOSAIC.COMPOSE"),
        ("mini/detic_clim.yaml", ("INPUT.MOSAIC.SIZE", 3), "INPUT.MOSAIC.SIZE"),
        (
            "mini/detic_clim.yaml",
            ("MODEL.METHOD.DETIC.CAPTION_WEIGHT", 0.0, "MODEL.METHOD.DETIC.TAG_WEIGHT", 0.0),
            "TAG_WEIGHT are both 0",
        ),
    ],
)
def test_sources_and_what_learns_from_them_fit_each_other(tiny_cfg, config, overrides, named):
    cfg = tiny_cfg(*overrides, config=config)
    if named is None:
        return check_training(cfg)
    with pytest.raises(UserError, match=named):
        check_training(cfg)


def test_evaluation_needs_a_set_that_suits_the_model(tiny_cfg):
    with pytest.raises(UserError, match="GridTextModel cannot be evaluated"):
        check_datasets(tiny_cfg(config="mini/ovrcnn_pretrain.yaml"), training=False)
    check_datasets(tiny_cfg(config="mini/ovrcnn_pretrain.yaml"), training=True)
    with pytest.raises(UserError, match="mini_val_regions has the type regions, .* is evaluated on ov_coco"):
        check_datasets(tiny_cfg("DATASETS.TEST", "('mini_val_regions',)"), training=True)
    with pytest.raises(UserError, match="DATASETS.TEST is empty"):
        check_datasets(tiny_cfg("DATASETS.TEST", "()"), training=False)
    check_datasets(tiny_cfg("DATASETS.TEST", "()"), training=True)


def test_data_sets_that_are_not_registered(tiny_cfg):
    for key in ("TRAIN", "CAPTIONS", "TEST"):
        cfg = tiny_cfg(f"DATASETS.{key}", "('mini_ov_vall',)")
        with pytest.raises(UserError, match=rf"DATASETS.{key} names mini_ov_vall.* near it: mini_ov_val,"):
            check_datasets(cfg, training=True)
    check_datasets(tiny_cfg("DATASETS.TRAIN", "('nothing',)"), training=False)  # not read without training


def test_data_sets_of_other_classes(tiny_cfg):
    check_datasets(tiny_cfg(), training=True)
    with pytest.raises(UserError, match="coco_generalized_zeroshot_val has 80 classes, but the detector 65"):
        check_datasets(tiny_cfg("DATASETS.TEST", "('coco_generalized_zeroshot_val',)"), training=False)
    with pytest.raises(UserError, match="mini_ov_train has 65 classes, but the detector 2"):
        check_datasets(tiny_cfg("MODEL.VOCABULARY.NAMES", "['cat', 'dog']"), training=True)
    DatasetCatalog.register("own_boxes", list)
    try:
        check_datasets(tiny_cfg("DATASETS.TRAIN", "('own_boxes',)"), training=True)  # without class names
    finally:
        DatasetCatalog.remove("own_boxes")
        MetadataCatalog.remove("own_boxes")
