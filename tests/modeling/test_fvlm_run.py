"""The shipped F-VLM config on a tiny COCO: trained, scored by the two-run protocol, loaded again, asked other names."""

import json

import pytest
import torch
from detectron2.modeling import build_model

from clim.checkpoints import SafeCheckpointer
from clim.data.categories import BASE_IDS, COCO_CATEGORIES, NOVEL_IDS
from clim.detector import Detector
from clim.engine import Trainer
from clim.errors import UserError
from clim.evaluation import evaluate

FIGURES = {f"{metric}_{run}_run" for metric in ("AP50", "AP", "AR") for run in ("novel", "base")}


@pytest.fixture
def run(make_run, tiny_coco, tiny_json):
    keys = {
        "MODEL.IMAGE_ENCODER.PRETRAINED": "", "MODEL.VOCABULARY.EMBEDDINGS": "",
        "MODEL.IMAGE_ENCODER.ARCHITECTURE": tiny_json("vit", vision={"patch_size": 16, "layers": 6}),
        "MODEL.TEXT.NAME": tiny_json("vit"), "MODEL.TEXT.PRETRAINED": "", "MODEL.TEXT.DIM": 12,
        "MODEL.FPN.OUT_CHANNELS": 16, "MODEL.ROI_BOX_HEAD.CONV_DIM": 16, "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 20, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0, "INPUT.LSJ.SIZE": 64,
        "INPUT.MIN_SIZE_TEST": 64, "INPUT.MAX_SIZE_TEST": 64, "DATALOADER.DETECTION_PER_GPU": 2,
    }  # fmt: skip
    return make_run("FVLM_ViTB16_CLIM_COCO.yaml", tiny_coco, keys)


def a_photo(root):
    return json.loads((root / "coco/annotations/instances_val2017.json").read_text())["images"][0]["file_name"]


def encoder_of(model):
    return {name: p.clone() for name, p in model.backbone.encoder.state_dict().items()}


def test_train_score_load_and_rename(run, read_detections, tiny_coco, tmp_path):
    with pytest.raises(UserError, match="FVLMROIHeads with .* learns from boxes alone: set MODEL.METHOD.NAME"):
        build_model(run.config("MODEL.METHOD.NAME", "Detic"))
    trainer = Trainer(run.config())
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
    detections = read_detections(tmp_path / "output", "coco_ovd_val")
    assert len({d["image_id"] for d in detections}) == 3  # the image of unused objects counts too
    assert {d["category_id"] for d in detections} - {*BASE_IDS, *NOVEL_IDS}  # all 80 are predicted

    weights = str(tmp_path / "output/model_final.pth")
    model = build_model(run.config("MODEL.IMAGE_ENCODER.PRETRAINED", ""))
    SafeCheckpointer(model, "").load(weights)
    evaluate(run.config("OUTPUT_DIR", tmp_path / "again"), model)
    again = read_detections(tmp_path / "again", "coco_ovd_val")
    assert again == detections

    names = [*(name for _, name in COCO_CATEGORIES[:6]), "unicorn"]
    options = ("MODEL.WEIGHTS", weights, "MODEL.VOCABULARY.NAMES", names, "MODEL.VOCABULARY.PROMPT", "name")
    predictor = Detector(run.config(*options))
    assert predictor.names == names
    assert {names[i] for i in predictor.novel} == {"airplane", "bus", "unicorn"}
    layers = predictor.model.roi_heads.box_predictor
    assert [names[i] for i in (layers.freq_weight == 0).nonzero().flatten()] == ["airplane", "bus", "unicorn"]
    found = predictor(a_photo(tiny_coco))
    assert len(found) > 0 and set(found.pred_classes.tolist()) <= set(range(7))


@pytest.mark.slow
def test_two_processes(run, tmp_path):
    """Gloo knows no SyncBN; every parameter gets its gradient, or the second step would fail."""
    norms = ["MODEL.FPN.NORM", "naiveSyncBN", "MODEL.ROI_BOX_HEAD.NORM", "naiveSyncBN"]
    run.command(*norms, program=("train_net.py", "--num-gpus", "2", "--dist-url", "auto", "--config-file"))
    assert set(json.loads((tmp_path / "output/evaluation.json").read_text())) == FIGURES
