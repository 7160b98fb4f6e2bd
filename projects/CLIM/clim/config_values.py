"""What each config value must be: one table, which training, evaluation and prediction ask.

It has the keys of config.py, and Detectron2's keys that CLIM reads or that would be ignored without a word.
"""

import os
import re
from collections.abc import Iterator, Mapping
from functools import reduce
from itertools import chain
from operator import getitem
from types import MappingProxyType
from typing import Annotated, Literal

import msgspec
from detectron2 import modeling
from detectron2.config import get_cfg
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY
from msgspec import Meta

from clim.config import add_clim_config
from clim.config_files import CONTROL, entries, shown
from clim.data.jittering import STYLES
from clim.errors import UserError, near
from clim.evaluation.ov_coco import PROTOCOLS
from clim.losses import GLOBAL_METRICS, LOCAL_METRICS
from clim.methods import METHOD_REGISTRY
from clim.methods.vldet import MATCHING
from clim.modeling.backbones.encoder import IMAGE_ENCODER_REGISTRY
from clim.modeling.backbones.fpn import UPSCALING
from clim.modeling.box_predictors import BOX_PREDICTOR_REGISTRY
from clim.modeling.classifier import CLASSIFIERS
from clim.modeling.vocabulary import TEST_CLASSES
from clim.text import PROMPTS

_MOST = 1e15  # what float32 computes with; beyond, and for nan, there is no result
_Number = Annotated[float, Meta(ge=-_MOST, le=_MOST)]
_NotNegative = Annotated[float, Meta(ge=0, le=_MOST)]
_Above = Annotated[float, Meta(gt=0, le=_MOST)]
_Part, _AbovePart = Annotated[float, Meta(ge=0, le=1)], Annotated[float, Meta(gt=0, le=1)]
_Side = Annotated[float, Meta(ge=1e-3, le=1e5)]
_Below1 = Annotated[float, Meta(ge=0, lt=1)]
_PLAIN = rf"\A[^{CONTROL.pattern[1:]}*\Z"
_Text = Annotated[str, Meta(pattern=_PLAIN)]


def _whole(least: int, most: int = 10**9) -> type:
    return Annotated[int, Meta(ge=least, le=most)]


def _some(kind: type, least: int = 1, most: int = 100) -> type:
    return Annotated[list[kind], Meta(min_length=least, max_length=most)]


