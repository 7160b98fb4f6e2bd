"""Configs: every file loads and builds on what it should, and says the numbers of its row."""

import re
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, ROI_HEADS_REGISTRY

from clim.config import add_clim_config
from clim.methods import METHOD_REGISTRY
from clim.modeling import BOX_PREDICTOR_REGISTRY
from clim.modeling.vocabulary import class_mask

ROOT = Path(__file__).parents[1]
MSRA = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
FILES = sorted(str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.yaml"))


def leaves(node, prefix=""):
    for key, value in node.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def changed(cfg, base):
    base = dict(leaves(base))
    return {key: value for key, value in leaves(cfg) if base.get(key, ...) != value}


def test_every_key_of_clim_has_a_default_and_detectron2s_are_untouched():
    plain, ours = get_cfg(), get_cfg()
    add_clim_config(ours)
    added = set(dict(leaves(ours))) - set(dict(leaves(plain)))
    assert {"MODEL.OPEN_VOCAB.TEMPERATURE", "MODEL.METHOD.DETIC.BIAS", "INPUT.MOSAIC.GRIDS"} <= added
    kept = {key: value for key, value in leaves(ours) if key not in added}
    assert kept == dict(leaves(plain))


@pytest.mark.parametrize("file", FILES)
def test_every_file_loads_and_names_what_exists(file, load_cfg):
    cfg = load_cfg(file)
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    assert cfg.MODEL.PROPOSAL_GENERATOR.NAME in PROPOSAL_GENERATOR_REGISTRY
    assert cfg.MODEL.ROI_HEADS.NAME in ROI_HEADS_REGISTRY
    assert cfg.MODEL.ROI_BOX_HEAD.PREDICTOR in BOX_PREDICTOR_REGISTRY
    assert not cfg.MODEL.METHOD.NAME or cfg.MODEL.METHOD.NAME in METHOD_REGISTRY
    pairs = cfg.DATALOADER.CAPTIONS_PER_GPU + cfg.DATALOADER.MOSAICS_PER_GPU
    regions = cfg.DATALOADER.REGIONS_PER_GPU
    assert (pairs + regions > 0) == bool(cfg.MODEL.METHOD.NAME)
    assert (not pairs or cfg.DATASETS.CAPTIONS) and (not regions or cfg.DATASETS.REGIONS)


@pytest.fixture(scope="module")
def folders(load_cfg):
    """OUTPUT_DIR of every file."""
    return [load_cfg(file).OUTPUT_DIR for file in FILES]


@pytest.mark.parametrize("file", [f for f in FILES if "Base" not in f])
def test_output_folders_are_the_rows_own(file, folders, load_cfg):
    assert folders.count(load_cfg(file).OUTPUT_DIR) == 1


@pytest.mark.parametrize("file", FILES)
def test_what_a_row_starts_from_is_what_another_row_writes(file, folders, load_cfg):
    cfg = load_cfg(file)
    starts = {"model_final.pth": cfg.MODEL.WEIGHTS, "clip.pt": cfg.MODEL.IMAGE_ENCODER.PRETRAINED}
    for name, path in starts.items():
        if path.startswith("output/"):
            assert Path(path).name == name and str(Path(path).parent) in folders


@pytest.mark.parametrize(
    "file", ["BoxSup_C4.yaml", "Detic_C4.yaml", "Detic_CLIM_C4.yaml", "Detic_C4_official.yaml"]
)
def test_the_detector_of_ovcoco(file, load_cfg):
    cfg = load_cfg(file)
    model = cfg.MODEL
    assert (model.ROI_HEADS.NUM_CLASSES, model.OPEN_VOCAB.BASE_CLASSES) == (80, "ovcoco")
    assert model.PIXEL_MEAN == [103.53, 116.28, 123.675] and model.PIXEL_STD == [1.0, 1.0, 1.0]
    assert (cfg.INPUT.FORMAT, model.BACKBONE.FREEZE_AT, model.RESNETS.NORM) == ("BGR", 2, "FrozenBN")
    assert (
        model.RESNETS.DEPTH == 50 and model.RESNETS.STRIDE_IN_1X1 and model.RESNETS.OUT_FEATURES == ["res4"]
    )
    assert model.ANCHOR_GENERATOR.SIZES == [[32, 64, 128, 256, 512]]
    assert model.ANCHOR_GENERATOR.ASPECT_RATIOS == [[0.5, 1.0, 2.0]]
    rpn = model.RPN
    assert (rpn.PRE_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TRAIN) == (12000, 2000)
    assert (rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST, rpn.NMS_THRESH) == (6000, 1000, 0.7)
    assert (rpn.BATCH_SIZE_PER_IMAGE, rpn.POSITIVE_FRACTION, rpn.IOU_THRESHOLDS) == (256, 0.5, [0.3, 0.7])
    heads = model.ROI_HEADS
    assert (heads.BATCH_SIZE_PER_IMAGE, heads.POSITIVE_FRACTION, heads.IOU_THRESHOLDS) == (512, 0.25, [0.5])
    assert (heads.SCORE_THRESH_TEST, heads.NMS_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE) == (0.05, 0.5, 100)
    assert heads.PROPOSAL_APPEND_GT
    head = model.ROI_BOX_HEAD
    assert (head.POOLER_TYPE, head.POOLER_RESOLUTION, head.BBOX_REG_WEIGHTS) == (
        "ROIAlignV2", 14, (10.0, 10.0, 5.0, 5.0),
    )  # fmt: skip
    assert head.SMOOTH_L1_BETA == rpn.SMOOTH_L1_BETA == 0.0  # L1
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN) == ((800,), 1333)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.RANDOM_FLIP) == (
        800,
        1333,
        "horizontal",
    )
    solver = cfg.SOLVER
    assert (solver.BASE_LR, solver.MOMENTUM, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == (
        0.02,
        0.9,
        1e-4,
        0,
    )
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.GAMMA) == (1000, 0.001, 0.1)
    assert solver.REFERENCE_WORLD_SIZE == 8 and solver.AMP.ENABLED and solver.OPTIMIZER == "SGD"
    assert cfg.DATASETS.TRAIN == ("coco_zeroshot_train_oriorder",)
    assert cfg.DATASETS.TEST == ("coco_generalized_zeroshot_val",)
    assert (cfg.INPUT.CAPTION.SHORT_SIDE, cfg.INPUT.CAPTION.LONG_SIDE) == (400, 667)


