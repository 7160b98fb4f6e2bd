"""OV-RCNN's second stage from its shipped configs: from stage 1's file to figures, and to other names."""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from clim.checkpoints import SafeCheckpointer
from clim.data.categories import BASE_IDS, COCO_CATEGORIES, COCO_NAMES, NOVEL_IDS
from clim.detector import Detector
from clim.engine import Trainer
from clim.evaluation import evaluate
from clim.text import build_text_tower, word_piece_means
from reports.responder import Responder

TEST_SET = "coco_generalized_zeroshot_val"


@pytest.fixture
def config(make_run, tiny_coco, tiny_bert, grid_encoder, save_stage1, tmp_path):
    """``config("KEY", value, …)``: the shipped config on six photos, from a random file of the first stage."""
    tower = build_text_tower(name=str(tiny_bert))
    np.save(tmp_path / "words.npy", word_piece_means(tower, COCO_NAMES).numpy())
    keys = {
        "MODEL.WEIGHTS": save_stage1(grid_encoder(32), tmp_path), "MODEL.VOCABULARY.EMBEDDINGS": tmp_path / "words.npy",
        "MODEL.TEXT.NAME": tiny_bert, "MODEL.TEXT.DIM": 32, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 4,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8, "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.001, "INPUT.MIN_SIZE_TRAIN": (64,), "INPUT.MIN_SIZE_TEST": 64,
    }  # fmt: skip
    return make_run("OVRCNN_CLIM_C4.yaml", tiny_coco, keys).config


def test_train_score_load_and_rename(config, read_detections, tiny_coco, tmp_path):
    trainer = Trainer(config())
    trainer.resume_or_load(resume=False)
    model = trainer.raw_model
    stage1 = torch.load(tmp_path / "stage1.pth")["model"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(before["roi_heads.res5.2.conv3.weight"], stage1["image_encoder.backbone.res5.2.conv3.weight"])
    trainer.train()

    after = model.state_dict()
    kept = {name for name, value in after.items() if torch.equal(value, before[name])}
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    predictor = "roi_heads.box_predictor"
    assert {f"{predictor}.emb_pred.weight", f"{predictor}.emb_pred.bias"} <= kept - learning
    assert {f"{predictor}.bbox_pred.weight", "roi_heads.res5.0.conv1.weight"} <= learning - kept
    assert not {name for name in learning if name.startswith(("backbone.stem", "backbone.res2"))}
    scored = json.loads((tmp_path / "output/evaluation.json").read_text())
    assert {"AP50_novel", "AP50_base", "AP50_all"} <= set(scored)
    found = read_detections(tmp_path / "output", TEST_SET)
    assert found and {d["category_id"] for d in found} <= {*BASE_IDS, *NOVEL_IDS}  # the 15 others do not compete

    weights = str(tmp_path / "output/model_final.pth")
    again = build_model(config())
    SafeCheckpointer(again, "").load(weights)
    evaluate(config("OUTPUT_DIR", tmp_path / "again"), again)
    assert read_detections(tmp_path / "again", TEST_SET) == found
    novel = config("OUTPUT_DIR", tmp_path / "novel", "MODEL.OVRCNN.TEST_CLASSES", "ovcoco_novel")
    again = build_model(novel)
    SafeCheckpointer(again, "").load(weights)
    evaluate(novel, again)
    assert {d["category_id"] for d in read_detections(tmp_path / "novel", TEST_SET)} <= {*NOVEL_IDS}

    names = [*(name for _, name in COCO_CATEGORIES[:6]), "unicorn"]
    options = ("MODEL.WEIGHTS", weights, "MODEL.VOCABULARY.NAMES", names)
    asked = Detector(config(*options))
    assert {names[i] for i in asked.novel} == {"airplane", "bus", "unicorn"}
    layers = asked.model.roi_heads.box_predictor
    words = layers.class_embeddings
    torch.testing.assert_close(words[:6], before[f"{predictor}.class_embeddings"][:6])
    photo = json.loads((tiny_coco / "coco/annotations/instances_val2017.json").read_text())["images"][0]["file_name"]
    instances = asked(photo)
    assert len(instances) > 0 and set(instances.pred_classes.tolist()) <= set(range(7))
    torch.testing.assert_close(instances.logits.sigmoid(), instances.scores)

    responder = Responder(config("MODEL.WEIGHTS", weights))
    texts = responder.embed(names)
    torch.testing.assert_close(texts, words[:-1])
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    assert responder(image, texts, long_side=96).shape == (7, 2, 3)