# (words for what a value must be, its type, keys as "SECTION: KEY KEY; SECTION: KEY"); the type of other keys' default
# decides for True and False, and for texts
_RULES = (
    ("False, because CLIM has nothing of the kind", bool,
        "MODEL: LOAD_PROPOSALS KEYPOINT_ON; INPUT.CROP: ENABLED; TEST.AUG: ENABLED; TEST.PRECISE_BN: ENABLED"),
    ("16, because it is not read: set batch sizes per GPU, as DATALOADER.DETECTION_PER_GPU", Literal[16],
        "SOLVER: IMS_PER_BATCH"),
    ("2, because CLIM reads no configs of Detectron2's first version", Literal[2], ": VERSION"),
    ("a folder, not / and no address", Annotated[str, Meta(pattern=rf"\A(?!.*://)(?=.*[^/ ]){_PLAIN[2:]}")],
        ": OUTPUT_DIR"),
    ("random, or a file", Annotated[str, Meta(pattern=rf"\A(?=.*[^./ ]){_PLAIN[2:]}")], "INPUT.MOSAIC: PARTNERS"),
    ("cpu, cuda or cuda:NUMBER", Annotated[str, Meta(pattern=r"\A(cpu|cuda|mps|xpu)(:\d+)?\Z")], "MODEL: DEVICE"),
    ("texts of one line, so put numbers, yes and no in quotes", list[_Text], """
        MODEL.VOCABULARY: NAMES STORED; DATASETS: TRAIN TEST CAPTIONS REGIONS; MODEL.FPN: IN_FEATURES;
        MODEL.RESNETS: OUT_FEATURES"""),
    ("texts, at least one", _some(_Text),
        "MODEL.CENTERNET: IN_FEATURES; MODEL.RPN: IN_FEATURES; MODEL.ROI_HEADS: IN_FEATURES"),
    ("a list of [name, kind, file, folder]", list[_some(_Text, 4, 4)], "DATASETS: OWN"),
    ("a list of [folder of images, folder of their copies]", list[_some(_Text, 2, 2)], "INPUT: COPIES"),
    ("a whole number above 0", _whole(1), """
        MODEL.METHOD.DETIC: TAG_TOPK; MODEL.METHOD.BARON: TOPK; MODEL.METHOD.REGION_CLIP: CLASSES; MODEL.CENTERNET:
        PRE_NMS_TOPK_TRAIN PRE_NMS_TOPK_TEST POST_NMS_TOPK_TRAIN POST_NMS_TOPK_TEST; MODEL.RPN: BATCH_SIZE_PER_IMAGE;
        MODEL.ROI_HEADS: BATCH_SIZE_PER_IMAGE; MODEL.ROI_BOX_HEAD: FED_LOSS_NUM_CLASSES; INPUT:
        MAX_SIZE_TRAIN MAX_SIZE_TEST; INPUT.REGIONS: MASK_STRIDE MAX_AREA MAX_BOXES; SOLVER: MAX_ITER LOG_PERIOD"""),
    ("a whole number, 0 or more", _whole(0), """
        : VIS_PERIOD; MODEL.BACKBONE: FREEZE_AT; MODEL.METHOD.DETIC: CAPTION_BASE_REGIONS QUEUE_LENGTH;
        MODEL.METHOD.BARON: QUEUE_LENGTH; MODEL.METHOD.GROUNDING: MAX_CELLS CONTRAST_GROUP; MODEL.PROPOSAL_GENERATOR:
        MIN_SIZE; MODEL.RPN: PRE_NMS_TOPK_TRAIN PRE_NMS_TOPK_TEST POST_NMS_TOPK_TRAIN POST_NMS_TOPK_TEST;
        INPUT.REGIONS: MIN_AREA; DATALOADER: MIN_SIDE; SOLVER: KEEP_CHECKPOINTS WARMUP_ITERS CHECKPOINT_PERIOD;
        TEST: EVAL_PERIOD"""),
    ("a whole number from 1 to 20000", _whole(1, 20_000), """
        INPUT.CAPTION: SHORT_SIDE LONG_SIDE; INPUT.MOSAIC: SIZE; MODEL.OPEN_VOCAB: WORDS; MODEL.TEXT: DIM WORD_DIM;
        MODEL.METHOD.BARON: ORDERS; MODEL.METHOD.GROUNDING: HEADS; MODEL.FPN: OUT_CHANNELS;
        MODEL.ROI_BOX_HEAD: POOLER_RESOLUTION FC_DIM CONV_DIM; MODEL.ROI_MASK_HEAD: POOLER_RESOLUTION CONV_DIM;
        MODEL.RESNETS: NUM_GROUPS WIDTH_PER_GROUP RES2_OUT_CHANNELS STEM_OUT_CHANNELS; SOLVER: ACCUMULATE"""),
    ("a whole number from 0 to 20000", _whole(0, 20_000), """
        INPUT: MIN_SIZE_TEST; INPUT.CAPTION: CROP JITTER_SIZE; INPUT.LSJ: SIZE; MODEL.IMAGE_ENCODER: UNLOCKED_BLOCKS;
        MODEL.METHOD.DETIC: GROUPS; MODEL.METHOD.VLDET: PROPOSALS TILE_PROPOSALS; MODEL.METHOD.BARON: PROPOSALS;
        MODEL.CENTERNET: MIN_RADIUS HM_FOCAL_BETA; MODEL.ROI_BOX_HEAD: POOLER_SAMPLING_RATIO; MODEL.ROI_MASK_HEAD:
        POOLER_SAMPLING_RATIO; DATALOADER: DETECTION_PER_GPU CAPTIONS_PER_GPU MOSAICS_PER_GPU REGIONS_PER_GPU; SOLVER:
        REFERENCE_WORLD_SIZE"""),
    ("a whole number from 0 to 100", _whole(0, 100), """
        MODEL.METHOD.GROUNDING: LAYERS; MODEL.CENTERNET: NUM_BOX_CONVS; MODEL.ROI_BOX_HEAD: NUM_FC NUM_CONV;
        MODEL.ROI_MASK_HEAD: NUM_CONV"""),
    ("18, 34, 50, 101 or 152", Literal[18, 34, 50, 101, 152], "MODEL.RESNETS: DEPTH"),
    ("1 or 2", Literal[1, 2], "MODEL.RESNETS: RES5_DILATION"),
    ("a whole number from 1 to 100", _whole(1, 100), "MODEL.FPN: STACKS"),
    ("a whole number from 1 to 1000000", _whole(1, 10**6), "MODEL.ROI_HEADS: NUM_CLASSES"),
    ("a whole number from 32 to 20000, as encoders halve it five times", _whole(32, 20_000),
        "INPUT.REGIONS: SIZE CROP_SIZE"),
    ("a whole number from 0 to 255", _whole(0, 255), "INPUT.MOSAIC: PAD_VALUE"),
    ("a whole number from 0 to 256", _whole(0, 256), "DATALOADER: NUM_WORKERS"),
    ("a whole number below 2147483648", _whole(-(2**31), 2**31 - 1), ": SEED"),
    ("a whole number above 0, or -1 for all", _whole(-1), "TEST: DETECTIONS_PER_IMAGE"),
    ("an even number from 2 to 1024", Annotated[int, Meta(ge=2, le=1024, multiple_of=2)],
        "MODEL.METHOD.BARON: FREQUENCIES"),
    ("whole numbers above 0, or -1 for that of the input", _some(_whole(-1)), "MODEL.RPN: CONV_DIMS"),
    ("whole numbers from 1 to 64", _some(_whole(1, 64)), "INPUT.MOSAIC: GRIDS"),
    ("whole numbers from 1 to 20000", _some(_whole(1, 20_000)), "INPUT: MIN_SIZE_TRAIN"),
    ("rising whole numbers above 0, each once", list[_whole(1)], "SOLVER: STEPS"),
    ("rising numbers above 0, each once", list[_Above], "SOLVER: STEP_EPOCHS"),
    ("a number above 0", _Above, """
        DISTRIBUTED: TIMEOUT; MODEL.OPEN_VOCAB: TEMPERATURE; MODEL.METHOD.DETIC: TEMPERATURE; MODEL.METHOD.VLDET:
        TEMPERATURE; MODEL.METHOD.BARON: TEMPERATURE WEIGHT FREQUENCY_BASE; MODEL.METHOD.GROUNDING: TEMPERATURE;
        MODEL.METHOD.CLIP: SCALE MAX_SCALE; MODEL.METHOD.REGION_CLIP: SCALE; MODEL.FVLM: TEMPERATURE
        DETECTOR_TEMPERATURE; SOLVER: EPS GAMMA; SOLVER.CLIP_GRADIENTS: CLIP_VALUE"""),
    ("a number, 0 or more", _NotNegative, """
        MODEL.OVRCNN: BACKGROUND_WEIGHT; MODEL.FVLM: BACKGROUND_WEIGHT; MODEL.METHOD.DETIC: CAPTION_WEIGHT TAG_WEIGHT
        NEGATIVE_WEIGHT; MODEL.METHOD.VLDET: CAPTION_WEIGHT NOUN_WEIGHT; MODEL.CENTERNET: POS_WEIGHT NEG_WEIGHT
        REG_WEIGHT LOSS_GAMMA; MODEL.RPN: LOSS_WEIGHT BBOX_REG_LOSS_WEIGHT SMOOTH_L1_BETA; MODEL.ROI_BOX_HEAD:
        BBOX_REG_LOSS_WEIGHT SMOOTH_L1_BETA FED_LOSS_FREQ_WEIGHT_POWER; MODEL.ROI_BOX_CASCADE_HEAD: GRADIENT_SCALE;
        SOLVER: BASE_LR BASE_LR_END WEIGHT_DECAY WEIGHT_DECAY_NORM BIAS_LR_FACTOR
        BACKBONE_MULTIPLIER CLIP_GLOBAL_NORM"""),
    ("a number from 0 to 1000000", Annotated[float, Meta(ge=0, le=1e6)], "SOLVER: EPOCHS"),
    ("a number, 0 or more, or None", _NotNegative | None, "SOLVER: WEIGHT_DECAY_BIAS"),
    ("a number above 0, or inf", Annotated[float, Meta(gt=0)], "SOLVER.CLIP_GRADIENTS: NORM_TYPE"),
    ("a number from 0 to 1", _Part, """
        MODEL.OPEN_VOCAB: WORD_DROPOUT; MODEL.METHOD.DETIC: TAG_MIN_IOF; MODEL.METHOD.VLDET: TILE_MIN_IOF;
        MODEL.METHOD.BARON: MIN_IOF MIN_AREA MIN_OBJECTNESS NMS WORD_DROPOUT; MODEL.METHOD.GROUNDING: DROPOUT
        MLM_PROBABILITY MLM_HIDDEN; MODEL.FVLM: ALPHA BETA; MODEL.CENTERNET: HM_MIN_OVERLAP HM_FOCAL_ALPHA
        IGNORE_HIGH_FP INFERENCE_TH NMS_TH_TRAIN NMS_TH_TEST; MODEL.RPN: POSITIVE_FRACTION NMS_THRESH;
        MODEL.ROI_HEADS: POSITIVE_FRACTION SCORE_THRESH_TEST NMS_THRESH_TEST; INPUT.CAPTION: FLIP; INPUT.MOSAIC:
        FLIP; DATALOADER: REPEAT_THRESHOLD; SOLVER: WEIGHT_ENSEMBLE WARMUP_FACTOR"""),
    ("a number, 0 or more and below 1", _Below1, "MODEL.ANCHOR_GENERATOR: OFFSET; SOLVER: EMA MOMENTUM"),
    ("a number above 0 and below 1", Annotated[float, Meta(gt=0, lt=1)], "MODEL.CENTERNET: PRIOR_PROB SIGMOID_CLAMP"),
    ("a number", _Number, "MODEL.RPN: BOUNDARY_THRESH"),
    ("two numbers, 0 or more and below 1", _some(_Below1, 2, 2), "SOLVER: BETAS"),
    ("two rising numbers above 0", _some(_Above, 2, 2),
        "INPUT.MOSAIC: CROP_RATIO; INPUT.CAPTION: CROP_RATIO; MODEL.METHOD.BARON: RATIO"),
    ("two rising numbers above 0 and up to 100", _some(Annotated[float, Meta(gt=0, le=100)], 2, 2),
        "INPUT.LSJ: SCALE; INPUT.CAPTION: JITTER_SCALE"),
    ("two rising numbers above 0 and up to 1", _some(_AbovePart, 2, 2),
        "INPUT.CAPTION: CROP_SCALE; INPUT.MOSAIC: CROP_SCALE"),
    ("numbers above 0 and up to 1", _some(_AbovePart), "INPUT.CAPTION: SCALES"),
    ("[] or a list of one number", _some(_Number, 0, 1), "MODEL.OPEN_VOCAB: TRAIN_BIAS; MODEL.METHOD.DETIC: BIAS"),
    ("three numbers", _some(_Number, 3, 3), "MODEL: PIXEL_MEAN; MODEL.FVLM: PAD_PIXEL"),
    ("three numbers above 0", _some(_Above, 3, 3), "MODEL: PIXEL_STD"),
    ("four numbers above 0", _some(_Above, 4, 4), "MODEL.RPN: BBOX_REG_WEIGHTS; MODEL.ROI_BOX_HEAD: BBOX_REG_WEIGHTS"),
    ("a list of four numbers above 0 for each stage", list[_some(_Above, 4, 4)],
        "MODEL.ROI_BOX_CASCADE_HEAD: BBOX_REG_WEIGHTS"),
    ("numbers from 0 to 1", _some(_Part), "MODEL.ROI_BOX_CASCADE_HEAD: IOUS"),
    ("one or two rising numbers above 0 and up to 1", _some(_AbovePart, 1, 2),
        "MODEL.RPN: IOU_THRESHOLDS; MODEL.ROI_HEADS: IOU_THRESHOLDS"),
    ("two or three of -1, 0 and 1", _some(_whole(-1, 1), 2, 3), "MODEL.RPN: IOU_LABELS; MODEL.ROI_HEADS: IOU_LABELS"),
    ("lists of numbers from 0.001 to 100000", _some(_some(_Side) | _Side),
        "MODEL.ANCHOR_GENERATOR: SIZES ASPECT_RATIOS"),
    ("two rising numbers for each level", list[_some(_NotNegative, 2, 2)], "MODEL.CENTERNET: SOI"),
    ("weights above 0, or empty", list[_Above], "DATALOADER: ALTERNATE"),
)  # fmt: skip