@pytest.mark.parametrize(
    "file, sizes, schedule, tags",
    [
        ("BoxSup_C4.yaml", (2, 0, 0), (90_000, (60_000, 80_000)), None),
        ("Detic_C4_caption.yaml", (2, 4, 0), (45_000, (30_000, 40_000)), False),
        ("Detic_C4.yaml", (2, 4, 0), (45_000, (30_000, 40_000)), True),
        ("Detic_CLIM_C4_caption.yaml", (2, 2, 2), (45_000, (30_000, 40_000)), False),
        ("Detic_CLIM_C4.yaml", (2, 2, 2), (45_000, (30_000, 40_000)), True),
    ],
)
def test_the_clim_releases_rows(file, sizes, schedule, tags, load_cfg):
    cfg = load_cfg(file)
    loader, detic = cfg.DATALOADER, cfg.MODEL.METHOD.DETIC
    assert (loader.DETECTION_PER_GPU, loader.CAPTIONS_PER_GPU, loader.MOSAICS_PER_GPU) == sizes
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.CLIP_GLOBAL_NORM) == (*schedule, 35.0)
    assert (cfg.MODEL.OPEN_VOCAB.TEMPERATURE, cfg.MODEL.OPEN_VOCAB.TRAIN_BIAS) == (25.0, [-20.0])
    assert cfg.MODEL.VOCABULARY.EMBEDDINGS == "metadata/coco_clip_hand_craft.npy"
    assert not cfg.MODEL.OPEN_VOCAB.FP32_HEADS and loader.ALTERNATE == ()
    if tags is None:
        assert cfg.MODEL.METHOD.NAME == ""
        return
    assert cfg.MODEL.WEIGHTS == "output/BoxSup_C4/model_final.pth"
    assert (detic.TEMPERATURE, detic.BIAS, detic.CAPTION_WEIGHT, detic.CAPTION_BASE_REGIONS) == (
        25,
        [-20],
        0.1,
        4,
    )
    assert (detic.CAPTION_NEGATIVES, detic.NEGATIVE_WEIGHT, detic.QUEUE_LENGTH) == ("queue", 0.125, 256)
    assert detic.TAG_WEIGHT == (0.1 / 3 if tags else 0)
    assert (detic.TAG_TARGET, detic.TAG_MIN_IOF, detic.TAG_TOPK) == ("multi_hot", 0.3, 128)
    mosaic = cfg.INPUT.MOSAIC
    assert (mosaic.GRIDS, mosaic.SIZE, mosaic.FLIP, mosaic.GROUPS) == ([2, 3, 4], 800, 0.5, 4)
    assert (mosaic.FILLING, mosaic.PAD_VALUE, mosaic.PARTNERS) == ("fit", 114, "random")


