"""tools/predict.py: what is drawn and written."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clim.detector import Detector
from clim.errors import UserError

TOOL = Path(__file__).resolve().parents[2] / "tools" / "predict.py"
spec = importlib.util.spec_from_file_location("predict_tool", TOOL)
predict = importlib.util.module_from_spec(spec)
spec.loader.exec_module(predict)
CONFIG = str(TOOL.parents[1] / "configs" / "mini" / "detic_clim.yaml")


def test_drawings_never_overwrite_each_other():
    paths = [Path(p) for p in ("a/x.jpg", "b/x.png", "x_2.jpg", "c/x.jpg")]
    assert predict.drawing_names(paths) == ["x.jpg", "x_2.jpg", "x_2_2.jpg", "x_3.jpg"]


def test_a_missing_demo_model_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="make demo"):
        predict.main(["--input", __file__])


def test_predictions_are_drawn_and_written(tiny_mini, tiny_cfg, tiny_overrides, tmp_path, capsys):
    weights = tmp_path / "model.pth"
    model = Detector(tiny_cfg()).model
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
    assert skipped == {"broken.jpg": "not an image", "gone.jpg": "missing"}
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
    torch.save({"model": Detector(tiny_cfg()).model.state_dict()}, weights)
    arguments = ["--input", str(tmp_path / "gone.jpg"), "--output", str(tmp_path / "out"), "--config-file", CONFIG]
    with pytest.raises(UserError, match="None of the images"):
        predict.main([*arguments, "--weights", str(weights), "--opts", *tiny_overrides])
    assert "gone.jpg: missing" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/predictions.json").read_text())["skipped"]
    with pytest.raises(SystemExit):
        predict.main([*arguments, "--top", "-1"])
