"""The data of the worked example, from files to records, ``clim inspect`` and detections."""

import json
from collections import Counter
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog

import make_example
from clim.engine import load_config
from clim.errors import UserError
from clim_commands.main import main
from mini.example import BOXED, TOYS, frames, scene

ROOT = Path(__file__).parents[2]
SIZES = (6, 5, 20, 3)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example") / "shop"
    make_example.main(["--output", str(folder), "--workers", "1", "--sizes", *map(str, SIZES)])
    return folder


def load(example, *overrides):
    return load_config("configs/mini/detic_clim.yaml", ["DATASETS.DATA", str(example / "data.yaml"), *overrides])


def test_a_config_with_its_data_yaml_has_the_drawn_boxes(example):
    cfg = load(example)
    assert cfg.MODEL.VOCABULARY.NAMES == [toy.name for toy in TOYS] and cfg.MODEL.OPEN_VOCAB.BASE_CLASSES
    train, captions, val = (DatasetCatalog.get(f"data_{part}") for part in ("train", "captions", "val"))
    assert (len(train), len(val), len(captions)) == SIZES[:3]
    for split, records in (("train", train), ("val", val)):
        for i, record in enumerate(records):
            drawn, scale = scene(0, split, i), record["width"] / 256
            kept = [n for n, toy in enumerate(drawn.concepts) if split == "val" or toy in BOXED]
            assert [a["category_id"] for a in record["annotations"]] == [drawn.concepts[n] for n in kept] != []
            boxes = [a["bbox"] for a in record["annotations"]]
            np.testing.assert_allclose(boxes, drawn.boxes()[kept] * scale, atol=1e-3)
            assert cv2.imread(record["file_name"]).shape == (record["height"], record["width"], 3)
    assert any(c not in BOXED for i in range(SIZES[0]) for c in scene(0, "train", i).concepts)
    assert all(len(record["captions"]) == 2 for record in captions)
    assert set(BOXED) < {tag for record in captions for tag in record["tags"]}


def test_the_video_shows_all_toys_moving(example):
    with av.open(str(example / "shop.mp4")) as video:
        shown = [frame.to_ndarray(format="bgr24") for frame in video.decode(video=0)]
    drawn = frames(0, count=SIZES[3])
    assert len(shown) == len(drawn) == 3 and not np.array_equal(drawn[0], drawn[1])
    for one, other in zip(shown, drawn, strict=True):
        assert np.abs(one.astype(int) - other).mean() < 12  # H.264


def test_a_folder_with_files_stays(example):
    with pytest.raises(UserError, match="is not empty"):
        make_example.main(["--output", str(example)])


def test_the_steps_of_the_worked_example_run(example, tiny_mini, tiny_overrides, tmp_path, monkeypatch):
    """From a model of one iteration: fine-tune, evaluate, predict on the video, export."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_mini))
    monkeypatch.chdir(tmp_path)
    data, config = ["--data", str(example / "data.yaml")], str(ROOT / "configs/mini/detic_clim.yaml")
    small = [*map(str, tiny_overrides), "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1", "OUTPUT_DIR", "start"]
    main(["train", "--config-file", config, *data, *small])
    main(["train", *data, "--weights", "start/model_final.pth", "SOLVER.MAX_ITER", "2"])
    weights = ["--weights", "output/finetuned/shop/model_final.pth"]
    main(["eval", *weights, *data])
    assert json.loads(Path("output/evaluation/evaluation.json").read_text())["AP50_novel"] is not None
    video = ["--input", str(example / "shop.mp4"), "--tracks", "--threshold", "0"]
    main(["predict", *weights, *video, "--output", "film"])
    found = json.loads(Path("film/predictions.json").read_text())
    assert found["vocabulary"] == [toy.name for toy in TOYS] and found["novel"] == ["rocket", "snowman", "crown"]
    assert [image["frame"] for image in found["images"]] == [0, 1, 2] and Path("film/shop.mp4").is_file()
    main(["export", *weights, "--output", "toys.onnx"])
    assert Path("toys.onnx").is_file()


def cells(text):
    rows = [line.strip("│").split("│") for line in text.splitlines() if line.startswith("│")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_inspect_counts_what_the_files_hold(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    main(["inspect", str(example / "data.yaml"), "--output", str(tmp_path), "INPUT.MOSAIC.SIZE", "128"])
    out = capsys.readouterr().out
    lines = {s: "".join(f.read_text() for f in example.glob(f"labels/{s}/*")).splitlines() for s in ("train", "val")}
    counts = {split: Counter(int(line.split()[0]) for line in rows) for split, rows in lines.items()}
    shown = cells(out)
    for i, toy in enumerate(TOYS):
        row = shown[f"{toy.name} ★" if toy.novel else toy.name]
        assert [row[0], row[2]] == [str(counts["train"][i]), str(counts["val"][i])]
    assert shown["images"] == ["6", "20", "5"] and shown["captions"] == ["", "40", ""]
    assert shown["boxes"] == [str(len(lines["train"])), "", str(len(lines["val"]))]
    assert sum(int(shown[f"{size} boxes"][0]) for size in ("small", "medium", "large")) == len(lines["train"])
    assert shown["smallest image, px"][0] == "256 × 256" and shown["largest image"][0] == "384 × 384"
    assert shown["damaged or missing"] == ["0", "0", "0"] and "cannot be used" not in out and "border of" not in out
    lacking = [toy.name for i, toy in enumerate(TOYS) if not counts["val"][i]]
    assert f"No box for testing shows {', '.join(lacking)}:" in out
    page = (tmp_path / "data.html").read_text()
    assert page.count("<img") == 6 + 8 + 5 + 3 and 'src="http' not in page and "<script" not in page
    assert all(f"{n} tiles with their captions" in page for n in (4, 9, 16))


def test_inspect_names_damaged_files_and_boxes_over_the_border(example, tmp_path, capsys):
    spoilt = tmp_path / "spoilt"
    make_example.main(["--output", str(spoilt), "--workers", "1", "--sizes", *map(str, SIZES)])
    photo = spoilt / "photos/0003.jpg"
    photo.write_bytes(photo.read_bytes()[:-2000])
    (spoilt / "photos/0004.jpg").unlink()
    (spoilt / "images/train/0001.jpg").write_text("no image")
    (spoilt / "labels/val/0002.txt").write_text("0 0.98 0.5 0.2 0.2\n")
    (spoilt / "photos/alone.jpg").write_bytes((spoilt / "photos/0005.jpg").read_bytes())
    main(["inspect", str(spoilt / "data.yaml")])
    out = capsys.readouterr().out
    for name, reason in (("0003.jpg", "truncated"), ("0004.jpg", "missing"), ("train/0001.jpg", "not an image")):
        (line,) = [line for line in out.splitlines() if name + ":" in line]
        assert line.endswith(reason)
    assert "Boxes of data_val over the border of their image: 1, first 'robot'" in out.replace("\n", " ")
    shown = cells(out)
    assert shown["damaged or missing"] == ["1", "2", "0"] and shown["boxes over the border"] == ["0", "", "1"]
    assert shown["images without an entry"] == ["0", "1", "0"]
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(spoilt / "data.yaml"), "--strict"])
    assert stopped.value.code == 1
    for words, message in ((["gone.yaml"], "gone.yaml does not exist"), ([], "Name a data.yaml")):
        with pytest.raises(SystemExit) as stopped:
            main(["inspect", *words])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