@pytest.mark.parametrize(
    "file, caption, tag, proposals",
    [
        ("Detic_C4_official.yaml", 0.1, 0.1, 32),
        ("Detic_C4_official_caption.yaml", 0.1, 0.0, 32),
        ("Detic_C4_official_max-size.yaml", 0.0, 0.1, 31),
    ],
)
def test_official_detics_rows(file, caption, tag, proposals, load_cfg):
    cfg = load_cfg(file)
    detic, loader = cfg.MODEL.METHOD.DETIC, cfg.DATALOADER
    assert (cfg.MODEL.OPEN_VOCAB.TEMPERATURE, cfg.MODEL.OPEN_VOCAB.TRAIN_BIAS) == (50.0, [])
    assert cfg.MODEL.OPEN_VOCAB.FP32_HEADS
    assert cfg.MODEL.VOCABULARY.EMBEDDINGS == "metadata/coco_clip_a+cname.npy"
    assert cfg.MODEL.WEIGHTS == "output/BoxSup_C4_official/model_final.pth"
    assert (loader.DETECTION_PER_GPU, loader.CAPTIONS_PER_GPU, loader.MOSAICS_PER_GPU) == (2, 8, 0)
    assert loader.ALTERNATE == (1, 1) and not loader.FILTER_EMPTY_ANNOTATIONS
    assert (detic.TEMPERATURE, detic.BIAS, detic.CAPTION_BASE_REGIONS) == (50.0, [], 0)
    assert (detic.CAPTION_NEGATIVES, detic.NEGATIVE_WEIGHT, detic.TAG_TARGET) == ("gather", 1.0, "per_tag")
    assert (detic.CAPTION_WEIGHT, detic.TAG_WEIGHT, detic.TAG_TOPK) == (caption, tag, proposals)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (90_000, (60_000, 80_000))
    assert cfg.SOLVER.CLIP_GLOBAL_NORM == 0.0 and not cfg.SOLVER.CLIP_GRADIENTS.ENABLED


