"""The shipped F-VLM config on a tiny COCO: trained, scored by the two-run protocol, loaded again, asked other names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from clim.checkpoints import SafeCheckpointer
from clim.data.categories import BASE_IDS, COCO_CATEGORIES, NOVEL_IDS
from clim.detector import Detector
from clim.engine import Trainer, load_config
from clim.errors import UserError
from clim.evaluation import evaluate

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/FVLM_ViTB16_CLIM_COCO.yaml")
FIGURES = {f"{metric}_{run}_run" for metric in ("AP50", "AP", "AR") for run in ("novel", "base")}


@pytest.fixture
def overrides(tiny_json, tmp_path):
    keys = {
        "MODEL.DEVICE": "cpu", "MODEL.IMAGE_ENCODER.PRETRAINED": "", "MODEL.VOCABULARY.EMBEDDINGS": "",
        "MODEL.IMAGE_ENCODER.ARCHITECTURE": tiny_json("vit", vision={"patch_size": 16, "layers": 6}),
        "MODEL.TEXT.NAME": tiny_json("vit"), "MODEL.TEXT.PRETRAINED": "", "MODEL.TEXT.DIM": 12,
        "MODEL.FPN.OUT_CHANNELS": 16, "MODEL.ROI_BOX_HEAD.CONV_DIM": 16, "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 20, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "INPUT.LSJ.SIZE": 64, "INPUT.MIN_SIZE_TEST": 64, "INPUT.MAX_SIZE_TEST": 64,
        "SOLVER.REFERENCE_WORLD_SIZE": 0, "SOLVER.MAX_ITER": 2, "SOLVER.LOG_PERIOD": 1,
        "DATALOADER.DETECTION_PER_GPU": 2, "DATALOADER.NUM_WORKERS": 0, "OUTPUT_DIR": tmp_path / "output",
    }  # fmt: skip
    return [str(part) for item in keys.items() for part in item]


@pytest.fixture
def config(tiny_coco, overrides, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_coco))

    def load(*more):
        cfg = load_config(CONFIG, [*overrides, *map(str, more)])
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        return cfg

    return load


def test_what_does_not_go_with_fvlm_is_told(config):
    with pytest.raises(
        UserError, match="FVLMROIHeads with .* learns from boxes alone: set MODEL.METHOD.NAME, now Detic"
    ):
        build_model(config("MODEL.METHOD.NAME", "Detic"))
    with pytest.raises(UserError, match='CLASSIFIER is "pseudo_words", but F-VLM has a classifier of its own'):
        build_model(config("MODEL.OPEN_VOCAB.CLASSIFIER", "pseudo_words"))


def a_photo(root):
    return json.loads((root / "coco/annotations/instances_val2017.json").read_text())["images"][0]["file_name"]


def encoder_of(model):
    return {name: p.clone() for name, p in model.backbone.encoder.state_dict().items()}


def test_train_score_load_and_rename(config, tiny_coco, tmp_path):
    cfg = config()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    frozen, heads = encoder_of(trainer.raw_model), trainer.raw_model.classifier.linear.weight.clone()
    trainer.train()

    lines = [json.loads(line) for line in (tmp_path / "output/metrics.json").read_text().splitlines()]
    assert {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc", "grad_norm"} <= set(lines[0])
    after = encoder_of(trainer.raw_model)
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())
    assert not torch.equal(trainer.raw_model.classifier.linear.weight, heads)
    scored = json.loads((tmp_path / "output/evaluation.json").read_text())
    assert set(scored) == FIGURES
    detections = json.loads((tmp_path / "output/inference/coco_ovd_val/coco_instances_results.json").read_text())
    assert len({d["image_id"] for d in detections}) == 3  # the picture of unused objects counts too
    assert {d["category_id"] for d in detections} - {*BASE_IDS, *NOVEL_IDS}  # all 80 are predicted

    weights = str(tmp_path / "output/model_final.pth")
    model = build_model(config("MODEL.IMAGE_ENCODER.PRETRAINED", ""))
    SafeCheckpointer(model, "").load(weights)
    evaluate(config("OUTPUT_DIR", tmp_path / "again"), model)
    again = json.loads((tmp_path / "again/inference/coco_ovd_val/coco_instances_results.json").read_text())
    assert again == detections

    names = [*(name for _, name in COCO_CATEGORIES[:6]), "unicorn"]
    options = ("MODEL.WEIGHTS", weights, "MODEL.VOCABULARY.NAMES", names, "MODEL.VOCABULARY.PROMPT", "name")
    predictor = Detector(config(*options))
    assert predictor.names == names
    assert {names[i] for i in predictor.novel} == {"airplane", "bus", "unicorn"}
    layers = predictor.model.roi_heads.box_predictor
    assert [names[i] for i in (layers.freq_weight == 0).nonzero().flatten()] == ["airplane", "bus", "unicorn"]
    found = predictor(a_photo(tiny_coco))
    assert len(found) > 0 and set(found.pred_classes.tolist()) <= set(range(7))


@pytest.mark.slow
def test_train_net(tiny_coco, overrides, tmp_path):
    """From the command line: training and its evaluation, then --eval-only of its checkpoint."""

    def run(*arguments):
        flags = [a for a in arguments if a.startswith("--")]
        command = [
            sys.executable,
            "train_net.py",
            *flags,
            "--config-file",
            CONFIG,
            *overrides,
            *arguments[len(flags) :],
        ]
        environment = os.environ | {"DETECTRON2_DATASETS": str(tiny_coco), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]

    run()
    scored = (tmp_path / "output/evaluation.json").read_text()
    weights = str(tmp_path / "output/model_final.pth")
    run("--eval-only", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path / "again"))
    assert (tmp_path / "again/evaluation.json").read_text() == scored and set(json.loads(scored)) == FIGURES


@pytest.mark.slow
def test_two_processes(tiny_coco, overrides, tmp_path):
    """Gloo knows no SyncBN; every parameter gets its gradient, or the second step would fail."""
    command = [sys.executable, "train_net.py", "--num-gpus", "2", "--dist-url", "auto", "--config-file", CONFIG]
    norms = ["MODEL.FPN.NORM", "naiveSyncBN", "MODEL.ROI_BOX_HEAD.NORM", "naiveSyncBN"]
    environment = os.environ | {
        "DETECTRON2_DATASETS": str(tiny_coco), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    done = subprocess.run(
        [*command, *overrides, *norms], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(json.loads((tmp_path / "output/evaluation.json").read_text())) == FIGURES
