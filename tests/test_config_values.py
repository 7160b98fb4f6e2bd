"""Config values: each key of ours has a rule; a value of the wrong type or size is named with its key and file."""

import math
from contextlib import nullcontext
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from clim import Detector
from clim.checkpoints.checkpointer import build_model
from clim.config import add_clim_config
from clim.config_files import entries
from clim.config_values import CHOICES, VALUES, check_values
from clim.engine import load_config
from clim.errors import UserError

CLIM = str(Path(__file__).parents[1] / "configs/mini/detic_clim.yaml")


def keys(cfg):
    return {key for key, *_ in entries(cfg, source="")}


def test_every_key_of_clim_has_one_rule():
    plain, ours = get_cfg(), get_cfg()
    add_clim_config(ours)
    assert keys(ours) - keys(plain) <= VALUES.keys() | CHOICES.keys() <= keys(ours)
    assert not VALUES.keys() & CHOICES.keys()


@pytest.fixture(scope="module")
def defaults():
    return load_config(CLIM, [])


def replaced(cfg, key, value):
    cfg, (*sections, name) = cfg.clone(), key.split(".")
    cfg.defrost()
    reduce(getitem, sections, cfg)[name] = value
    return cfg


@pytest.mark.parametrize("value", [math.nan, -math.inf, "fast", {}, b"1", [[["a"]]], True])
def test_no_value_of_another_type_passes(value, defaults):
    for key in VALUES.keys() | CHOICES.keys():
        if type(reduce(getitem, key.split("."), defaults)) is not type(value) or isinstance(value, float | list):
            with pytest.raises(UserError, match=f"^{key}.* is .*: .* must be "):
                check_values(replaced(defaults, key, value))


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("MODEL.FOO", "1", "MODEL.FOO is no key of the config"),
        ("SOLVER.BASE_LRR", "1", "SOLVER.BASE_LRR is no key of the config: do you mean SOLVER.BASE_LR?"),
        ("MODEL.RPN", "{'NMS_THRESH': 0.5}", "it is a section"),
        ("MODEL.RPN.NMS_THRESH.X", "1", "is no key of the config"),
        ("SOLVER.BASE_LR", "fast", "is 'fast': it must be a number"),
        ("SOLVER.BASE_LR", "-0.1", "is -0.1: it must be a number, 0 or more"),
        ("SOLVER.BASE_LR", "1e400", "is inf: it must be"),
        ("SOLVER.BASE_LR", "9" * 5000, "it must be a number"),
        ("SOLVER.BASE_LR", "(" * 5000, "it must be a number"),
        ("SOLVER.BASE_LR", "{[]: 1}", "it must be a number"),
        ("SOLVER.BASE_LR", "None", "is None: it must be a number"),
        ("SOLVER.MAX_ITER", "True", "is True: it must be a whole number"),
        ("SOLVER.MAX_ITER", "0", "a whole number above 0"),
        ("SOLVER.MAX_ITER", str(10**30), "a whole number above 0"),
        ("SOLVER.STEPS", "(5, 3)", "rising whole numbers"),
        ("SOLVER.STEPS", "(3, 3)", "each once"),
        ("SOLVER.STEPS", "(0,)", "above 0"),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "WarmupMultiStepLR"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[1e-30]]", "0.001"),
        ("SOLVER.EPOCHS", "1e15", "from 0 to 1000000"),
        ("MODEL.META_ARCHITECTURE", "FVLM", "another one with MODEL.META_ARCHITECTURE FVLM"),
        ("MODEL.ROI_HEADS.NAME", "FVLMROIHeads", "another one with MODEL.META_ARCHITECTURE OpenVocabRCNN"),
        ("MODEL.ROI_HEADS.NAME", "RROIHeads", "one of EfficientNetC4ROIHeads"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "two rising sizes"),
        ("SOLVER.IMS_PER_BATCH", "8", "DATALOADER.DETECTION_PER_GPU"),
        ("SOLVER.OPTIMIZER", "ADAM", "one of ADAMW, SGD: do you mean ADAMW?"),
        ("SOLVER.WRITERS", "['csv']", "a list of some of mlflow, tensorboard, wandb"),
        ("INPUT.MOSAIC.FILLING", "fill", "one of crop, fit, jitter"),
        ("MODEL.METHOD.NAME", "Detik", 'one of "", Baron, .*: do you mean Detic?'),
        ("MODEL.ROI_BOX_HEAD.PREDICTOR", "OVRCNN", "one of .*OVRCNNOutputLayers"),
        ("MODEL.IMAGE_ENCODER.NAME", "ViT", "one of .*ClipResNet, ClipViT"),
        ("MODEL.METHOD.VLDET.NOUN_LOSS", "ot", "one of bce, contrastive, sinkhorn."),
        ("MODEL.FVLM.UPSCALING", "interpolate", "one of deconvolution, interpolation: do you mean interpolation?"),
        ("SOLVER.BASE_LR_END", "5.0", "at most SOLVER.BASE_LR"),
        ("DATASETS.TEST", "mini_ov_val", "it must be a list"),
        ("DATASETS.TRAIN", "('a', 3)", r"DATASETS.TRAIN\[1\] is 3: DATASETS.TRAIN must be texts of one"),
        ("DATASETS.OWN", "[['a', 'boxes', 'x.json']]", r"a list of \[name, kind, file, folder\]"),
        ("MODEL.ROI_HEADS.NAME", "OpenVocabRes5", "do you mean OpenVocabRes5ROIHeads?"),
        ("MODEL.PIXEL_STD", "[1.0, 0.0, 1.0]", "three numbers above 0"),
        ("MODEL.PIXEL_MEAN", "[1.0, 1.0]", "three numbers"),
        ("MODEL.KEYPOINT_ON", "True", "False, because"),
        ("MODEL.RPN.CONV_DIMS", "[0]", "whole numbers above 0, or -1"),
        ("MODEL.RPN.IOU_LABELS", "[0, 1]", "one longer than IOU_THRESHOLDS"),
        ("MODEL.RPN.IN_FEATURES", "[]", "texts, at least one"),
        ("MODEL.DEVICE", "gpu", "cpu, cuda or cuda:NUMBER"),
        ("MODEL.METHOD.BARON.RATIO", "[4.0, 0.25]", "two rising numbers above 0"),
        ("MODEL.METHOD.BARON.RATIO", "[4.0]", "two rising numbers above 0"),
        ("MODEL.METHOD.BARON.FREQUENCIES", "7", "an even number"),
        ("MODEL.METHOD.GROUNDING.CONTRAST_GROUP", "1", "1"),
        ("MODEL.METHOD.CLIP.SCALE", "200.0", r"at most MODEL.METHOD.CLIP.MAX_SCALE \(100.0\)"),
        ("MODEL.CENTERNET.SOI", "[[0, 80]]", r"as long as MODEL.CENTERNET.IN_FEATURES \(5\)"),
        ("MODEL.CENTERNET.SOI", "[[80, 0]] * 5", "it must be a list"),
        ("MODEL.CENTERNET.SOI", str([[80, 0]] * 5), "two rising numbers"),
        ("INPUT.CAPTION.SHORT_SIDE", "2000", "at most INPUT.CAPTION.LONG_SIDE"),
        ("INPUT.MOSAIC.GRIDS", "[2.5]", "whole numbers"),
        ("INPUT.MOSAIC.GRIDS", "[]", "whole numbers"),
        ("INPUT.MOSAIC.SIZE", "8", "at least 4 px"),
        ("INPUT.REGIONS.SIZE", "16", "a whole number from 32 to 20000"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16]]", r"one list, or one for each of MODEL.RPN.IN_FEATURES \(1\)"),
        ("INPUT.MOSAIC.CROP_SCALE", "[0.5, 2]", "up to 1"),
        ("INPUT.MOSAIC.GROUPS", "0", "INPUT.MOSAIC.GROUPS was renamed to MODEL.METHOD.DETIC.GROUPS"),
        ("DATALOADER.ALTERNATE", "(0, 0)", "weights above 0"),
        ("OUTPUT_DIR", "", "a folder, not /"),
        *(("OUTPUT_DIR", root, "a folder, not /") for root in ("//", "/.", "/tmp/..")),
        ("OUTPUT_DIR", "s3://bucket", "a folder, not /"),
        ("OUTPUT_DIR", "a\nb", "a folder"),
        ("MODEL.WEIGHTS", "a\udcff", "a text"),
        ("TEST.DETECTIONS_PER_IMAGE", "0", "-1 for all"),
        ("VERSION", "1", "2, because"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_one_sentence(key, value, words):
    with pytest.raises(UserError, match=words) as caught:
        load_config(CLIM, [key, value])
    assert key in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("SOLVER.BASE_LR", "1", 1.0),
        ("SOLVER.BASE_LR", 2, 2.0),
        ("SOLVER.STEPS", "[3, 5]", (3, 5)),
        ("OUTPUT_DIR", "2024", "2024"),
        ("OUTPUT_DIR", "'a b'", "a b"),
        ("MODEL.WEIGHTS", "None", ""),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[8, 16.0]]", [[8, 16.0]]),
        ("SOLVER.WEIGHT_DECAY_BIAS", "0.5", 0.5),
    ],
)
def test_values_that_mean_the_same(key, value, expected):
    found = reduce(getitem, key.split("."), load_config(CLIM, [key, value]))
    assert found == expected and type(found) is type(expected)