@pytest.mark.parametrize(
    "file, captions, size, encoder, crop, betas, epochs, gpus, ensemble",
    [
        ("CLIP_CLIM_ViTB16_COCO.yaml", "coco_caption_train", 1024, "ViT-B-16", 224, (0.9, 0.98), 100, 4, 0.7),
        (
            "ablations/clip_canvas640.yaml",
            "coco_caption_train",
            640,
            "ViT-B-16",
            224,
            (0.9, 0.98),
            100,
            4,
            0.7,
        ),
        (
            "ablations/clip_canvas320.yaml",
            "coco_caption_train",
            320,
            "ViT-B-16",
            224,
            (0.9, 0.98),
            100,
            4,
            0.7,
        ),
        ("CLIP_CLIM_ViTB16_CC3M.yaml", "cc3m_v1_train", 1024, "ViT-B-16", 224, (0.9, 0.98), 3, 4, 0.7),
        ("CLIP_CLIM_RN50x64_CC3M.yaml", "cc3m_v1_train", 1024, "RN50x64", 448, (0.9, 0.999), 3, 8, 0.5),
    ],
)
def test_clips_rows(file, captions, size, encoder, crop, betas, epochs, gpus, ensemble, load_cfg):
    """CLIM release, clip_fvlm §2, §3."""
    cfg = load_cfg(file)
    image, text, solver = cfg.MODEL.IMAGE_ENCODER, cfg.MODEL.TEXT, cfg.SOLVER
    assert image.ARCHITECTURE == text.NAME == f"{encoder}-quickgelu"
    assert image.PRETRAINED == text.PRETRAINED == "openai"
    assert image.UNLOCKED_BLOCKS == (6 if encoder == "ViT-B-16" else 1) and image.REGIONS == "v2"
    assert text.DIM == (512 if encoder == "ViT-B-16" else 1024)
    assert (cfg.MODEL.METHOD.NAME, cfg.MODEL.METHOD.CLIP.MAX_SCALE) == ("ClipContrast", 100)
    assert cfg.DATASETS.CAPTIONS == (captions,) and cfg.DATASETS.TEST == ("coco_panoptic_val_regions",)
    assert (cfg.INPUT.FORMAT, cfg.INPUT.CAPTION.CROP) == ("RGB", crop)
    assert (cfg.INPUT.CAPTION.CROP_SCALE, cfg.INPUT.CAPTION.CROP_RATIO) == ([0.9, 1.0], [3 / 4, 4 / 3])
    mosaic, regions = cfg.INPUT.MOSAIC, cfg.INPUT.REGIONS
    assert (mosaic.COMPOSE, mosaic.GRIDS, mosaic.SIZE) == ("device", [2, 3, 4], size)
    assert (regions.SIZE, regions.MIN_AREA, regions.MAX_AREA, regions.MAX_BOXES) == (1024, 8**2, 1024**2, 100)
    assert regions.CROWDS and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 133
    loader = cfg.DATALOADER
    assert (loader.CAPTIONS_PER_GPU, loader.MOSAICS_PER_GPU, loader.DETECTION_PER_GPU) == (32, 0, 0)
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY) == ("ADAMW", 1e-5, 0.1)
    assert tuple(solver.BETAS) == betas and solver.EPS == (1e-6 if encoder == "ViT-B-16" else 1e-8)
    assert (solver.EPOCHS, solver.WARMUP_ITERS, solver.REFERENCE_WORLD_SIZE) == (epochs, 1000, gpus)
    assert (solver.WEIGHT_ENSEMBLE, solver.AMP.ENABLED, solver.CLIP_GLOBAL_NORM) == (ensemble, True, 0)


def test_the_comparators_row(load_cfg):
    """Boxes in place of pairs, all else CLIM's (clip_fvlm §5)."""
    cfg = load_cfg("CLIP_RegionCLIP_ViTB16_COCO.yaml")
    assert set(changed(cfg, load_cfg("CLIP_CLIM_ViTB16_COCO.yaml"))) == {
        "MODEL.METHOD.NAME", "MODEL.METHOD.REGION_CLIP.EMBEDDINGS", "DATASETS.REGIONS", "INPUT.MOSAIC.COMPOSE",
        "DATALOADER.CAPTIONS_PER_GPU", "DATALOADER.REGIONS_PER_GPU", "SOLVER.REFERENCE_WORLD_SIZE",
        "SOLVER.EPOCHS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD", "OUTPUT_DIR",
    }  # fmt: skip
    assert (cfg.MODEL.METHOD.NAME, cfg.MODEL.METHOD.REGION_CLIP.CLASSES) == ("RegionClip", 100)
    solver, loader = cfg.SOLVER, cfg.DATALOADER
    assert (loader.REGIONS_PER_GPU, solver.REFERENCE_WORLD_SIZE, solver.EPOCHS) == (2, 8, 6)


