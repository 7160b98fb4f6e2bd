"""Configs: every file loads, names what exists, and gives the values that no YAML of ours states.

A YAML states its row's own numbers; what is tested here is how files relate, and what rows take from defaults.
"""

import re
from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, ROI_HEADS_REGISTRY

from clim.config import add_clim_config
from clim.engine import load_config
from clim.methods import METHOD_REGISTRY
from clim.modeling import BOX_PREDICTOR_REGISTRY

ROOT = Path(__file__).parents[1]
FILES = sorted(str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.yaml"))
ROWS = [file for file in FILES if "Base" not in file]


def leaves(node, prefix=""):
    for key, value in node.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def changed(cfg, base):
    base = dict(leaves(base))
    return {key for key, value in leaves(cfg) if base.get(key, ...) != value}


def test_every_key_of_clim_has_a_default_and_detectron2s_are_untouched():
    plain, ours = get_cfg(), get_cfg()
    add_clim_config(ours)
    added = set(dict(leaves(ours))) - set(dict(leaves(plain)))
    assert {"MODEL.OPEN_VOCAB.TEMPERATURE", "MODEL.METHOD.DETIC.BIAS", "INPUT.MOSAIC.GRIDS"} <= added
    kept = {key: value for key, value in leaves(ours) if key not in added}
    assert kept == dict(leaves(plain))


@pytest.mark.parametrize("file", FILES)
def test_every_file_loads_and_names_what_exists(file):
    cfg = load_config(str(ROOT / "configs" / file), [])
    assert cfg.is_frozen() and ("Base" in file or cfg.OUTPUT_DIR.startswith("output/"))
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    assert cfg.MODEL.PROPOSAL_GENERATOR.NAME in PROPOSAL_GENERATOR_REGISTRY
    assert cfg.MODEL.ROI_HEADS.NAME in ROI_HEADS_REGISTRY
    assert cfg.MODEL.ROI_BOX_HEAD.PREDICTOR in BOX_PREDICTOR_REGISTRY
    assert not cfg.MODEL.METHOD.NAME or cfg.MODEL.METHOD.NAME in METHOD_REGISTRY


@pytest.mark.parametrize("file", ROWS)
def test_a_row_has_a_method_exactly_where_it_has_pairs_or_regions(file, load_cfg):
    cfg = load_cfg(file)
    pairs = cfg.DATALOADER.CAPTIONS_PER_GPU + cfg.DATALOADER.MOSAICS_PER_GPU
    regions = cfg.DATALOADER.REGIONS_PER_GPU
    assert (pairs + regions > 0) == bool(cfg.MODEL.METHOD.NAME)
    assert (not pairs or cfg.DATASETS.CAPTIONS) and (not regions or cfg.DATASETS.REGIONS)


@pytest.mark.parametrize("file", FILES)
def test_a_reader_opens_at_most_four_files(file):
    def depth(path):
        bases = yaml.safe_load(path.read_text()).get("_BASE_", [])
        bases = [bases] if isinstance(bases, str) else bases
        return 1 + max((depth(path.parent / base) for base in bases), default=0)

    assert depth(ROOT / "configs" / file) <= 4


@pytest.fixture(scope="module")
def folders(load_cfg):
    """OUTPUT_DIR of every file."""
    return [load_cfg(file).OUTPUT_DIR for file in FILES]


@pytest.mark.parametrize("file", ROWS)
def test_output_folders_are_the_rows_own(file, folders, load_cfg):
    assert folders.count(load_cfg(file).OUTPUT_DIR) == 1


@pytest.mark.parametrize("file", FILES)
def test_what_a_row_starts_from_is_what_another_row_writes(file, folders, load_cfg):
    cfg = load_cfg(file)
    starts = {"model_final.pth": cfg.MODEL.WEIGHTS, "clip.pt": cfg.MODEL.IMAGE_ENCODER.PRETRAINED}
    for name, path in starts.items():
        if path.startswith("output/"):
            assert Path(path).name == name and str(Path(path).parent) in folders


SIZES = {"DATALOADER.CAPTIONS_PER_GPU", "DATALOADER.MOSAICS_PER_GPU", "OUTPUT_DIR"}
START = {"MODEL.WEIGHTS", "OUTPUT_DIR"}
ENCODER = {"MODEL.IMAGE_ENCODER.PRETRAINED", "OUTPUT_DIR"}
TAGS = {"MODEL.METHOD.DETIC.TAG_WEIGHT", "OUTPUT_DIR"}
PRETRAIN = {"MODEL.METHOD.GROUNDING.CONTRAST_GROUP", "INPUT.MOSAIC.SIZE", "INPUT.MOSAIC.FILLING"}


@pytest.mark.parametrize(
    "file, base, difference",
    [
        ("Detic_CLIM_C4.yaml", "Detic_C4.yaml", SIZES),
        ("Detic_CLIM_C4_caption.yaml", "Detic_C4_caption.yaml", SIZES),
        ("Detic_CLIM_C4_caption.yaml", "Detic_CLIM_C4.yaml", TAGS),
        ("BARON_CLIM_C4.yaml", "BARON_C4.yaml", SIZES),
        ("OVRCNN_CLIM_pretrain.yaml", "OVRCNN_pretrain.yaml", SIZES | PRETRAIN),
        ("OVRCNN_CLIM_C4.yaml", "OVRCNN_C4.yaml", START),
        ("FVLM_ViTB16_CLIM_COCO.yaml", "FVLM_ViTB16_CLIP_COCO.yaml", ENCODER),
        ("FVLM_ViTB16_RegionCLIP_COCO.yaml", "FVLM_ViTB16_CLIP_COCO.yaml", ENCODER),
        ("mini/detic_clim.yaml", "mini/detic.yaml", SIZES),
        ("mini/baron_clim.yaml", "mini/baron.yaml", SIZES),
        ("mini/ovrcnn_clim.yaml", "mini/ovrcnn.yaml", START),
    ],
)
def test_clim_is_a_config_change(file, base, difference, load_cfg):
    """Rows that a table compares differ in nothing else."""
    assert changed(load_cfg(file), load_cfg(base)) == difference


@pytest.mark.parametrize("file", ["BoxSup_C4.yaml", "Detic_CLIM_C4.yaml", "BARON_CLIM_C4.yaml", "OVRCNN_C4.yaml"])
def test_what_the_c4_detectors_take_from_detectron2s_defaults(file, load_cfg):
    cfg = load_cfg(file)
    model, rpn, heads, head = cfg.MODEL, cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
    assert (cfg.INPUT.FORMAT, model.BACKBONE.FREEZE_AT, model.RESNETS.NORM) == ("BGR", 2, "FrozenBN")
    assert (model.RESNETS.DEPTH, model.RESNETS.STRIDE_IN_1X1, model.RESNETS.OUT_FEATURES) == (50, True, ["res4"])
    assert model.ANCHOR_GENERATOR.SIZES == [[32, 64, 128, 256, 512]]
    assert model.ANCHOR_GENERATOR.ASPECT_RATIOS == [[0.5, 1.0, 2.0]]
    assert (rpn.BATCH_SIZE_PER_IMAGE, rpn.POSITIVE_FRACTION, rpn.IOU_THRESHOLDS) == (256, 0.5, [0.3, 0.7])
    assert (rpn.NMS_THRESH, heads.BATCH_SIZE_PER_IMAGE, heads.IOU_THRESHOLDS) == (0.7, 512, [0.5])
    assert (heads.SCORE_THRESH_TEST, heads.NMS_THRESH_TEST, heads.PROPOSAL_APPEND_GT) == (0.05, 0.5, True)
    assert (head.POOLER_RESOLUTION, head.POOLER_SAMPLING_RATIO) == (14, 0)
    assert head.BBOX_REG_WEIGHTS == (10, 10, 5, 5)
    assert (cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (1333, 800, 1333)
    solver = cfg.SOLVER
    assert (solver.MOMENTUM, solver.WEIGHT_DECAY, solver.GAMMA) == (0.9, 1e-4, 0.1)
    assert not solver.CLIP_GRADIENTS.ENABLED  # it clips each parameter by itself


@pytest.mark.parametrize("file", [file for file in ROWS if file.startswith("FVLM")])
def test_what_fvlm_takes_from_detectron2s_defaults(file, load_cfg):
    cfg = load_cfg(file)
    rpn, heads, head = cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
    assert (rpn.BATCH_SIZE_PER_IMAGE, rpn.POSITIVE_FRACTION, rpn.IOU_THRESHOLDS) == (256, 0.5, [0.3, 0.7])
    assert (heads.BATCH_SIZE_PER_IMAGE, heads.POSITIVE_FRACTION, heads.IOU_THRESHOLDS) == (512, 0.25, [0.5])
    assert (head.POOLER_TYPE, head.BBOX_REG_WEIGHTS, cfg.MODEL.FPN.OUT_CHANNELS) == (
        "ROIAlignV2", (10, 10, 5, 5), 256,
    )  # fmt: skip
    assert head.SMOOTH_L1_BETA == rpn.SMOOTH_L1_BETA == 0  # L1
    epoch = -(-107_761 // (8 * cfg.DATALOADER.DETECTION_PER_GPU))  # images with a base object
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD) == (3 * epoch, epoch)


# Keys that no row of CLIM's Detic sets: the defaults are the release's (detic §2).
RELEASED = {
    "MODEL.OPEN_VOCAB.TEMPERATURE": 25.0,
    "MODEL.METHOD.DETIC.TEMPERATURE": 25.0,
    "MODEL.METHOD.DETIC.BIAS": [-20.0],
    "MODEL.METHOD.DETIC.CAPTION_WEIGHT": 0.1,
    "MODEL.METHOD.DETIC.CAPTION_BASE_REGIONS": 4,
    "MODEL.METHOD.DETIC.CAPTION_NEGATIVES": "queue",
    "MODEL.METHOD.DETIC.NEGATIVE_WEIGHT": 0.125,
    "MODEL.METHOD.DETIC.QUEUE_LENGTH": 256,
    "MODEL.METHOD.DETIC.GROUPS": 4,
    "MODEL.METHOD.DETIC.TAG_WEIGHT": 0.1 / 3,
    "MODEL.METHOD.DETIC.TAG_TARGET": "multi_hot",
    "MODEL.METHOD.DETIC.TAG_MIN_IOF": 0.3,
    "MODEL.METHOD.DETIC.TAG_TOPK": 128,
    "INPUT.MOSAIC.GRIDS": [2, 3, 4],
    "INPUT.MOSAIC.SIZE": 800,
    "INPUT.MOSAIC.FLIP": 0.5,
    "INPUT.MOSAIC.FILLING": "fit",
    "INPUT.MOSAIC.PAD_VALUE": 114,
    "INPUT.MOSAIC.PARTNERS": "random",
    "INPUT.CAPTION.SHORT_SIDE": 400,
    "INPUT.CAPTION.LONG_SIDE": 667,
}


def test_clims_defaults_are_the_releases(load_cfg):
    values = dict(leaves(load_cfg("Detic_CLIM_C4.yaml")))
    assert {key: values[key] for key in RELEASED} == RELEASED


def test_the_data_guide_names_every_file_that_configs_read():
    texts = [(ROOT / "configs" / file).read_text() for file in FILES]
    files = {name for text in texts for name in re.findall(r'"metadata/([^"]+)"', text)}
    guide = (ROOT / "datasets/README.md").read_text()
    assert len(files) > 8 and not [name for name in files if name not in guide]