_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
_POOLERS, _BOX_LOSSES = ("ROIAlign", "ROIAlignV2", "ROIPool"), ("smooth_l1", "giou", "diou", "ciou")

# {key: names, of which the value is one}: a tuple, a dict or a registry
CHOICES = {
    "MODEL.META_ARCHITECTURE": modeling.META_ARCH_REGISTRY, "MODEL.BACKBONE.NAME": modeling.BACKBONE_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": modeling.PROPOSAL_GENERATOR_REGISTRY, "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": modeling.ANCHOR_GENERATOR_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": modeling.ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": modeling.ROI_HEADS_REGISTRY, "MODEL.ROI_MASK_HEAD.NAME": modeling.ROI_MASK_HEAD_REGISTRY,
    "MODEL.ROI_BOX_HEAD.PREDICTOR": BOX_PREDICTOR_REGISTRY, "MODEL.IMAGE_ENCODER.NAME": IMAGE_ENCODER_REGISTRY,
    "MODEL.OPEN_VOCAB.CLASSIFIER": CLASSIFIERS, "MODEL.VOCABULARY.PROMPT": PROMPTS,
    "MODEL.OVRCNN.TEST_CLASSES": TEST_CLASSES, "MODEL.METHOD.NAME": METHOD_REGISTRY,
    "MODEL.METHOD.VLDET.NOUN_LOSS": MATCHING,
    "MODEL.METHOD.DETIC.CAPTION_NEGATIVES": ("queue", "gather"),
    "MODEL.METHOD.DETIC.TAG_TARGET": ("multi_hot", "per_tag"),
    "MODEL.METHOD.GROUNDING.GLOBAL_METRIC": GLOBAL_METRICS, "MODEL.METHOD.GROUNDING.LOCAL_METRIC": LOCAL_METRICS,
    "MODEL.IMAGE_ENCODER.REGIONS": ("v2", "v1"), "MODEL.FVLM.UPSCALING": UPSCALING,
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSSES, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _POOLERS, "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _POOLERS,
    **{f"MODEL.{part}.NORM": _NORMS for part in "RPN FPN CENTERNET RESNETS ROI_BOX_HEAD ROI_MASK_HEAD".split()},
    "INPUT.FORMAT": ("BGR", "RGB"), "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.RANDOM_FLIP": ("none", "horizontal", "vertical"), "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.LSJ.STYLE": ("detectron2", *STYLES), "INPUT.MOSAIC.FILLING": ("fit", "crop", "jitter"),
    "INPUT.MOSAIC.COMPOSE": ("loader", "device"), "TEST.PROTOCOL": PROTOCOLS,
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "RepeatFactorTrainingSampler"),
    "SOLVER.OPTIMIZER": ("SGD", "ADAMW"), "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR"),  # the third one fails at its end
    "SOLVER.WARMUP_METHOD": ("constant", "linear"), "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "SOLVER.WRITERS": ("tensorboard", "wandb", "mlflow"), "TEST.REGIONS": ("boxes", "masks", "crops"),
}  # fmt: skip
# Detectron2's parts that CLIM's models cannot have
_OTHERS = {
    "PanopticFPN", "ProposalNetwork", "RetinaNet", "SemanticSegmentor", "RRPN", "RotatedAnchorGenerator", "RROIHeads",
    "CascadeROIHeads", "Res5ROIHeads", "StandardROIHeads",
}  # fmt: skip
# (key, its value, another key, values that do not go with it): the error would come late
_APART = (
    ("MODEL.META_ARCHITECTURE", "OpenVocabRCNN", "MODEL.ROI_HEADS.NAME",
        ("Res5ROIHeads", "FVLMROIHeads")),
    ("MODEL.META_ARCHITECTURE", "FVLM", "MODEL.ROI_HEADS.NAME", ("Res5ROIHeads",)),
    ("MODEL.META_ARCHITECTURE", "FVLM", "MODEL.BACKBONE.NAME",
        ("build_efficientnet_lite0_c4", "build_efficientnet_lite0_fpn_backbone", "build_p67_timm_fpn_backbone",
         "build_resnet_backbone", "build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone")),
    ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.ROI_HEADS.NAME", ("EfficientNetC4ROIHeads",)),
    ("MODEL.BACKBONE.NAME", "build_efficientnet_lite0_c4", "MODEL.ROI_HEADS.NAME", ("OpenVocabRes5ROIHeads",)),
    ("MODEL.ROI_HEADS.NAME", "OpenVocabCascadeROIHeads", "MODEL.ROI_BOX_HEAD.NUM_FC", (0,)),
    ("MODEL.ROI_HEADS.NAME", "FVLMROIHeads", "MODEL.ROI_BOX_HEAD.NUM_FC", (0,)),
    ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR", (0,)),
)  # fmt: skip
_AT_MOST = {
    "INPUT.CAPTION.SHORT_SIDE": "INPUT.CAPTION.LONG_SIDE", "INPUT.REGIONS.MIN_AREA": "INPUT.REGIONS.MAX_AREA",
    "MODEL.METHOD.CLIP.SCALE": "MODEL.METHOD.CLIP.MAX_SCALE", "SOLVER.BASE_LR_END": "SOLVER.BASE_LR",
}  # fmt: skip
_AS_LONG = {
    "MODEL.CENTERNET.SOI": "MODEL.CENTERNET.IN_FEATURES",
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": "MODEL.ROI_BOX_CASCADE_HEAD.IOUS",
}
_DEFAULTS = get_cfg()
add_clim_config(_DEFAULTS)
_BY_DEFAULT = {bool: ("True or False", bool), str: ("a text of one line", _Text)}
VALUES = {  # {key: (words, type)}
    key: _BY_DEFAULT[type(default)]
    for key, default, _ in entries(_DEFAULTS, source="")
    if type(default) in _BY_DEFAULT and key not in CHOICES
} | {
    f"{section.strip()}.{name}".lstrip("."): (words, kind)
    for words, kind, keys in _RULES
    for section, _, names in (part.partition(":") for part in keys.split(";"))
    for name in names.split()
}
_NEVER = {key: True for key, (words, _) in VALUES.items() if words.startswith("False")}
_NEVER |= {"MODEL.METHOD.GROUNDING.CONTRAST_GROUP": 1, "TEST.DETECTIONS_PER_IMAGE": 0, "MODEL.RPN.CONV_DIMS": 0}