@pytest.mark.parametrize(
    "file, weights",
    [
        ("FVLM_ViTB16_CLIP_COCO.yaml", "openai"),
        ("FVLM_ViTB16_CLIM_COCO.yaml", "output/CLIP_CLIM_ViTB16_COCO/clip.pt"),
        ("FVLM_ViTB16_RegionCLIP_COCO.yaml", "output/CLIP_RegionCLIP_ViTB16_COCO/clip.pt"),
    ],
)
def test_fvlms_rows(file, weights, load_cfg):
    """CLIM release, clip_fvlm §4; rows differ in the encoder's weights alone."""
    cfg = load_cfg(file)
    assert set(changed(cfg, load_cfg("Base_FVLM_OVCOCO.yaml"))) <= {
        "MODEL.IMAGE_ENCODER.PRETRAINED",
        "OUTPUT_DIR",
    }
    model, fvlm, solver = cfg.MODEL, cfg.MODEL.FVLM, cfg.SOLVER
    assert (model.IMAGE_ENCODER.PRETRAINED, model.IMAGE_ENCODER.ARCHITECTURE) == (
        weights,
        "ViT-B-16-quickgelu",
    )
    assert (fvlm.ALPHA, fvlm.BETA, fvlm.TEMPERATURE, fvlm.DETECTOR_TEMPERATURE) == (0.1, 0.8, 75, 50)
    assert (fvlm.BACKGROUND_WEIGHT, fvlm.UPSCALING) == (0.6, "deconvolution")
    assert model.FPN.NORM == model.ROI_BOX_HEAD.NORM == "SyncBN" and model.FPN.OUT_CHANNELS == 256
    rpn, heads, head = model.RPN, model.ROI_HEADS, model.ROI_BOX_HEAD
    assert rpn.CONV_DIMS == [-1, -1] and (rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST) == (1000, 1000)
    assert (rpn.BATCH_SIZE_PER_IMAGE, rpn.POSITIVE_FRACTION, rpn.IOU_THRESHOLDS) == (256, 0.5, [0.3, 0.7])
    assert (heads.BATCH_SIZE_PER_IMAGE, heads.POSITIVE_FRACTION, heads.IOU_THRESHOLDS) == (512, 0.25, [0.5])
    assert (heads.SCORE_THRESH_TEST, heads.NMS_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE) == (0.01, 0.4, 100)
    assert (head.NUM_CONV, head.CONV_DIM, head.NUM_FC, head.FC_DIM) == (4, 256, 2, 1024)
    assert (head.POOLER_RESOLUTION, head.POOLER_SAMPLING_RATIO, head.POOLER_TYPE) == (7, 0, "ROIAlignV2")
    assert head.BBOX_REG_WEIGHTS == (10, 10, 5, 5) and head.SMOOTH_L1_BETA == rpn.SMOOTH_L1_BETA == 0
    assert cfg.INPUT.LSJ.SIZE == cfg.INPUT.MIN_SIZE_TEST == cfg.INPUT.MAX_SIZE_TEST == 640
    assert (cfg.INPUT.FORMAT, cfg.INPUT.LSJ.SCALE) == ("RGB", [0.1, 2.0])
    epoch = -(-107_761 // (8 * cfg.DATALOADER.DETECTION_PER_GPU))
    assert (solver.MAX_ITER, solver.CHECKPOINT_PERIOD, solver.STEPS) == (3 * epoch, epoch, ())
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == (
        "ADAMW", 1e-4, 0.1, 0.1,
    )  # fmt: skip
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.CLIP_GLOBAL_NORM) == (250, 0.001, 1)
    assert (cfg.DATASETS.TEST, cfg.TEST.PROTOCOL) == (("coco_ovd_val",), "two_run")