def test_an_override_without_a_value():
    with pytest.raises(UserError, match="The override 'SEED' has no value"):
        load_config(CLIM, ["VERSION", "2", "SEED"])


def test_heads_of_the_grounding_divide_the_dimension():
    config = str(Path(CLIM).parent / "ovrcnn_clim_pretrain.yaml")
    with pytest.raises(UserError, match=r"GROUNDING.HEADS is 7: it must be a divisor of MODEL.TEXT.DIM \(384\)"):
        load_config(config, ["MODEL.METHOD.GROUNDING.HEADS", "7"])


@pytest.mark.parametrize("more, named", [((), "set EPOCHS 0.0"), (("SOLVER.EPOCHS", "0.0"), None)])
def test_iterations_and_epochs(more, named):
    config = str(Path(CLIM).parents[1] / "lvis/FVLM_ViTB16_CLIP_LVIS.yaml")
    with pytest.raises(UserError, match=named) if named else nullcontext():
        load_config(config, ["SOLVER.MAX_ITER", "10", *more])


@pytest.mark.parametrize("part", ["RPN", "ROI_HEADS"])
def test_features_that_the_backbone_lacks(part, tiny_cfg):
    with pytest.raises(UserError, match=f"MODEL.{part}.IN_FEATURES names 'res9', but the features of .* are res4"):
        build_model(tiny_cfg(f"MODEL.{part}.IN_FEATURES", ["res9"]))


def test_parts_of_a_model_that_do_not_fit(tiny_cfg):
    """The sentence has the line of the library that finds it."""
    with pytest.raises(UserError, match=r"\(roi_heads.py: assert len\(in_features\) == 1: \).*EfficientNetC4ROIHeads"):
        build_model(tiny_cfg("MODEL.ROI_HEADS.IN_FEATURES", ["res4", "res4"]))


def test_a_config_of_a_users_own_python_is_asked(defaults):
    with pytest.raises(UserError, match="MODEL.OPEN_VOCAB.TEMPERATURE is -1.0: it must be a number above 0"):
        Detector(replaced(defaults, "MODEL.OPEN_VOCAB.TEMPERATURE", -1.0))
    with pytest.raises(UserError, match="The config has no .*add_clim_config"):
        Detector(get_cfg())