def check_values(cfg, sources: Mapping[str, str] = MappingProxyType({})) -> None:
    """UserError for the first value that the tables above do not allow.

    ``sources``: {key: file that says so}, as :func:`clim.config_files.merge` returns them.
    """
    for key, place, words in chain(_wrong_values(cfg), _wrong_choices(cfg), _wrong_relations(cfg, sources)):
        value = reduce(getitem, map(int, re.findall(r"\d+", place)), _get(cfg, key))
        source = f" ({sources[key]})" if sources.get(key) else ""
        end = "" if words.endswith("?") else "."
        raise UserError(f"{key}{place} is {shown(value)}{source}: {key if place else 'it'} must be {words}{end}")


def _get(cfg, key: str):
    try:
        return reduce(getitem, key.split("."), cfg)
    except KeyError as error:
        raise UserError(f"The config has no {key}: call clim.add_clim_config(cfg) before it is read.") from error


def _wrong_values(cfg) -> Iterator[tuple[str, str, str]]:
    """(key, place of an element, as "[1]", words for what the value must be) of wrong values."""
    for key, (words, kind) in VALUES.items():
        value = _get(cfg, key)
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:  # the first one ends the search
            yield key, str(error).partition("`$")[2].rstrip("`"), words
        parts = value if isinstance(value, list | tuple) and isinstance((*value, 0)[0], list | tuple) else [value]
        falls = "rising" in words and any(list(part) != sorted({*part} if "once" in words else part) for part in parts)
        if falls or (key in _NEVER and _NEVER[key] in (value if isinstance(value, list) else [value])):
            yield key, "", words
    if os.path.abspath(cfg.OUTPUT_DIR) == os.sep:
        yield "OUTPUT_DIR", "", VALUES["OUTPUT_DIR"][0]