@pytest.mark.parametrize(
    "file, sizes, schedule, start",
    [
        ("BARON_BoxSup_C4.yaml", (2, 0, 0), (90_000, (60_000, 80_000)), MSRA),
        ("BARON_C4_joint.yaml", (2, 2, 0), (90_000, (60_000, 80_000)), MSRA),
        ("BARON_C4.yaml", (2, 4, 0), (45_000, (30_000, 40_000)), "output/BARON_BoxSup_C4/model_final.pth"),
        (
            "BARON_CLIM_C4.yaml",
            (2, 2, 2),
            (45_000, (30_000, 40_000)),
            "output/BARON_BoxSup_C4/model_final.pth",
        ),
    ],
)
def test_barons_rows(file, sizes, schedule, start, load_cfg):
    """baron §2, §3, §4, §5, §6; rows on the CLIM release's detector, except for the classifier."""
    cfg = load_cfg(file)
    loader, model, ov = cfg.DATALOADER, cfg.MODEL, cfg.MODEL.OPEN_VOCAB
    assert (loader.DETECTION_PER_GPU, loader.CAPTIONS_PER_GPU, loader.MOSAICS_PER_GPU) == sizes
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.CLIP_GLOBAL_NORM) == (*schedule, 35.0)
    assert model.WEIGHTS == start and model.METHOD.NAME == ("Baron" if sizes[1] else "")
    assert (ov.CLASSIFIER, ov.WORDS, ov.WORD_DROPOUT) == ("pseudo_words", 4, 0.5)
    assert (ov.TEMPERATURE, ov.TRAIN_BIAS, ov.BASE_CLASSES) == (25.0, [-20.0], "ovcoco")
    assert model.VOCABULARY.EMBEDDINGS == "metadata/coco_clip_hand_craft_attn12.npy"
    assert (model.TEXT.NAME, model.TEXT.DIM, model.TEXT.WORD_DIM) == ("ViT-B-32-quickgelu", 512, 512)
    assert cfg.INPUT.MOSAIC.GRIDS == [2, 3, 4] and cfg.INPUT.MOSAIC.SIZE == 800
    allowed = ("MODEL.OPEN_VOCAB.", "MODEL.VOCABULARY.", "MODEL.METHOD.NAME", "MODEL.WEIGHTS", "DATALOADER.")
    for key in changed(cfg, load_cfg("BoxSup_C4.yaml")):
        solver = ("SOLVER.STEPS", "SOLVER.MAX_ITER", "SOLVER.WEIGHT_DECAY_NORM")
        assert key.startswith((*allowed, *solver, "INPUT.MOSAIC.GROUPS", "INPUT.CAPTION.", "OUTPUT_DIR"))
    caption = (800, 1333) if file == "BARON_C4_joint.yaml" else (400, 667)
    assert (cfg.INPUT.CAPTION.SHORT_SIDE, cfg.INPUT.CAPTION.LONG_SIDE) == caption
    assert cfg.SOLVER.WEIGHT_DECAY_NORM == cfg.SOLVER.WEIGHT_DECAY == 1e-4


