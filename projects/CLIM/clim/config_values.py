"""What each config value must be: one table, which training, evaluation and prediction ask.

It has the keys of config.py, and Detectron2's keys that CLIM reads or that would be ignored without a word.
"""

from collections.abc import Mapping
from functools import reduce
from operator import getitem
from types import MappingProxyType
from typing import Annotated, Literal

import msgspec
import torch
from detectron2 import modeling
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY
from detectron2.utils import comm
from msgspec import Meta

from clim.config_files import CONTROL, shown
from clim.data.jittering import STYLES
from clim.errors import UserError, near
from clim.evaluation.ov_coco import PROTOCOLS
from clim.losses import GLOBAL_METRICS, LOCAL_METRICS
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
_Below1 = Annotated[float, Meta(ge=0, lt=1)]
_PLAIN = rf"\A[^{CONTROL.pattern[1:]}*\Z"
_Text = Annotated[str, Meta(pattern=_PLAIN)]


def _whole(least: int, most: int = 10**9) -> type:
    return Annotated[int, Meta(ge=least, le=most)]


def _some(kind: type, least: int = 1, most: int = 100) -> type:
    return Annotated[list[kind], Meta(min_length=least, max_length=most)]


# (words for what a value must be, its type, keys as "SECTION: KEY KEY; SECTION: KEY")
_RULES = (
    ("True or False", bool, """
        : CUDNN_BENCHMARK; MODEL: MASK_ON TRUST_WEIGHTS; MODEL.OPEN_VOCAB: ZERO_BACKGROUND FP32_HEADS;
        MODEL.IMAGE_ENCODER: CHECKPOINTING; MODEL.FVLM: MATCH_BEST; MODEL.METHOD.VLDET: EXACT_BOX;
        MODEL.METHOD.GROUNDING: JOINT MASK_PADDING TEXT_DROPOUT; MODEL.ROI_HEADS: PROPOSAL_APPEND_GT;
        MODEL.ROI_BOX_HEAD: MULT_PROPOSAL_SCORE CLS_AGNOSTIC_BBOX_REG USE_FED_LOSS USE_SIGMOID_CE
        TRAIN_ON_PRED_BOXES; MODEL.ROI_BOX_CASCADE_HEAD: RESAMPLE KEEP_EMPTY; MODEL.ROI_MASK_HEAD: CLS_AGNOSTIC_MASK;
        MODEL.RESNETS: STRIDE_IN_1X1; INPUT.MOSAIC: PERMUTE_TEXTS; INPUT.REGIONS: CROWDS; DATALOADER: REPEAT_ROUND_UP
        REPEAT_SQRT ASPECT_RATIO_GROUPING FILTER_EMPTY_ANNOTATIONS; SOLVER: NESTEROV RESCALE_INTERVAL; SOLVER.AMP:
        ENABLED; SOLVER.CLIP_GRADIENTS: ENABLED"""),
    ("False, because CLIM has nothing of the kind", bool,
        "MODEL: LOAD_PROPOSALS KEYPOINT_ON; INPUT.CROP: ENABLED; TEST.AUG: ENABLED; TEST.PRECISE_BN: ENABLED"),
    ("16, because it is not read: set batch sizes per GPU, as DATALOADER.DETECTION_PER_GPU", Literal[16],
        "SOLVER: IMS_PER_BATCH"),
    ("2, because CLIM reads no configs of Detectron2's first version", Literal[2], ": VERSION"),
    ("a text without line breaks", _Text, """
        MODEL: WEIGHTS; MODEL.OPEN_VOCAB: BASE_CLASSES; MODEL.VOCABULARY: EMBEDDINGS; MODEL.TEXT: NAME PRETRAINED
        CACHE; MODEL.METHOD: NAME; MODEL.METHOD.VLDET: EMBEDDINGS; MODEL.METHOD.REGION_CLIP: EMBEDDINGS;
        MODEL.IMAGE_ENCODER: ARCHITECTURE PRETRAINED; INPUT.MOSAIC: PARTNERS; DATASETS: DATA; TEST: BEST_METRIC"""),
    ("a folder, not / and no address", Annotated[str, Meta(pattern=rf"\A(?!.*://)(?=.*[^/ ]){_PLAIN[2:]}")],
        ": OUTPUT_DIR"),
    ("cpu, cuda or cuda:NUMBER", Annotated[str, Meta(pattern=r"\A(cpu|cuda|mps|xpu)(:\d+)?\Z")], "MODEL: DEVICE"),
    ("texts, so put numbers, yes and no in quotes", list[_Text], """
        MODEL.VOCABULARY: NAMES STORED; DATASETS: TRAIN TEST CAPTIONS REGIONS; MODEL.CENTERNET: IN_FEATURES;
        MODEL.RPN: IN_FEATURES; MODEL.ROI_HEADS: IN_FEATURES; MODEL.FPN: IN_FEATURES; MODEL.RESNETS: OUT_FEATURES"""),
    ("a list of [name, kind, file, folder]", list[_some(_Text, 4, 4)], "DATASETS: OWN"),
    ("a whole number above 0", _whole(1), """
        MODEL.OPEN_VOCAB: WORDS; MODEL.TEXT: DIM WORD_DIM; MODEL.METHOD.DETIC: TAG_TOPK; MODEL.METHOD.BARON: TOPK
        ORDERS; MODEL.METHOD.GROUNDING: HEADS; MODEL.METHOD.REGION_CLIP: CLASSES; MODEL.FPN: STACKS OUT_CHANNELS;
        MODEL.CENTERNET: PRE_NMS_TOPK_TRAIN PRE_NMS_TOPK_TEST POST_NMS_TOPK_TRAIN POST_NMS_TOPK_TEST; MODEL.RPN:
        BATCH_SIZE_PER_IMAGE; MODEL.ROI_HEADS: NUM_CLASSES BATCH_SIZE_PER_IMAGE; MODEL.ROI_BOX_HEAD:
        POOLER_RESOLUTION FC_DIM CONV_DIM FED_LOSS_NUM_CLASSES; MODEL.ROI_MASK_HEAD: POOLER_RESOLUTION CONV_DIM;
        INPUT: MAX_SIZE_TRAIN MAX_SIZE_TEST; INPUT.REGIONS: MASK_STRIDE MAX_AREA MAX_BOXES; SOLVER: ACCUMULATE
        MAX_ITER LOG_PERIOD"""),
    ("a whole number, 0 or more", _whole(0), """
        : VIS_PERIOD; MODEL.BACKBONE: FREEZE_AT; MODEL.IMAGE_ENCODER: UNLOCKED_BLOCKS; MODEL.METHOD.DETIC:
        CAPTION_BASE_REGIONS QUEUE_LENGTH GROUPS; MODEL.METHOD.VLDET: PROPOSALS TILE_PROPOSALS; MODEL.METHOD.BARON:
        PROPOSALS QUEUE_LENGTH; MODEL.METHOD.GROUNDING: MAX_CELLS LAYERS CONTRAST_GROUP; MODEL.CENTERNET:
        NUM_BOX_CONVS MIN_RADIUS HM_FOCAL_BETA; MODEL.PROPOSAL_GENERATOR: MIN_SIZE; MODEL.RPN: PRE_NMS_TOPK_TRAIN
        PRE_NMS_TOPK_TEST POST_NMS_TOPK_TRAIN POST_NMS_TOPK_TEST; MODEL.ROI_BOX_HEAD: POOLER_SAMPLING_RATIO NUM_FC
        NUM_CONV; MODEL.ROI_MASK_HEAD: POOLER_SAMPLING_RATIO NUM_CONV; INPUT.REGIONS: MIN_AREA; DATALOADER:
        DETECTION_PER_GPU CAPTIONS_PER_GPU MOSAICS_PER_GPU REGIONS_PER_GPU MIN_SIDE; SOLVER: KEEP_CHECKPOINTS
        WARMUP_ITERS CHECKPOINT_PERIOD REFERENCE_WORLD_SIZE NUM_DECAYS; TEST: EVAL_PERIOD"""),
    ("a whole number from 1 to 20000", _whole(1, 20_000),
        "INPUT.CAPTION: SHORT_SIDE LONG_SIDE; INPUT.MOSAIC: SIZE; INPUT.REGIONS: SIZE CROP_SIZE"),
    ("a whole number from 0 to 20000", _whole(0, 20_000),
        "INPUT: MIN_SIZE_TEST; INPUT.CAPTION: CROP JITTER_SIZE; INPUT.LSJ: SIZE"),
    ("a whole number from 0 to 255", _whole(0, 255), "INPUT.MOSAIC: PAD_VALUE"),
    ("a whole number from 0 to 1024", _whole(0, 1024), "DATALOADER: NUM_WORKERS"),
    ("a whole number below 2147483648", _whole(-(2**31), 2**31 - 1), ": SEED"),
    ("a whole number above 0, or -1 for all", _whole(-1), "TEST: DETECTIONS_PER_IMAGE"),
    ("an even number above 0", Annotated[int, Meta(ge=2, multiple_of=2)], "MODEL.METHOD.BARON: FREQUENCIES"),
    ("whole numbers, at least one", _some(_whole(-1)), "MODEL.RPN: CONV_DIMS"),
    ("whole numbers from 1 to 64", _some(_whole(1, 64)),
        "INPUT.MOSAIC: GRIDS"),
    ("whole numbers from 1 to 20000", _some(_whole(1, 20_000)),
        "INPUT: MIN_SIZE_TRAIN"),
    ("rising whole numbers above 0", list[_whole(1)], "SOLVER: STEPS"),
    ("rising numbers above 0", list[_Above], "SOLVER: STEP_EPOCHS"),
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
        DATALOADER: REPEAT_THRESHOLD; SOLVER: BASE_LR BASE_LR_END WEIGHT_DECAY WEIGHT_DECAY_NORM BIAS_LR_FACTOR
        BACKBONE_MULTIPLIER CLIP_GLOBAL_NORM EPOCHS"""),
    ("a number, 0 or more, or None", _NotNegative | None, "SOLVER: WEIGHT_DECAY_BIAS"),
    ("a number above 0, or inf", Annotated[float, Meta(gt=0)], "SOLVER.CLIP_GRADIENTS: NORM_TYPE"),
    ("a number from 0 to 1", _Part, """
        MODEL.OPEN_VOCAB: WORD_DROPOUT; MODEL.METHOD.DETIC: TAG_MIN_IOF; MODEL.METHOD.VLDET: TILE_MIN_IOF;
        MODEL.METHOD.BARON: MIN_IOF MIN_AREA MIN_OBJECTNESS NMS WORD_DROPOUT; MODEL.METHOD.GROUNDING: DROPOUT
        MLM_PROBABILITY MLM_HIDDEN; MODEL.FVLM: ALPHA BETA; MODEL.CENTERNET: HM_MIN_OVERLAP HM_FOCAL_ALPHA
        IGNORE_HIGH_FP INFERENCE_TH NMS_TH_TRAIN NMS_TH_TEST; MODEL.RPN: POSITIVE_FRACTION NMS_THRESH;
        MODEL.ROI_HEADS: POSITIVE_FRACTION SCORE_THRESH_TEST NMS_THRESH_TEST; INPUT.CAPTION: FLIP; INPUT.MOSAIC:
        FLIP; SOLVER: WEIGHT_ENSEMBLE WARMUP_FACTOR"""),
    ("a number, 0 or more and below 1", _Below1, "MODEL.ANCHOR_GENERATOR: OFFSET; SOLVER: EMA MOMENTUM"),
    ("a number above 0 and below 1", Annotated[float, Meta(gt=0, lt=1)], "MODEL.CENTERNET: PRIOR_PROB"),
    ("a number above 0 and below 0.5", Annotated[float, Meta(gt=0, lt=0.5)], "MODEL.CENTERNET: SIGMOID_CLAMP"),
    ("a number", _Number, "MODEL.RPN: BOUNDARY_THRESH"),
    ("two numbers, 0 or more and below 1", _some(_Below1, 2, 2),
        "SOLVER: BETAS"),
    ("two rising numbers above 0", _some(_Above, 2, 2), """
        INPUT.MOSAIC: CROP_RATIO; INPUT.LSJ: SCALE; INPUT.CAPTION: CROP_RATIO JITTER_SCALE;
        MODEL.METHOD.BARON: RATIO"""),
    ("two rising numbers above 0 and up to 1", _some(_AbovePart, 2, 2),
        "INPUT.CAPTION: CROP_SCALE; INPUT.MOSAIC: CROP_SCALE"),
    ("[] or a list of one number", _some(_Number, 0, 1), "MODEL.OPEN_VOCAB: TRAIN_BIAS; MODEL.METHOD.DETIC: BIAS"),
    ("three numbers", _some(_Number, 3, 3), "MODEL: PIXEL_MEAN; MODEL.FVLM: PAD_PIXEL"),
    ("three numbers above 0", _some(_Above, 3, 3), "MODEL: PIXEL_STD"),
    ("four numbers above 0", _some(_Above, 4, 4),
        "MODEL.RPN: BBOX_REG_WEIGHTS; MODEL.ROI_BOX_HEAD: BBOX_REG_WEIGHTS"),
    ("a list of four numbers above 0 for each stage", list[_some(_Above, 4, 4)],
        "MODEL.ROI_BOX_CASCADE_HEAD: BBOX_REG_WEIGHTS"),
    ("numbers from 0 to 1", _some(_Part),
        "MODEL.ROI_BOX_CASCADE_HEAD: IOUS"),
    ("one or two rising numbers from 0 to 1", _some(_Part, 1, 2),
        "MODEL.RPN: IOU_THRESHOLDS; MODEL.ROI_HEADS: IOU_THRESHOLDS"),
    ("two or three of -1, 0 and 1", _some(_whole(-1, 1), 2, 3),
        "MODEL.RPN: IOU_LABELS; MODEL.ROI_HEADS: IOU_LABELS"),
    ("lists of numbers above 0", _some(_some(_Above) | _Above),
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
    "MODEL.OVRCNN.TEST_CLASSES": TEST_CLASSES, "MODEL.METHOD.VLDET.NOUN_LOSS": MATCHING,
    "MODEL.METHOD.DETIC.CAPTION_NEGATIVES": ("queue", "gather"),
    "MODEL.METHOD.DETIC.TAG_TARGET": ("multi_hot", "per_tag"),
    "MODEL.METHOD.GROUNDING.GLOBAL_METRIC": GLOBAL_METRICS, "MODEL.METHOD.GROUNDING.LOCAL_METRIC": LOCAL_METRICS,
    "MODEL.IMAGE_ENCODER.REGIONS": ("v2", "v1"), "MODEL.FVLM.UPSCALING": UPSCALING,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSSES, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _POOLERS, "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _POOLERS,
    **{f"MODEL.{part}.NORM": _NORMS for part in "RPN FPN CENTERNET RESNETS ROI_BOX_HEAD ROI_MASK_HEAD".split()},
    "INPUT.FORMAT": ("BGR", "RGB"), "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.RANDOM_FLIP": ("none", "horizontal", "vertical"), "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.LSJ.STYLE": ("detectron2", *STYLES), "INPUT.MOSAIC.FILLING": ("fit", "crop", "jitter"),
    "INPUT.MOSAIC.COMPOSE": ("loader", "device"), "TEST.PROTOCOL": PROTOCOLS,
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "RepeatFactorTrainingSampler"),
    "SOLVER.OPTIMIZER": ("SGD", "ADAMW"), "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.WARMUP_METHOD": ("constant", "linear"), "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "SOLVER.WRITERS": ("tensorboard", "wandb", "mlflow"), "TEST.REGIONS": ("boxes", "masks", "crops"),
}  # fmt: skip
_LISTS, _MAY_BE_EMPTY = {"SOLVER.WRITERS", "TEST.REGIONS"}, {"MODEL.ROI_BOX_HEAD.NAME", "MODEL.OVRCNN.TEST_CLASSES"}
_NEVER = {
    "MODEL.METHOD.GROUNDING.CONTRAST_GROUP": 1, "TEST.DETECTIONS_PER_IMAGE": 0, "MODEL.LOAD_PROPOSALS": True,
    "MODEL.KEYPOINT_ON": True, "INPUT.CROP.ENABLED": True, "TEST.AUG.ENABLED": True, "TEST.PRECISE_BN.ENABLED": True,
}  # fmt: skip
_AT_MOST = {
    "INPUT.CAPTION.SHORT_SIDE": "INPUT.CAPTION.LONG_SIDE", "INPUT.REGIONS.MIN_AREA": "INPUT.REGIONS.MAX_AREA",
    "MODEL.METHOD.CLIP.SCALE": "MODEL.METHOD.CLIP.MAX_SCALE", "SOLVER.BASE_LR_END": "SOLVER.BASE_LR",
}  # fmt: skip
_AS_MANY = {  # {list: one with as many elements}
    "MODEL.CENTERNET.SOI": "MODEL.CENTERNET.IN_FEATURES",
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": "MODEL.ROI_BOX_CASCADE_HEAD.IOUS",
}
VALUES = {  # {key: (words, type)}
    f"{section.strip()}.{name}".lstrip("."): (words, kind)
    for words, kind, keys in _RULES
    for section, _, names in (part.partition(":") for part in keys.split(";"))
    for name in names.split()
}


def check_values(cfg, sources: Mapping[str, str] = MappingProxyType({})) -> None:
    """UserError for a value that the tables above do not allow, and for several processes beside unused GPUs.

    ``sources``: {key: file that says so}, as :func:`clim.config_files.merge` returns them.
    """

    def get(key: str):
        try:
            return reduce(getitem, key.split("."), cfg)
        except KeyError as error:
            raise UserError(f"The config has no {key}: call clim.add_clim_config(cfg) before it is read.") from error

    def wrong(key: str, words: str, hint: str = "") -> UserError:
        source = f" ({sources[key]})" if sources.get(key) else ""
        return UserError(f"{key} is {shown(get(key))}{source}: it must be {words}{hint or '.'}")

    for key, (words, kind) in VALUES.items():
        try:
            msgspec.convert(value := get(key), kind)
        except msgspec.ValidationError as error:
            raise wrong(key, words) from error
        parts = value if isinstance(value, list | tuple) and isinstance((*value, 0)[0], list | tuple) else [value]
        falls = "rising" in words and any(list(part) != sorted(part) for part in parts)
        if falls or (key in _NEVER and value == _NEVER[key]):
            raise wrong(key, words)
    for key, known in CHOICES.items():
        names = {*(dict(known) if hasattr(known, "get") else known), *([""] if key in _MAY_BE_EMPTY else ())}
        value, words = get(key), f"{'a list of some' if key in _LISTS else 'one'} of {', '.join(sorted(names))}"
        for name in value if key in _LISTS and isinstance(value, list | tuple) else [value]:
            if not isinstance(name, str) or name not in names:
                raise wrong(key, words, near(str(name), names))
    for small, large in _AT_MOST.items():
        if get(small) > get(large):
            raise wrong(small, f"at most {large} ({get(large)})")
    for one, other in _AS_MANY.items():
        if len(get(one)) != len(get(other)):
            raise wrong(one, f"as long as {other} ({len(get(other))})")
    if sources.get("SOLVER.MAX_ITER") == "" and get("SOLVER.EPOCHS") and sources.get("SOLVER.EPOCHS") != "":
        raise wrong("SOLVER.MAX_ITER", f"left out, or beside SOLVER.EPOCHS 0.0: EPOCHS {cfg.SOLVER.EPOCHS} sets it")
    if cfg.INPUT.MOSAIC.SIZE < 4 * max(cfg.INPUT.MOSAIC.GRIDS):
        raise wrong("INPUT.MOSAIC.SIZE", f"at least 4 px for each of the tiles of GRIDS {list(cfg.INPUT.MOSAIC.GRIDS)}")
    if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1 and torch.cuda.is_available():
        remedy = 'hide the GPUs with CUDA_VISIBLE_DEVICES="", or train on them'
        raise UserError(f"MODEL.DEVICE is cpu, but processes on a machine with GPUs communicate by NCCL: {remedy}.")
