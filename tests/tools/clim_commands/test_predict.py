"""``clim predict``: what it draws and writes."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import supervision as sv
import torch
from PIL import Image
from pycocotools.mask import decode

from clim.data.categories import COCO_NAMES
from clim.detector import Detector, most_confident
from clim.errors import UserError
from clim.results import Result
from clim_commands.main import main
from clim_commands.predict import image_ids, read_classes

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
        "predict", "--input", str(images), "--output", str(output), "--save-json", str(tmp_path / "coco.json"),
        "--config-file", CONFIG, "--vocabulary", "dog; zebra: horse", "--weights", str(weights),
        "--threshold", "0.01", "--top", "5", *tiny_overrides[2:],
    ])  # fmt: skip
    result = json.loads((output / "predictions.json").read_text())
    assert result["vocabulary"] == ["dog", "zebra"] and result["novel"] == ["dog"]
    assert result["weights"] == str(weights)
    skipped = {Path(entry["file_name"]).name: entry["reason"] for entry in result["skipped"]}
    assert skipped == {"broken.jpg": "not an image"}
    (image,) = result["images"]
    assert (image["height"], image["width"], image["drawing"]) == (90, 140, "grey.jpg")
    assert 1 <= len(image["detections"]) <= 5
    for detection in image["detections"]:
        x, y, width, height = detection["bbox"]
        assert 0 <= x and 0 <= y and x + width <= 140.1 and y + height <= 90.1
        assert detection["name"] == result["vocabulary"][detection["category_id"]]
        assert detection["score"] >= 0.01
    results = json.loads((tmp_path / "coco.json").read_text())
    assert [r["category_id"] for r in results] == [d["category_id"] for d in image["detections"]]
    assert {r["image_id"] for r in results} == {0}
    with Image.open(output / "grey.jpg") as drawing:
        assert drawing.size == (640, 411)
    printed = capsys.readouterr()
    assert "1 images, " in printed.out and "1 images could not be read" in printed.out
    for noise in ("FutureWarning", "Skip loading", "not found in the checkpoint", "not used by the model"):
        assert noise not in printed.err

    with pytest.raises(SystemExit) as caught:
        main(["predict", "--input", str(images / "broken.jpg"), "--output", str(output), "--weights", str(weights),
              "--config-file", CONFIG, *tiny_overrides[2:]])  # fmt: skip
    printed = capsys.readouterr()
    assert caught.value.code == 2 and "error: None of the images" in printed.err and "not an image" in printed.out
    assert [len(json.loads((output / "predictions.json").read_text())[key]) for key in ("images", "skipped")] == [0, 1]


def test_weights_alone_are_enough_also_for_a_video(tiny_cfg, tmp_path, capsys):
    """The advice to lower --threshold appears only where it helps."""
    detector = Detector(tiny_cfg())
    torch.nn.init.constant_(detector.model.roi_heads.box_predictor.cls_score.cls_bias, -1.0)
    detector.freeze(tmp_path / "model.pth")
    video = cv2.VideoWriter(str(tmp_path / "a.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5.0, (160, 120))
    for seed in range(3):
        video.write(np.random.default_rng(seed).integers(0, 255, (120, 160, 3), dtype=np.uint8))
    video.release()
    arguments = ["predict", "--weights", str(tmp_path / "model.pth"), "--input", str(tmp_path / "a.mp4")]
    arguments += ["--output", str(tmp_path / "out"), "--frames", "2", "--batch", "2"]
    main([*arguments, "--threshold", "0.05"])
    images = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert [(i["frame"], i["drawing"]) for i in images] == [(0, "a.mp4"), (1, "a.mp4")] and images[0]["detections"]
    assert (tmp_path / "out/a.mp4").is_file() and "Nothing scores" not in capsys.readouterr().out
    main([*arguments, "--threshold", "1"])
    assert "lower --threshold" in capsys.readouterr().out
    torch.nn.init.constant_(detector.model.roi_heads.box_predictor.cls_score.cls_bias, -20.0)
    detector.freeze(tmp_path / "model.pth")
    main([*arguments, "--threshold", "1"])
    printed = capsys.readouterr().out
    assert "nor is there a score near it" in printed and "lower --threshold" not in printed


@pytest.mark.parametrize(
    "arguments, error",
    [
        (["--input", "gone.jpg", "--weights", "{file}"], "gone.jpg does not exist"),
        (["--input", "{file}", "--weights", "gone.pth"], "--weights gone.pth does not exist"),
        (["--input", "{file}", "--weights", "{file}", "--config-file", "gone.yaml"], "--config-file gone.yaml"),
        (["--input", "{file}", "--weights", "{file}", "--vocabulary", " ,"], "--vocabulary ' ,' holds no name"),
        (["--input", "{file}", "--weights", "{file}", "--vocabulary", ": a"], "--vocabulary ': a' holds no name"),
        (["--input", "{file}", "--weights", "{file}", "SEED"], "SEED has no value"),
        (["--input", "{file}", "--weights", "{file}", "--output", "{file}"], "a.pth is no folder"),
        (["--input", "", "--weights", "{file}"], "A source is empty"),
        (["--input", "{file}"], "Name a checkpoint"),
        (["--input", "{file}", "--threshold", "2"], "'2' is not a number from 0 to 1"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(arguments, error, tmp_path, capsys):
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(SystemExit) as caught:
        main(["predict", *(argument.format(file=tmp_path / "a.pth") for argument in arguments)])
    assert caught.value.code == 2 and error in capsys.readouterr().err


def test_output_apart_from_images(tmp_path, capsys):
    """Photos are never replaced: those that are read, through a link too, and others that lie in the folder."""
    photos = tmp_path / "all/photos"
    photos.mkdir(parents=True)
    for path in (photos / "a.jpg", tmp_path / "all/b.jpg", tmp_path / "a.pth"):
        path.write_bytes(b"x")
    (tmp_path / "link").symlink_to(photos)
    for output, error in (("all/photos", "a.jpg lies in"), ("link", "a.jpg lies in"), ("all", "holds b.jpg")):
        with pytest.raises(SystemExit) as caught:
            main(
                [
                    "predict",
                    "--input",
                    str(photos),
                    "--output",
                    f"{tmp_path}/{output}",
                    "--weights",
                    f"{tmp_path}/a.pth",
                ]
            )
        assert caught.value.code == 2 and error in capsys.readouterr().err
    assert len(list(tmp_path.rglob("*"))) == 6


def test_results_are_written_as_they_come(tiny_cfg, tmp_path, monkeypatch):
    Detector(tiny_cfg()).freeze(tmp_path / "model.pth")
    for name in "123":
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / f"{name}.png")
    plot, seen = Result.plot, []

    def fail(self):
        seen.append(self)
        if len(seen) == 3:
            raise KeyboardInterrupt if interrupted else SystemExit(1)
        return plot(self)

    monkeypatch.setattr(Result, "plot", fail)
    arguments = ["predict", "--weights", str(tmp_path / "model.pth"), "--input", str(tmp_path), "--output"]
    for interrupted in (False, True):
        seen.clear()
        out = tmp_path / f"out{interrupted}"
        if interrupted:
            main([*arguments, str(out)])
            images = json.loads((out / "predictions.json").read_text())["images"]
        else:
            with pytest.raises(SystemExit):
                main([*arguments, str(out)])
            images = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
        assert [image["drawing"] for image in images] == ["1.jpg", "2.jpg"]
        assert (out / "predictions.jsonl").exists() != interrupted


def test_image_ids_are_unique():
    def ids(*names):
        return list(image_ids([{"file_name": name} for name in names]))

    assert ids("x/0139.jpg", "7.png") == [139, 7]
    assert ids("1.jpg", "b.jpg") == ids("1.jpg", "01.jpg") == [0, 1]


def test_words_with_synonyms(tmp_path):
    (tmp_path / "words.txt").write_text("dog: puppy, hound\nfire hydrant\n")
    (tmp_path / "words.yaml").write_text("dog: [puppy, hound]\nfire hydrant:\n")
    for text in ("dog: puppy, hound; fire hydrant", str(tmp_path / "words.txt"), str(tmp_path / "words.yaml")):
        assert read_classes(text) == {"dog": ["puppy", "hound"], "fire hydrant": []}
    assert read_classes("dog, cat") == read_classes("dog; cat") == ["dog", "cat"]
    with pytest.raises(UserError, match="has 'lemon, dog' as the name of one class: part classes by"):
        read_classes("lemon, dog: puppy")
    assert read_classes("coco") == list(COCO_NAMES)


def test_masks_are_written_and_drawn(tiny_mini, tiny_cfg, mask_overrides, tiny_overrides, tmp_path):
    image = sorted((tiny_mini / "mini/val").glob("*.jpg"))[0]
    model, weights = Detector(tiny_cfg(*mask_overrides)).model, tmp_path / "model.pth"
    for predictor in model.roi_heads.predictors:
        torch.nn.init.constant_(predictor.cls_score.cls_bias, 0.0)
    torch.nn.init.constant_(model.roi_heads.mask_head.predictor.bias, 5.0)  # masks that fill their boxes
    torch.save({"model": model.state_dict()}, weights)
    main([
        "predict", "--input", str(image), "--output", str(tmp_path / "out"), "--config-file", CONFIG, "--top", "3",
        "--vocabulary", "coco", "--weights", str(weights), *tiny_overrides[2:], *mask_overrides,
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


def test_most_confident_keeps_one_name_for_one_place():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [80, 80, 90, 90]], np.float32)
    scores = np.array([0.9, 0.8, 0.5, 0.2], np.float32)
    found = sv.Detections(xyxy=boxes, confidence=scores, class_id=np.array([3, 5, 1, 1]))
    assert most_confident(found).class_id.tolist() == [3, 5, 1, 1]
    assert most_confident(found, overlap=0.6).class_id.tolist() == [3, 1, 1]
    assert most_confident(found, overlap=0.95).class_id.tolist() == [3, 5, 1, 1]
    assert most_confident(found, threshold=0.5, overlap=0.6).confidence.tolist() == pytest.approx([0.9, 0.5])
    assert most_confident(found, top=2).class_id.tolist() == [3, 5]
    assert len(most_confident(found[:0], threshold=0.1, top=3, overlap=0.5)) == 0