def test_ovrcnns_first_stage(load_cfg):
    """Official mmss_v07.yaml, ovrcnn §1; + CLIM as ovrcnn §3 has it."""
    cfg = load_cfg("OVRCNN_pretrain.yaml")
    model, solver, loader = cfg.MODEL, cfg.SOLVER, cfg.DATALOADER
    assert (model.META_ARCHITECTURE, model.METHOD.NAME) == ("GridTextModel", "Grounding")
    assert (model.IMAGE_ENCODER.NAME, model.RESNETS.DEPTH) == ("ResNetGrid", 50)
    assert (model.BACKBONE.FREEZE_AT, model.RESNETS.NORM, model.RESNETS.STRIDE_IN_1X1) == (
        0,
        "FrozenBN",
        True,
    )
    assert model.WEIGHTS == "detectron2://ImageNetPretrained/MSRA/R-50.pkl" and model.TEXT.DIM == 768
    assert model.PIXEL_MEAN == [102.9801, 115.9465, 122.7717] and model.PIXEL_STD == [1, 1, 1]
    caption = cfg.INPUT.CAPTION
    assert (cfg.INPUT.FORMAT, caption.SHORT_SIDE, caption.LONG_SIDE) == ("BGR", 800, 1333)
    assert (caption.FLIP, caption.CROP, loader.ASPECT_RATIO_GROUPING) == (0.5, 0, True)
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.MOMENTUM, solver.GAMMA) == ("SGD", 0.01, 0.9, 0.1)
    assert (solver.MAX_ITER, solver.STEPS) == (40_000, (20_000, 35_000))
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.WARMUP_METHOD) == (500, 1 / 3, "linear")
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.WEIGHT_DECAY_BIAS) == (1e-4, 1e-4, 0)
    assert (solver.BIAS_LR_FACTOR, solver.CLIP_GLOBAL_NORM, solver.AMP.ENABLED) == (2, 5, False)
    assert (solver.REFERENCE_WORLD_SIZE, loader.CAPTIONS_PER_GPU, loader.DETECTION_PER_GPU) == (8, 8, 0)
    assert (cfg.DATASETS.CAPTIONS, cfg.DATASETS.TEST) == (("coco_caption_train",), ())
    clim = load_cfg("OVRCNN_CLIM_pretrain.yaml")
    assert set(changed(clim, cfg)) == {
        "MODEL.METHOD.GROUNDING.CONTRAST_GROUP", "INPUT.MOSAIC.SIZE", "INPUT.MOSAIC.FILLING", "INPUT.MOSAIC.GROUPS",
        "DATALOADER.CAPTIONS_PER_GPU", "DATALOADER.MOSAICS_PER_GPU", "OUTPUT_DIR",
    }  # fmt: skip
    assert (clim.DATALOADER.CAPTIONS_PER_GPU, clim.DATALOADER.MOSAICS_PER_GPU) == (4, 4)
    mosaic = clim.INPUT.MOSAIC
    assert (mosaic.GRIDS, mosaic.SIZE, mosaic.FILLING, mosaic.CROP_SCALE) == (
        [2, 3, 4], 768, "crop", [0.9, 1],
    )  # fmt: skip


@pytest.mark.parametrize("clim, baseline", [
    ("Detic_CLIM_C4.yaml", "Detic_C4.yaml"), ("Detic_CLIM_C4_caption.yaml", "Detic_C4_caption.yaml"),
    ("BARON_CLIM_C4.yaml", "BARON_C4.yaml"), ("mini/detic_clim.yaml", "mini/detic.yaml"),
    ("mini/baron_clim.yaml", "mini/baron.yaml"),
])  # fmt: skip
def test_clim_is_a_config_change(clim, baseline, load_cfg):
    """From a method to the method + CLIM only batch sizes change."""
    difference = changed(load_cfg(clim), load_cfg(baseline))
    assert set(difference) == {"DATALOADER.CAPTIONS_PER_GPU", "DATALOADER.MOSAICS_PER_GPU", "OUTPUT_DIR"}


