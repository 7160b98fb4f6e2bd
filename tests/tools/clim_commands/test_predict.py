"""``clim predict``: what it draws and writes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.mask import decode

from clim.data.categories import COCO_NAMES
from clim.detector import Detector
from clim_commands.main import main
from clim_commands.predict import drawing_names, most_confident

ROOT = Path(__file__).parents[3]
CONFIG = str(ROOT / "configs" / "mini" / "detic_clim.yaml")


def test_predictions_are_drawn_and_written(tiny_mini, tiny_cfg, tiny_overrides, tmp_path, capsys):
    model, weights, output = Detector(tiny_cfg()).model, tmp_path / "model.pth", tmp_path / "out"
    torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.cls_bias, 0.0)
    torch.save({"model": model.state_dict()}, weights)
    images = tmp_path / "images"
    images.mkdir()
    noise = np.random.default_rng(1).integers(0, 255, (90, 140), dtype=np.uint8)
    Image.fromarray(noise).save(images / "grey.png")
    (images / "broken.jpg").write_bytes(b"no image")
    main([
        "predict", "--input", str(images), str(images / "gone.jpg"), "--output", str(output),
        "--config-file", CONFIG, "--vocabulary", "dog, zebra", "--weights", str(weights),
        "--threshold", "0.01", "--top", "5", "--opts", *tiny_overrides,
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
    printed = capsys.readouterr().out
    assert "1 image" in printed and "2 images could not be read" in printed and "gone.jpg: missing" in printed

    arguments = ["--input", str(images / "gone.jpg"), "--output", str(output), "--config-file", CONFIG]
    with pytest.raises(SystemExit) as caught:
        main(["predict", *arguments, "--opts", *tiny_overrides])
    printed = capsys.readouterr()
    assert caught.value.code == 2 and "error: None of the images" in printed.err and "gone.jpg: missing" in printed.out
    assert [len(json.loads((output / "predictions.json").read_text())[key]) for key in ("images", "skipped")] == [0, 1]


def test_masks_are_written_and_drawn(tiny_mini, tiny_cfg, mask_overrides, tiny_overrides, tmp_path):
    image = sorted((tiny_mini / "mini/val").glob("*.jpg"))[0]
    model, weights = Detector(tiny_cfg(*mask_overrides)).model, tmp_path / "model.pth"
    for predictor in model.roi_heads.predictors:
        torch.nn.init.constant_(predictor.cls_score.cls_bias, 0.0)
    torch.nn.init.constant_(model.roi_heads.mask_head.predictor.bias, 5.0)  # masks that fill their boxes
    torch.save({"model": model.state_dict()}, weights)
    main([
        "predict", "--input", str(image), "--output", str(tmp_path / "out"), "--config-file", CONFIG, "--top", "3",
        "--vocabulary", "coco", "--weights", str(weights), "--opts", *tiny_overrides, *mask_overrides,
    ])  # fmt: skip
    result = json.loads((tmp_path / "out/predictions.json").read_text())
    assert result["vocabulary"] == list(COCO_NAMES)
    (entry,) = result["images"]
    assert 1 <= len(entry["detections"]) <= 3
    with Image.open(image) as photo, Image.open(tmp_path / "out" / entry["drawing"]) as drawing:
        before = np.asarray(photo.convert("RGB").resize(drawing.size)).astype(int)
        change = np.abs(np.asarray(drawing).astype(int) - before).sum(axis=2)
    for detection in entry["detections"]:
        rle, (x, y, width, height) = detection["segmentation"], detection["bbox"]
        assert rle["size"] == [entry["height"], entry["width"]] and isinstance(rle["counts"], str)
        mask = decode(rle)
        assert mask.sum() == pytest.approx(width * height, rel=0.2)
        rows, columns = np.nonzero(mask)
        assert abs(columns.mean() - x - width / 2) < 2 and abs(rows.mean() - y - height / 2) < 2
        scale = change.shape[1] / entry["width"]
        inside = change[int((y + height / 2) * scale), int(x * scale) : int((x + width) * scale)]
        assert np.median(inside) > 30


def instances(*rows):
    found = Instances((100, 100))
    found.pred_boxes = Boxes(torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.tensor([row[1] for row in rows])
    found.pred_classes = torch.tensor([row[2] for row in rows], dtype=torch.int64)
    return found


def test_most_confident_keeps_one_name_for_one_place():
    found = instances(
        ([0, 0, 10, 10], 0.9, 3), ([0, 0, 10, 9], 0.8, 5), ([50, 50, 60, 60], 0.5, 1), ([80, 80, 90, 90], 0.2, 1)
    )
    assert most_confident(found).pred_classes.tolist() == [3, 5, 1, 1]
    assert most_confident(found, overlap=0.6).pred_classes.tolist() == [3, 1, 1]
    assert most_confident(found, overlap=0.95).pred_classes.tolist() == [3, 5, 1, 1]
    assert most_confident(found, threshold=0.5, overlap=0.6).scores.tolist() == pytest.approx([0.9, 0.5])
    assert most_confident(found, top=2).pred_classes.tolist() == [3, 5]
    assert len(most_confident(instances(), threshold=0.1, top=3, overlap=0.5)) == 0


def test_drawings_never_overwrite_each_other():
    paths = [Path(p) for p in ("a/x.jpg", "b/x.png", "x_2.jpg", "c/x.jpg")]
    assert drawing_names(paths) == ["x.jpg", "x_2.jpg", "x_2_2.jpg", "x_3.jpg"]
