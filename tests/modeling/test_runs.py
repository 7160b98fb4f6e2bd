"""Shipped configs on a few images: trained, evaluated, loaded again, asked for other names; two processes."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from detectron2.modeling import build_model

from clim.checkpoints import SafeCheckpointer
from clim.data.categories import BASE_IDS, COCO_CATEGORIES, COCO_NAMES, NOVEL_IDS
from clim.data.images import read_image
from clim.detector import Detector
from clim.engine import Trainer
from clim.errors import UserError
from clim.evaluation import evaluate
from clim.text import build_text_tower, word_piece_means
from clim.text.clip import clip_config
from clim_commands.responder import Responder
from mini.concepts import NAMES
from mini.lvis import build_mini_lvis

RENAMED = [*(name for _, name in COCO_CATEGORIES[:6]), "unicorn"]
FVLM_FIGURES = {f"{metric}_{run}_run" for metric in ("AP50", "AP", "AR") for run in ("novel", "base")}
LVIS_LOSSES = {
    *(f"loss_{part}_stage{stage}" for part in ("cls", "box_reg") for stage in range(3)), "loss_mask",
    *(f"loss_centernet_{part}" for part in ("loc", "agn_pos", "agn_neg")),
    *(f"loss_{part}{source}" for part in ("caption", "tag") for source in ("", "_mosaic")),
}  # fmt: skip
CLIP_PARTS = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
PROGRAM = Path(__file__).parent / "image_text_ranks.py"
spec = importlib.util.spec_from_file_location("image_text_ranks", PROGRAM)
image_text_ranks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(image_text_ranks)


def train(cfg):
    """(trainer at its end, copy of its model's state at its start)."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    start = {name: value.clone() for name, value in trainer.raw_model.state_dict().items()}
    trainer.train()
    return trainer, start


def read_json(path):
    return json.loads(path.read_text())


def evaluate_file(cfg, weights):
    """Detections of a model built anew from a file."""
    model = build_model(cfg)
    SafeCheckpointer(model, "").load(weights)
    evaluate(cfg, model)
    return read_detections(Path(cfg.OUTPUT_DIR))


def read_detections(output):
    (path,) = output.glob("inference/*/*_instances_results.json")
    return read_json(path)


def ask_for_other_names(cfg, root):
    """(detector of the names RENAMED, its detections on a photo)."""
    detector = Detector(cfg)
    assert detector.names == RENAMED
    assert {RENAMED[i] for i in detector.novel} == {"airplane", "bus", "unicorn"}
    photo = read_json(root / "coco/annotations/instances_val2017.json")["images"][0]["file_name"]
    (found,) = detector.detect([read_image(photo, fmt=detector.input_format).image], threshold=0.0)
    assert len(found) > 0 and set(found.pred_classes.tolist()) <= set(range(7))
    return detector, found


# ---- OV-LVIS, on mini OV-LVIS


@pytest.mark.slow
def test_lvis(make_run, tiny_json, tmp_path):
    build_mini_lvis(tmp_path, seed=7, num_train=8, num_val=2, num_pairs=16, workers=1)
    keys = {
        "MODEL.WEIGHTS": "", "MODEL.ROI_HEADS.NUM_CLASSES": 65, "MODEL.VOCABULARY.EMBEDDINGS": "",
        "MODEL.OPEN_VOCAB.BASE_CLASSES": "mini_lvis/lvis/instances_train_cat_info.json",
        "MODEL.TEXT.NAME": tiny_json("vit"), "MODEL.TEXT.PRETRAINED": "", "MODEL.TEXT.DIM": 12,
        "MODEL.FPN.OUT_CHANNELS": 64, "MODEL.ROI_BOX_HEAD.FC_DIM": 32, "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "MODEL.CENTERNET.POST_NMS_TOPK_TRAIN": 20, "MODEL.CENTERNET.POST_NMS_TOPK_TEST": 10,
        "INPUT.LSJ.SIZE": 128, "INPUT.CAPTION.JITTER_SIZE": 64, "INPUT.MOSAIC.SIZE": 128, "INPUT.MIN_SIZE_TEST": 96,
        "DATALOADER.DETECTION_PER_GPU": 1, "DATALOADER.CAPTIONS_PER_GPU": 1, "DATALOADER.MOSAICS_PER_GPU": 1,
        "DATASETS.TRAIN": ("mini_lvis_train",), "DATASETS.CAPTIONS": ("mini_lvis_pairs",),
        "DATASETS.TEST": ("mini_lvis_val",), "TEST.DETECTIONS_PER_IMAGE": 20,
    }  # fmt: skip
    config = make_run("lvis/Detic_CLIM_C2.yaml", tmp_path, keys).config
    train(config())
    lines = [json.loads(line) for line in (tmp_path / "output/metrics.json").read_text().splitlines()]
    assert {name for name in lines[0] if name.startswith("loss_")} == LVIS_LOSSES
    figures = read_json(tmp_path / "output/evaluation.json")
    assert {"AP", "APr", "APc", "APf"} < set(figures["segm"]) == set(figures["bbox"])
    found = read_detections(tmp_path / "output")
    assert len(found) == 40 and all("segmentation" in detection for detection in found)

    weights = str(tmp_path / "output/model_final.pth")
    assert evaluate_file(config("OUTPUT_DIR", tmp_path / "again"), weights) == found
    asked = config("MODEL.WEIGHTS", weights, "MODEL.VOCABULARY.NAMES", ["dog", "unicorn"])
    image = read_image(next((tmp_path / "mini_lvis/val").glob("*.jpg"))).image
    (instances,) = Detector(asked).detect([image], threshold=0.0)
    assert instances.pred_masks.shape == (len(instances), 256, 256) and len(instances) > 0
    assert set(instances.pred_classes.tolist()) <= {0, 1}


# ---- F-VLM


@pytest.fixture
def fvlm(make_run, tiny_coco, tiny_json):
    keys = {
        "MODEL.IMAGE_ENCODER.PRETRAINED": "", "MODEL.VOCABULARY.EMBEDDINGS": "",
        "MODEL.IMAGE_ENCODER.ARCHITECTURE": tiny_json("vit", vision={"patch_size": 16, "layers": 6}),
        "MODEL.TEXT.NAME": tiny_json("vit"), "MODEL.TEXT.PRETRAINED": "", "MODEL.TEXT.DIM": 12,
        "MODEL.FPN.OUT_CHANNELS": 16, "MODEL.ROI_BOX_HEAD.CONV_DIM": 16, "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 20, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0, "INPUT.LSJ.SIZE": 64,
        "INPUT.MIN_SIZE_TEST": 64, "INPUT.MAX_SIZE_TEST": 64, "DATALOADER.DETECTION_PER_GPU": 2,
    }  # fmt: skip
    return make_run("FVLM_ViTB16_CLIM_COCO.yaml", tiny_coco, keys)


def test_fvlm(fvlm, tiny_coco, tmp_path):
    with pytest.raises(UserError, match="FVLMROIHeads with .* learn from boxes alone: set MODEL.METHOD.NAME"):
        build_model(fvlm.config("MODEL.METHOD.NAME", "Detic"))
    trainer, start = train(fvlm.config())
    lines = [json.loads(line) for line in (tmp_path / "output/metrics.json").read_text().splitlines()]
    assert {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc", "grad_norm"} <= set(lines[0])
    state = trainer.raw_model.state_dict()
    assert all(torch.equal(state[n], value) for n, value in start.items() if n.startswith("backbone.encoder."))
    linear = "roi_heads.box_predictor.cls_score.linear.weight"
    assert not torch.equal(state[linear], start[linear])
    assert set(read_json(tmp_path / "output/evaluation.json")) == FVLM_FIGURES
    detections = read_detections(tmp_path / "output")
    assert len({d["image_id"] for d in detections}) == 3  # the image of unused objects counts too
    assert {d["category_id"] for d in detections} - {*BASE_IDS, *NOVEL_IDS}  # all 80 are predicted

    weights = str(tmp_path / "output/model_final.pth")
    assert evaluate_file(fvlm.config("OUTPUT_DIR", tmp_path / "again"), weights) == detections
    names = ("MODEL.VOCABULARY.NAMES", RENAMED, "MODEL.VOCABULARY.PROMPT", "name")
    detector, _ = ask_for_other_names(fvlm.config("MODEL.WEIGHTS", weights, *names), tiny_coco)
    mask = detector.model.roi_heads.box_predictor.freq_weight
    assert [RENAMED[i] for i in (mask == 0).nonzero().flatten()] == ["airplane", "bus", "unicorn"]


@pytest.mark.slow
def test_fvlm_in_two_processes(fvlm, tmp_path):
    """Gloo knows no SyncBN; every parameter gets its gradient, or the second step would fail."""
    norms = ["MODEL.FPN.NORM", "naiveSyncBN", "MODEL.ROI_BOX_HEAD.NORM", "naiveSyncBN"]
    fvlm.command(*norms, program=("train_net.py", "--num-gpus", "2", "--dist-url", "auto", "--config-file"))
    assert set(read_json(tmp_path / "output/evaluation.json")) == FVLM_FIGURES


@pytest.mark.slow
def test_fvlm_with_masks_in_two_processes(make_run, tiny_json, tmp_path):
    """NAS-FPN and synchronised norms on mini OV-LVIS; the file gives the same detections in one process."""
    build_mini_lvis(tmp_path, seed=7, num_train=8, num_val=2, num_pairs=16, workers=1)
    synchronised = {f"MODEL.{part}.NORM": "naiveSyncBN" for part in ("FPN", "ROI_BOX_HEAD", "RPN")}
    keys = synchronised | {
        "MODEL.IMAGE_ENCODER.PRETRAINED": "", "MODEL.VOCABULARY.EMBEDDINGS": "", "MODEL.ROI_HEADS.NUM_CLASSES": 65,
        "MODEL.IMAGE_ENCODER.ARCHITECTURE": tiny_json("vit", vision={"patch_size": 16, "layers": 6}),
        "MODEL.TEXT.NAME": tiny_json("vit"), "MODEL.TEXT.PRETRAINED": "", "MODEL.TEXT.DIM": 12,
        "MODEL.OPEN_VOCAB.BASE_CLASSES": "mini_lvis_train", "MODEL.ROI_MASK_HEAD.NORM": "naiveSyncBN_N",
        "MODEL.FPN.OUT_CHANNELS": 16, "MODEL.FPN.STACKS": 2, "MODEL.ROI_BOX_HEAD.CONV_DIM": 16,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 32, "MODEL.ROI_MASK_HEAD.CONV_DIM": 16, "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0, "INPUT.LSJ.SIZE": 128, "INPUT.MIN_SIZE_TEST": 128,
        "INPUT.MAX_SIZE_TEST": 128, "DATALOADER.DETECTION_PER_GPU": 2, "SOLVER.EPOCHS": 0.0,
        "SOLVER.STEP_EPOCHS": [], "DATASETS.TRAIN": ("mini_lvis_train",), "DATASETS.TEST": ("mini_lvis_val",),
        "TEST.DETECTIONS_PER_IMAGE": 20,
    }  # fmt: skip
    run = make_run("lvis/FVLM_ViTB16_CLIM_LVIS.yaml", tmp_path, keys)
    run.command(program=("train_net.py", "--num-gpus", "2", "--dist-url", "auto", "--config-file"))
    figures = read_json(tmp_path / "output/evaluation.json")
    assert {"AP", "APr", "APc", "APf"} < set(figures["segm"])
    found = read_detections(tmp_path / "output")
    assert len(found) == 40 and all("segmentation" in detection for detection in found)
    weights = str(tmp_path / "output/model_final.pth")
    again = evaluate_file(run.config("OUTPUT_DIR", tmp_path / "again"), weights)

    def by_image(detections):
        return sorted(detections, key=lambda d: (d["image_id"], -d["score"], d["category_id"]))

    assert [d["category_id"] for d in by_image(again)] == [d["category_id"] for d in by_image(found)]


# ---- OV-RCNN's second stage, from a random file of the first one


def test_ovrcnn(make_run, tiny_coco, tiny_bert, make_encoder, save_stage1, tmp_path):
    tower = build_text_tower(name=str(tiny_bert))
    np.save(tmp_path / "words.npy", word_piece_means(tower, COCO_NAMES).numpy())
    stage1 = save_stage1(make_encoder("resnet", 32), tmp_path)
    keys = {
        "MODEL.WEIGHTS": stage1, "MODEL.VOCABULARY.EMBEDDINGS": tmp_path / "words.npy",
        "MODEL.TEXT.NAME": tiny_bert, "MODEL.TEXT.DIM": 32, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 4,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8, "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.001, "INPUT.MIN_SIZE_TRAIN": (64,), "INPUT.MIN_SIZE_TEST": 64,
    }  # fmt: skip
    config = make_run("OVRCNN_CLIM_C4.yaml", tiny_coco, keys).config
    trainer, start = train(config())
    first = torch.load(stage1)["model"]
    assert torch.equal(start["roi_heads.res5.2.conv3.weight"], first["image_encoder.backbone.res5.2.conv3.weight"])
    kept = {name for name, value in trainer.raw_model.state_dict().items() if torch.equal(value, start[name])}
    learning = {name for name, parameter in trainer.raw_model.named_parameters() if parameter.requires_grad}
    layers = "roi_heads.box_predictor"
    assert {f"{layers}.emb_pred.weight", f"{layers}.emb_pred.bias"} <= kept - learning
    assert {f"{layers}.bbox_pred.weight", "roi_heads.res5.0.conv1.weight"} <= learning - kept
    assert not {name for name in learning if name.startswith(("backbone.stem", "backbone.res2"))}
    assert {"AP50_novel", "AP50_base", "AP50_all"} <= set(read_json(tmp_path / "output/evaluation.json"))
    found = read_detections(tmp_path / "output")
    assert found and {d["category_id"] for d in found} <= {*BASE_IDS, *NOVEL_IDS}  # the 15 others do not compete

    weights = str(tmp_path / "output/model_final.pth")
    assert evaluate_file(config("OUTPUT_DIR", tmp_path / "again"), weights) == found
    novel = config("OUTPUT_DIR", tmp_path / "novel", "MODEL.OVRCNN.TEST_CLASSES", "ovcoco_novel")
    assert {d["category_id"] for d in evaluate_file(novel, weights)} <= {*NOVEL_IDS}
    asked = config("MODEL.WEIGHTS", weights, "MODEL.VOCABULARY.NAMES", RENAMED)
    detector, instances = ask_for_other_names(asked, tiny_coco)
    torch.testing.assert_close(instances.logits.double().sigmoid(), instances.scores)
    words = detector.model.roi_heads.box_predictor.class_embeddings
    torch.testing.assert_close(words[:6], start[f"{layers}.class_embeddings"][:6])

    responder = Responder(config("MODEL.WEIGHTS", weights))
    texts = responder.embed(RENAMED)
    torch.testing.assert_close(texts, words[:-1])
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    assert responder(image, texts, long_side=96).shape == (7, 2, 3)


# ---- CLIP + CLIM


@pytest.fixture
def clip_file(request, tiny_json, random_clip, tmp_path):
    """(json of a tiny CLIP, or of the tower that a test names; its weights in a file of open_clip's training)."""
    architecture, path = tiny_json(getattr(request, "param", "vit")), tmp_path / "published.pt"
    state = {f"module.{name}": value for name, value in random_clip(architecture).state_dict().items()}
    torch.save({"epoch": 6, "name": "clim", "state_dict": state}, path)
    return architecture, str(path)


@pytest.fixture
def clip(make_run, tiny_mini, clip_file):
    architecture, path = clip_file
    keys = {
        "MODEL.IMAGE_ENCODER.ARCHITECTURE": architecture, "MODEL.IMAGE_ENCODER.PRETRAINED": path,
        "MODEL.IMAGE_ENCODER.UNLOCKED_BLOCKS": 2, "MODEL.IMAGE_ENCODER.CHECKPOINTING": True,
        "MODEL.TEXT.NAME": architecture, "MODEL.TEXT.PRETRAINED": path,
        "MODEL.TEXT.DIM": 12, "MODEL.VOCABULARY.NAMES": list(NAMES), "MODEL.VOCABULARY.PROMPT": "name",
        "DATASETS.CAPTIONS": "('mini_ov_captions',)", "DATASETS.TEST": "('mini_val_regions',)",
        "INPUT.CAPTION.CROP": 32, "INPUT.MOSAIC.SIZE": 64, "INPUT.MOSAIC.GRIDS": [2], "INPUT.REGIONS.SIZE": 64,
        "DATALOADER.CAPTIONS_PER_GPU": 5, "TEST.EVAL_PERIOD": 0, "SOLVER.EPOCHS": 0.0, "SOLVER.MAX_ITER": 3,
        "SOLVER.BASE_LR": 0.01, "SOLVER.WARMUP_ITERS": 0,
    }  # fmt: skip
    return make_run("CLIP_CLIM_ViTB16_COCO.yaml", tiny_mini, keys)


@pytest.mark.parametrize("clip_file", ["vit", "timm"], indirect=True)
def test_clip(clip, clip_file, tmp_path):
    trainer, start = train(clip.config())
    lines = [json.loads(line) for line in (tmp_path / "output/metrics.json").read_text().splitlines()]
    assert all(lines[i]["total_loss"] > 0 for i in range(3))

    # clip.pt: .7 of what was trained and .3 of the start, for open_clip, whose text half it holds too. A run that
    # ends between its files repeats the step: last_checkpoint comes last.
    assert (tmp_path / "output/clip.pt").stat().st_mtime < (tmp_path / "output/last_checkpoint").stat().st_mtime
    state = torch.load(tmp_path / "output/clip.pt", weights_only=True)["state_dict"]
    parts = {k: v for k, v in clip_config(clip_file[0], key="name").items() if k in CLIP_PARTS}
    open_clip.CLIP(**parts).load_state_dict(state, strict=True)
    weights, moved = dict(trainer.raw_model.image_encoder.named_parameters()), 0
    for name, weight in weights.items():
        before = start[f"image_encoder.{name}"]
        torch.testing.assert_close(state[name], 0.7 * weight.detach() + 0.3 * before)
        moved += not torch.equal(weight, before)
    assert 0 < moved < len(weights)
    published = torch.load(clip_file[1], weights_only=True)["state_dict"]
    torch.testing.assert_close(state["text_projection"], published["module.text_projection"])

    # What the run has evaluated at its end is what the command finds in the file.
    changes = ("MODEL.IMAGE_ENCODER.PRETRAINED", tmp_path / "output/clip.pt", "OUTPUT_DIR", tmp_path / "again")
    clip.command(*changes, program=("train_net.py", "--eval-only", "--config-file"))
    results = "inference/mini_val_regions/region_results.json"
    first, again = (read_json(tmp_path / folder / results) for folder in ("output", "again"))
    assert first["summary"] == again["summary"] and first["per_class"] == again["per_class"]
    assert 0 <= first["summary"]["Top1_micro"] <= first["summary"]["Top5_micro"] <= 100


def test_clip_in_two_processes_equals_one_gradients_included(clip, tmp_path):
    clip.command(program=(str(PROGRAM), str(tmp_path)))
    ranks = [torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in (0, 1)]
    # One process gets the same canvases: those of both ranks, then what both have left over.
    order = [0, 1, 2, 3, 5, 6, 7, 8, 4, 9]
    loss, gradients = image_text_ranks.step(clip.file, clip.overrides, order)
    torch.testing.assert_close((ranks[0]["loss"] + ranks[1]["loss"]) / 2, loss)
    assert set(gradients) == set(ranks[0]["gradients"]) and "method.logit_scale" in gradients
    for name, gradient in gradients.items():
        for rank in ranks:
            torch.testing.assert_close(rank["gradients"][name], gradient, rtol=1e-4, atol=1e-6)