def test_ovrcnns_second_stage(load_cfg):
    """Official zeroshot_v06.yaml and its defaults, ovrcnn §1.5, §2, §6; + CLIM differs in what it starts from."""
    cfg = load_cfg("OVRCNN_C4.yaml")
    assert set(changed(load_cfg("OVRCNN_CLIM_C4.yaml"), cfg)) == {"MODEL.WEIGHTS", "OUTPUT_DIR"}
    model, solver, loader = cfg.MODEL, cfg.SOLVER, cfg.DATALOADER
    assert model.WEIGHTS == "output/OVRCNN_pretrain/model_final.pth" and model.METHOD.NAME == ""
    assert model.PIXEL_MEAN == [102.9801, 115.9465, 122.7717] and model.PIXEL_STD == [1, 1, 1]
    assert (model.BACKBONE.FREEZE_AT, model.RESNETS.NORM, model.RESNETS.STRIDE_IN_1X1) == (
        2,
        "FrozenBN",
        True,
    )
    rpn, heads, head = model.RPN, model.ROI_HEADS, model.ROI_BOX_HEAD
    assert (rpn.SMOOTH_L1_BETA, rpn.BOUNDARY_THRESH, rpn.NMS_THRESH) == (1 / 9, 0, 0.7)
    assert (rpn.BATCH_SIZE_PER_IMAGE, rpn.POSITIVE_FRACTION, rpn.IOU_THRESHOLDS) == (256, 0.5, [0.3, 0.7])
    assert (rpn.PRE_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TRAIN) == (12000, 2000)
    assert (rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST) == (6000, 1000)
    assert model.ANCHOR_GENERATOR.OFFSET == 0.5
    assert model.ANCHOR_GENERATOR.SIZES == [[32, 64, 128, 256, 512]]
    assert (heads.BATCH_SIZE_PER_IMAGE, heads.POSITIVE_FRACTION, heads.IOU_THRESHOLDS) == (512, 1.0, [0.5])
    assert (heads.SCORE_THRESH_TEST, heads.NMS_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE) == (0.05, 0.5, 100)
    assert heads.PROPOSAL_APPEND_GT and heads.NUM_CLASSES == 80 and model.OPEN_VOCAB.BASE_CLASSES == "ovcoco"
    assert (head.PREDICTOR, head.CLS_AGNOSTIC_BBOX_REG, head.SMOOTH_L1_BETA) == (
        "OVRCNNOutputLayers",
        True,
        1,
    )
    assert (head.POOLER_TYPE, head.POOLER_RESOLUTION, head.POOLER_SAMPLING_RATIO) == ("ROIAlign", 14, 0)
    assert head.BBOX_REG_WEIGHTS == (10, 10, 5, 5)
    assert (model.OVRCNN.BACKGROUND_WEIGHT, model.OVRCNN.TEST_CLASSES) == (0.2, "ovcoco")
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.MOMENTUM, solver.GAMMA) == ("SGD", 0.005, 0.9, 0.1)
    assert (solver.MAX_ITER, solver.STEPS) == (150_000, (60_000, 120_000))
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR) == (500, 1 / 3)
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.WEIGHT_DECAY_BIAS) == (1e-4, 1e-4, 0)
    assert (solver.BIAS_LR_FACTOR, solver.CLIP_GLOBAL_NORM, solver.AMP.ENABLED) == (2, 0, False)
    assert (solver.REFERENCE_WORLD_SIZE, loader.DETECTION_PER_GPU) == (8, 1)
    assert (cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN) == ("BGR", (800,), 1333)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (
        ("coco_zeroshot_train_oriorder",), ("coco_generalized_zeroshot_val",),
    )  # fmt: skip


def test_the_data_guide_names_every_file_that_configs_read():
    texts = [(ROOT / "configs" / file).read_text() for file in FILES]
    files = {name for text in texts for name in re.findall(r'"metadata/([^"]+)"', text)}
    guide = (ROOT / "datasets/README.md").read_text()
    assert len(files) > 8 and not [name for name in files if name not in guide]


def test_mini_runs_mean_what_they_say(load_cfg):
    for file in FILES:
        if file.startswith("mini"):
            cfg = load_cfg(file)
            assert cfg.SOLVER.REFERENCE_WORLD_SIZE == 0
            assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 65
            if cfg.DATALOADER.DETECTION_PER_GPU:
                assert class_mask(cfg).sum() == 48
