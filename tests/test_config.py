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
from clim.modeling.box_predictors import BOX_PREDICTOR_REGISTRY
from tests.configs import leaves

ROOT = Path(__file__).parents[1]
FILES = sorted(str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.yaml"))
ROWS = [file for file in FILES if "Base" not in file]


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


def depth(path):
    """Number of files that a reader of this one opens."""
    bases = yaml.safe_load(path.read_text()).get("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    return 1 + max((depth(path.parent / base) for base in bases), default=0)


@pytest.mark.parametrize("file", FILES)
def test_every_file_loads_and_names_what_exists(file):
    cfg = load_config(str(ROOT / "configs" / file), [])
    assert cfg.is_frozen() and ("Base" in file or cfg.OUTPUT_DIR.startswith("output/"))
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    assert cfg.MODEL.PROPOSAL_GENERATOR.NAME in PROPOSAL_GENERATOR_REGISTRY
    assert cfg.MODEL.ROI_HEADS.NAME in ROI_HEADS_REGISTRY
    assert cfg.MODEL.ROI_BOX_HEAD.PREDICTOR in BOX_PREDICTOR_REGISTRY
    assert not cfg.MODEL.METHOD.NAME or cfg.MODEL.METHOD.NAME in METHOD_REGISTRY
    assert depth(ROOT / "configs" / file) <= 4


@pytest.fixture(scope="module")
def folders(load_cfg):
    """OUTPUT_DIR of every file."""
    return [load_cfg(file).OUTPUT_DIR for file in FILES]


@pytest.mark.parametrize("file", FILES)
def test_a_row_has_its_own_folder_pairs_for_its_method_and_the_weights_of_another_row(file, folders, load_cfg):
    cfg = load_cfg(file)
    if file in ROWS:
        pairs = cfg.DATALOADER.CAPTIONS_PER_GPU + cfg.DATALOADER.MOSAICS_PER_GPU
        regions = cfg.DATALOADER.REGIONS_PER_GPU
        assert (pairs + regions > 0) == bool(cfg.MODEL.METHOD.NAME)
        assert (not pairs or cfg.DATASETS.CAPTIONS) and (not regions or cfg.DATASETS.REGIONS)
        assert folders.count(cfg.OUTPUT_DIR) == 1
    starts = {"model_final.pth": cfg.MODEL.WEIGHTS, "clip.pt": cfg.MODEL.IMAGE_ENCODER.PRETRAINED}
    for name, path in starts.items():
        if path.startswith("output/"):
            assert Path(path).name == name and str(Path(path).parent) in folders


SIZES = {"DATALOADER.CAPTIONS_PER_GPU", "DATALOADER.MOSAICS_PER_GPU", "OUTPUT_DIR"}
START = {"MODEL.WEIGHTS", "OUTPUT_DIR"}
ENCODER = {"MODEL.IMAGE_ENCODER.PRETRAINED", "OUTPUT_DIR"}
SHARDS = {"DATASETS.CAPTIONS", "OUTPUT_DIR"}
TAGS = {"MODEL.METHOD.DETIC.TAG_WEIGHT", "OUTPUT_DIR"}
PRETRAIN = {"MODEL.METHOD.GROUNDING.CONTRAST_GROUP", "INPUT.MOSAIC.SIZE", "INPUT.MOSAIC.FILLING"}


@pytest.mark.parametrize(
    "file, base, difference",
    [
        ("Detic_CLIM_C4.yaml", "Detic_C4.yaml", SIZES),
        ("Detic_CLIM_C4_caption.yaml", "Detic_C4_caption.yaml", SIZES),
        ("Detic_CLIM_C4_caption.yaml", "Detic_CLIM_C4.yaml", TAGS),
        ("VLDet_CLIM_C4.yaml", "VLDet_C4.yaml", SIZES),
        ("lvis/VLDet_CLIM_C2.yaml", "lvis/VLDet_C2.yaml", SIZES),
        ("BARON_CLIM_C4.yaml", "BARON_C4.yaml", SIZES),
        ("OVRCNN_CLIM_pretrain.yaml", "OVRCNN_pretrain.yaml", SIZES | PRETRAIN),
        ("OVRCNN_CLIM_C4.yaml", "OVRCNN_C4.yaml", START),
        ("FVLM_ViTB16_CLIM_COCO.yaml", "FVLM_ViTB16_CLIP_COCO.yaml", ENCODER),
        ("FVLM_ViTB16_RegionCLIP_COCO.yaml", "FVLM_ViTB16_CLIP_COCO.yaml", ENCODER),
        ("lvis/FVLM_ViTB16_CLIM_LVIS.yaml", "lvis/FVLM_ViTB16_CLIP_LVIS.yaml", ENCODER),
        ("lvis/FVLM_RN50x64_CLIM_LVIS.yaml", "lvis/FVLM_RN50x64_CLIP_LVIS.yaml", ENCODER),
        ("lvis/CLIP_CLIM_ViTB16_CC3M.yaml", "CLIP_CLIM_ViTB16_CC3M.yaml", SHARDS),
        ("lvis/CLIP_CLIM_RN50x64_CC3M.yaml", "CLIP_CLIM_RN50x64_CC3M.yaml", SHARDS),
        ("mini/detic_clim.yaml", "mini/detic.yaml", SIZES),
        ("mini/baron_clim.yaml", "mini/baron.yaml", SIZES),
        ("mini/ovrcnn_clim.yaml", "mini/ovrcnn.yaml", START),
    ],
)
def test_clim_is_a_config_change(file, base, difference, load_cfg):
    """Rows that a table compares differ in nothing else."""
    assert changed(load_cfg(file), load_cfg(base)) == difference


# What rows take from defaults: Detectron2's, and for CLIM's Detic ours, which are the release's (detic §2).
HEADS = """
MODEL:
  RPN: {BATCH_SIZE_PER_IMAGE: 256, POSITIVE_FRACTION: 0.5, IOU_THRESHOLDS: [0.3, 0.7]}
  ROI_HEADS: {BATCH_SIZE_PER_IMAGE: 512, IOU_THRESHOLDS: [0.5]}
  ROI_BOX_HEAD: {BBOX_REG_WEIGHTS: [10, 10, 5, 5]}
"""
C4 = """
INPUT: {FORMAT: BGR, MAX_SIZE_TRAIN: 1333, MIN_SIZE_TEST: 800, MAX_SIZE_TEST: 1333}
MODEL:
  BACKBONE: {FREEZE_AT: 2}
  RESNETS: {NORM: FrozenBN, DEPTH: 50, STRIDE_IN_1X1: true, OUT_FEATURES: [res4]}
  ANCHOR_GENERATOR: {SIZES: [[32, 64, 128, 256, 512]], ASPECT_RATIOS: [[0.5, 1.0, 2.0]]}
  RPN: {NMS_THRESH: 0.7}
  ROI_HEADS: {SCORE_THRESH_TEST: 0.05, NMS_THRESH_TEST: 0.5, PROPOSAL_APPEND_GT: true}
  ROI_BOX_HEAD: {POOLER_RESOLUTION: 14, POOLER_SAMPLING_RATIO: 0}
SOLVER: {MOMENTUM: 0.9, WEIGHT_DECAY: 0.0001, GAMMA: 0.1, CLIP_GRADIENTS: {ENABLED: false}}
"""
FVLM = """
MODEL:
  RPN: {SMOOTH_L1_BETA: 0.0}
  ROI_HEADS: {POSITIVE_FRACTION: 0.25}
  ROI_BOX_HEAD: {POOLER_TYPE: ROIAlignV2, SMOOTH_L1_BETA: 0.0}
  FPN: {OUT_CHANNELS: 256}
"""
MASKS = """
MODEL:
  ROI_MASK_HEAD: {POOLER_RESOLUTION: 14, POOLER_SAMPLING_RATIO: 0, POOLER_TYPE: ROIAlignV2, CONV_DIM: 256}
  FVLM: {DETECTOR_TEMPERATURE: 50.0}
INPUT: {MASK_FORMAT: polygon, LSJ: {SCALE: [0.1, 2.0]}}
DATALOADER: {FILTER_EMPTY_ANNOTATIONS: true}
"""
FVLM_VIT = """
MODEL: {FPN: {STACKS: 7}, RPN: {NORM: ""}}
SOLVER: {STEPS: [], BETAS: [0.9, 0.999], GAMMA: 0.1, WARMUP_ITERS: 250, WARMUP_FACTOR: 0.001}
"""
FVLM_RESNET = """
MODEL: {IMAGE_ENCODER: {REGIONS: v2, UNLOCKED_BLOCKS: 0}}
SOLVER: {MOMENTUM: 0.9, GAMMA: 0.1, WARMUP_ITERS: 250, CLIP_GLOBAL_NORM: 1.0, EPOCHS: 0.0}
"""
RELEASED = """
MODEL:
  OPEN_VOCAB: {TEMPERATURE: 25.0}
  METHOD:
    DETIC: {TEMPERATURE: 25.0, BIAS: [-20.0], CAPTION_WEIGHT: 0.1, CAPTION_BASE_REGIONS: 4, CAPTION_NEGATIVES: queue,
            NEGATIVE_WEIGHT: 0.125, QUEUE_LENGTH: 256, GROUPS: 4, TAG_TARGET: multi_hot, TAG_MIN_IOF: 0.3,
            TAG_TOPK: 128}
INPUT:
  MOSAIC: {GRIDS: [2, 3, 4], SIZE: 800, FLIP: 0.5, FILLING: fit, PAD_VALUE: 114, PARTNERS: random}
  CAPTION: {SHORT_SIDE: 400, LONG_SIDE: 667}
"""
VLDET = """
MODEL:
  OPEN_VOCAB: {TEMPERATURE: 50.0, TRAIN_BIAS: []}
  METHOD:
    VLDET: {TEMPERATURE: 50.0, CAPTION_WEIGHT: 0.1, NOUN_WEIGHT: 0.01, NOUN_LOSS: contrastive, PROPOSALS: 32}
"""
C4_ROWS = ["BoxSup_C4.yaml", "Detic_CLIM_C4.yaml", "VLDet_CLIM_C4.yaml", "BARON_CLIM_C4.yaml", "OVRCNN_C4.yaml"]
VLDET_ROWS = [file for file in ROWS if Path(file).name.startswith("VLDet")]
FVLM_ROWS = [file for file in ROWS if Path(file).name.startswith("FVLM")]
FVLM_COCO, FVLM_LVIS = ([f for f in FVLM_ROWS if f.startswith("lvis/") is lvis] for lvis in (False, True))
DETIC = ["Detic_CLIM_C4.yaml"]
EXPECTED = [
    (VLDET, VLDET_ROWS), (HEADS, C4_ROWS + FVLM_ROWS), (C4, C4_ROWS), (FVLM, FVLM_ROWS), (RELEASED, DETIC),
    (MASKS, FVLM_LVIS), (FVLM_VIT, [f for f in FVLM_LVIS if "ViT" in f]),
    (FVLM_RESNET, [f for f in FVLM_LVIS if "RN50x64" in f]),
]  # fmt: skip


@pytest.mark.parametrize("expected, file", [(expected, file) for expected, files in EXPECTED for file in files])
def test_what_rows_take_from_defaults(expected, file, load_cfg):
    cfg = load_cfg(file)
    values = dict(leaves(cfg))
    for key, value in leaves(yaml.safe_load(expected)):
        assert value == (list(values[key]) if isinstance(values[key], tuple) else values[key]), key
    if expected is RELEASED:
        assert cfg.MODEL.METHOD.DETIC.TAG_WEIGHT == 0.1 / 3
    if expected is FVLM and file in FVLM_COCO:
        epoch = -(-107_761 // (8 * cfg.DATALOADER.DETECTION_PER_GPU))  # images with a base object
        assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD) == (3 * epoch, epoch)


def test_the_data_guide_names_every_file_that_configs_read():
    texts = [(ROOT / "configs" / file).read_text() for file in FILES]
    files = {name for text in texts for name in re.findall(r'"metadata/([^"]+)"', text)}
    guide = (ROOT / "datasets/README.md").read_text()
    assert len(files) > 8 and not [name for name in files if name not in guide]
