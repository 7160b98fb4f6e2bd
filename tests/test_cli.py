"""The command ``clim``: its arguments without torch, what ``predict`` draws and writes, images and names."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import default_argument_parser
from PIL import Image
from pycocotools.mask import decode

import clim
from clim.cli import add_train_options, count, drawing_names, find_images, main, read_names
from clim.config import add_clim_config
from clim.data.categories import COCO_NAMES
from clim.detector import Detector
from clim.errors import UserError

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs" / "mini" / "detic_clim.yaml")


def test_names_of_the_package_are_imported_when_they_are_used():
    assert clim.Detector is Detector and clim.add_clim_config is add_clim_config and clim.__version__
    with pytest.raises(AttributeError, match="module 'clim' has no attribute 'Nothing'"):
        clim.Nothing  # noqa: B018


LAZY = """
import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))  # as Python does for a script
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
UNFIT = ["predict", "--input", "a.jpg", "--config-file", "x.yaml", "--top", "-1"]


@pytest.mark.parametrize(
    "command, code",
    [
        (["clim", "predict", "--help"], 0),
        (["clim", *UNFIT], 2),
        (["train_net.py", "--num-gpus", "two"], 2),
        (["tools/predict.py", "--help"], 0),
    ],
)
def test_help_and_wrong_arguments_are_answered_without_torch(command, code, tmp_path):
    (tmp_path / "clim").write_text("from clim.cli import main\nmain()\n")
    command = [str(tmp_path / "clim") if command[0] == "clim" else command[0], *command[1:]]
    done = subprocess.run([sys.executable, "-c", LAZY, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"{code} False", done.stderr


def test_train_has_detectron2s_options():
    parser, ours = default_argument_parser(), argparse.ArgumentParser()
    add_train_options(ours)
    for line in (
        [],
        ["--config-file", "x.yaml", "--resume", "SEED", "1"],
        ["--eval-only", "--num-gpus", "2", "--num-machines", "3", "--machine-rank", "1", "--dist-url", "auto"],
    ):
        assert vars(ours.parse_args(line)) == vars(parser.parse_args(line))


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


def test_drawings_never_overwrite_each_other():
    paths = [Path(p) for p in ("a/x.jpg", "b/x.png", "x_2.jpg", "c/x.jpg")]
    assert drawing_names(paths) == ["x.jpg", "x_2.jpg", "x_2_2.jpg", "x_3.jpg"]


def test_images_of_files_folders_and_globs(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", "sub/c.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    found = find_images([str(tmp_path), str(tmp_path / "**/*.jpg"), str(tmp_path / "missing.jpg")])
    assert [str(p.relative_to(tmp_path)) for p in found] == ["a.PNG", "b.jpg", "sub/c.jpg", "missing.jpg"]
    with pytest.raises(UserError, match="no image there"):
        find_images([str(tmp_path / "*.gif")])


def test_names_and_numbers(tmp_path):
    assert read_names(" dog, fire hydrant,,dog ,", option="--names") == ["dog", "fire hydrant"]
    file = tmp_path / "names.txt"
    file.write_text("dog\n\nknife, fork\n")
    assert read_names(str(file), option="--names") == ["dog", "knife, fork"]
    for wrong in (" , ", str(tmp_path / "none.txt")):
        with pytest.raises(UserError, match=f"--names '?{wrong}"):
            read_names(wrong, option="--names")
    assert count("3") == 3
    for text in ("0", "-1", "1.5", "many", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="not a whole number above 0"):
            count(text)