def _wrong_choices(cfg) -> Iterator[tuple[str, str, str]]:
    for key, known in CHOICES.items():
        value, default = _get(cfg, key), _get(_DEFAULTS, key)
        several = isinstance(default, list | tuple)
        names = {*(dict(known) if hasattr(known, "get") else known)} - _OTHERS | (set() if several else {default})
        given = value if several and isinstance(value, list | tuple) else [value]
        if wrong := [name for name in given if not isinstance(name, str) or name not in names]:
            one_of = ("a list of some of " if several else "one of ") + ", ".join(sorted(n or '""' for n in names))
            yield key, "", one_of + near(str(wrong[0]), names)


def _wrong_relations(cfg, sources: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for small, large in _AT_MOST.items():
        if _get(cfg, small) > (most := _get(cfg, large)):
            yield small, "", f"at most {large} ({most})"
    for key, one, other, apart in _APART:
        if _get(cfg, key) == one and _get(cfg, other) in apart:
            yield other, "", f"another one with {key} {one}"
    for one, other in _AS_LONG.items():
        if len(_get(cfg, one)) != (length := len(_get(cfg, other))):
            yield one, "", f"as long as {other} ({length})"
    for part in ("RPN", "ROI_HEADS"):
        if len(cfg.MODEL[part].IOU_LABELS) != len(cfg.MODEL[part].IOU_THRESHOLDS) + 1:
            yield f"MODEL.{part}.IOU_LABELS", "", "one longer than IOU_THRESHOLDS"
    sizes = list(cfg.INPUT.MIN_SIZE_TRAIN)
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and not (len(sizes) == 2 and sizes[0] < sizes[1]):
        yield "INPUT.MIN_SIZE_TRAIN", "", "two rising sizes for INPUT.MIN_SIZE_TRAIN_SAMPLING range"
    levels = len(cfg.MODEL.RPN.IN_FEATURES)
    for name in ("SIZES", "ASPECT_RATIOS") if cfg.MODEL.PROPOSAL_GENERATOR.NAME.endswith("RPN") else ():
        lists = cfg.MODEL.ANCHOR_GENERATOR[name]
        if isinstance(lists[0], list | tuple) and len(lists) not in (1, levels):
            yield f"MODEL.ANCHOR_GENERATOR.{name}", "", f"one list, or one for each of MODEL.RPN.IN_FEATURES ({levels})"
    grounding, dim = cfg.MODEL.METHOD.GROUNDING, cfg.MODEL.TEXT.DIM
    if cfg.MODEL.METHOD.NAME == "Grounding" and grounding.LAYERS and dim % grounding.HEADS:
        yield "MODEL.METHOD.GROUNDING.HEADS", "", f"a divisor of MODEL.TEXT.DIM ({dim})"
    if cfg.INPUT.MOSAIC.SIZE < 4 * max(cfg.INPUT.MOSAIC.GRIDS):
        yield "INPUT.MOSAIC.SIZE", "", f"at least 4 px for each of the tiles of GRIDS {list(cfg.INPUT.MOSAIC.GRIDS)}"
    if sources.get("MODEL.TRUST_WEIGHTS") and cfg.MODEL.TRUST_WEIGHTS:  # its author may have made them
        yield "MODEL.TRUST_WEIGHTS", "", "False in files: if you trust the weights, write it at the end of the command"
    if sources.get("SOLVER.MAX_ITER") == "" and cfg.SOLVER.EPOCHS and sources.get("SOLVER.EPOCHS") != "":
        yield ("SOLVER.MAX_ITER", "", f"left out, as SOLVER.EPOCHS {cfg.SOLVER.EPOCHS} sets it: or set EPOCHS 0.0")
