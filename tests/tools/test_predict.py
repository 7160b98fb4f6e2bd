"""Predictor and tools/predict.py: scores, names, odd images, and what is written."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from clim.errors import UserError
from clim.predictor import Predictor, most_confident

TOOL = Path(__file__).resolve().parents[2] / "tools" / "predict.py"
spec = importlib.util.spec_from_file_location("predict_tool", TOOL)
predict = importlib.util.module_from_spec(spec)
spec.loader.exec_module(predict)
CONFIG = str(TOOL.parents[1] / "configs" / "mini" / "detic_clim.yaml")


@pytest.fixture
def scene(tiny_mini):
    return str(sorted((tiny_mini / "mini/val").glob("*.jpg"))[0])


def test_scores_are_the_models_with_the_training_bias_left_in(tiny_cfg, scene):
    predictor = Predictor(tiny_cfg())
    classifier = predictor.model.roi_heads.box_predictor.cls_score
    torch.nn.init.constant_(classifier.cls_bias, -3.0)
    found = predictor(scene)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True) and len(found) == 100

    classifier._forward_hooks.clear()
    plain = predictor(scene)
    assert torch.equal(plain.pred_boxes.tensor, found.pred_boxes.tensor)
    assert torch.equal(plain.pred_classes, found.pred_classes)
    torch.testing.assert_close(plain.scores.logit() - 3.0, found.scores.logit(), rtol=0, atol=1e-4)


def test_names_and_novel_classes_of_the_config(tiny_cfg):
    predictor = Predictor(tiny_cfg())
    assert len(predictor.names) == 65 and len(predictor.novel) == 17
    assert predictor.names.index("dog") in predictor.novel
    assert predictor.names.index("horse") not in predictor.novel


def test_other_names_win_over_those_of_the_checkpoint(tiny_cfg, scene, tmp_path):
    trained = Predictor(tiny_cfg())
    weights = tmp_path / "model.pth"
    torch.save({"model": trained.model.state_dict()}, weights)
    # Prompt "a" makes the class embeddings of the mini benchmark: the same name is the same class.
    names = "['zebra', 'dog', 'fire hydrant']"
    options = ("MODEL.WEIGHTS", str(weights), "MODEL.VOCABULARY.NAMES", names, "MODEL.VOCABULARY.PROMPT", "a")
    predictor = Predictor(tiny_cfg(*options))
    assert predictor.names == ["zebra", "dog", "fire hydrant"] and predictor.novel == {1, 2}
    old, new = (p.model.roi_heads.box_predictor.cls_score.class_embeddings for p in (trained, predictor))
    torch.testing.assert_close(new[0], old[trained.names.index("zebra")], atol=2e-3, rtol=0)
    torch.testing.assert_close(new[1], old[trained.names.index("dog")], atol=2e-3, rtol=0)
    assert set(predictor(scene).pred_classes.tolist()) <= {0, 1, 2}


def test_models_that_do_not_detect_are_errors(tiny_cfg, tmp_path):
    with pytest.raises(UserError, match="META_ARCHITECTURE GridTextModel detects nothing"):
        Predictor(tiny_cfg(config="mini/ovrcnn_pretrain.yaml"))
    part = Predictor(tiny_cfg()).model.backbone.state_dict()
    torch.save({"model": {f"backbone.{k}": v for k, v in part.items()}}, tmp_path / "part.pth")
    with pytest.raises(UserError, match="part.pth lacks .* weights that this config's model learns"):
        Predictor(tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "part.pth")))


def test_boxes_are_in_pixels_of_the_upright_image(tiny_cfg, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    path = tmp_path / "rotated.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (120, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, exif=exif)
    found = Predictor(tiny_cfg())(path)
    assert found.image_size == (300, 120)
    boxes = found.pred_boxes.tensor
    assert (boxes >= 0).all() and boxes[:, 2].max() <= 120 and boxes[:, 3].max() <= 300
    assert boxes[:, 3].max() > 120  # not confined to an image that lies


def instances(*rows):
    found = Instances((100, 100))
    found.pred_boxes = Boxes(torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.tensor([row[1] for row in rows])
    found.pred_classes = torch.tensor([row[2] for row in rows], dtype=torch.int64)
    return found


def test_most_confident_keeps_one_name_for_one_place():
    found = instances(
        ([0, 0, 10, 10], 0.9, 3),
        ([0, 0, 10, 9], 0.8, 5),
        ([50, 50, 60, 60], 0.5, 1),
        ([80, 80, 90, 90], 0.2, 1),
    )
    assert most_confident(found).pred_classes.tolist() == [3, 5, 1, 1]
    assert most_confident(found, overlap=0.6).pred_classes.tolist() == [3, 1, 1]
    assert most_confident(found, overlap=0.95).pred_classes.tolist() == [3, 5, 1, 1]
    assert most_confident(found, threshold=0.5, overlap=0.6).scores.tolist() == pytest.approx([0.9, 0.5])
    assert most_confident(found, top=2).pred_classes.tolist() == [3, 5]
    assert len(most_confident(instances(), threshold=0.1, top=3, overlap=0.5)) == 0


# ---- The tool ------------------------------------------------------------------------------------


def test_drawings_never_overwrite_each_other():
    paths = [Path(p) for p in ("a/x.jpg", "b/x.png", "x_2.jpg", "c/x.jpg")]
    assert predict.drawing_names(paths) == ["x.jpg", "x_2.jpg", "x_2_2.jpg", "x_3.jpg"]


def test_a_missing_demo_model_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="make demo"):
        predict.main(["--input", __file__])


def test_predictions_are_drawn_and_written(tiny_mini, tiny_cfg, tiny_overrides, tmp_path, capsys):
    weights = tmp_path / "model.pth"
    model = Predictor(tiny_cfg()).model
    torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.cls_bias, 0.0)
    torch.save({"model": model.state_dict()}, weights)
    images = tmp_path / "images"
    images.mkdir()
    noise = np.random.default_rng(1).integers(0, 255, (90, 140), dtype=np.uint8)
    Image.fromarray(noise).save(images / "grey.png")
    (images / "broken.jpg").write_bytes(b"no image")
    output = tmp_path / "out"
    predict.main([
        "--input", str(images), str(images / "gone.jpg"), "--output", str(output),
        "--config-file", CONFIG,
        "--vocabulary", "dog, zebra", "--weights", str(weights), "--threshold", "0.01", "--top", "5",
        "--opts", *tiny_overrides,
    ])  # fmt: skip
    result = json.loads((output / "predictions.json").read_text())
    assert result["vocabulary"] == ["dog", "zebra"] and result["novel"] == ["dog"]
    assert result["weights"] == str(weights)
    skipped = {Path(entry["file_name"]).name: entry["reason"] for entry in result["skipped"]}
    assert skipped == {"broken.jpg": "not a picture", "gone.jpg": "missing"}
    (image,) = result["images"]
    assert (image["height"], image["width"], image["drawing"]) == (90, 140, "grey.jpg")
    assert 1 <= len(image["detections"]) <= 5
    for detection in image["detections"]:
        x, y, width, height = detection["bbox"]
        assert 0 <= x and 0 <= y and x + width <= 140.1 and y + height <= 90.1
        assert detection["name"] == result["vocabulary"][detection["category_id"]]
        assert detection["score"] >= 0.01
    with Image.open(output / "grey.jpg") as drawing:
        assert drawing.size == (640, 411)
    told = capsys.readouterr().out
    assert "1 image" in told and "2 images could not be read" in told and "gone.jpg: missing" in told


def test_a_command_that_read_no_image_fails(tiny_cfg, tiny_overrides, tmp_path, capsys):
    weights = tmp_path / "model.pth"
    torch.save({"model": Predictor(tiny_cfg()).model.state_dict()}, weights)
    arguments = [
        "--input",
        str(tmp_path / "gone.jpg"),
        "--output",
        str(tmp_path / "out"),
        "--config-file",
        CONFIG,
    ]
    with pytest.raises(UserError, match="None of the images"):
        predict.main([*arguments, "--weights", str(weights), "--opts", *tiny_overrides])
    assert "gone.jpg: missing" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/predictions.json").read_text())["skipped"]
    with pytest.raises(SystemExit):
        predict.main([*arguments, "--top", "-1"])
