"""tools/figures.py: figures of tiny random models, their layout, and the sentences for mistakes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

import figures as tool
from clim.engine import load_config
from clim.errors import UserError
from clim_commands.maps import RED
from reports import figures

CONFIG = str(Path(__file__).parents[2] / "configs" / "mini" / "detic_clim.yaml")


@pytest.fixture
def images(make_photos):
    """Five images: wide, tall, square, tiny, and far wider than high."""
    return [r["file_name"] for r in make_photos([(60, 90), (90, 60), (64, 64), (11, 13), (12, 400)])]


@pytest.fixture
def options(tiny_mini, tiny_overrides, monkeypatch, tmp_path):
    """Two random models of the same config; the vocabulary is what the tests name."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_mini))
    cfg = load_config(CONFIG, tiny_overrides)
    weights = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = build_model(cfg)
        torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.cls_bias, 0.0)
        weights.append(tmp_path / f"model_{seed}" / "model_final.pth")
        weights[-1].parent.mkdir()
        torch.save({"model": model.state_dict()}, weights[-1])
    return [
        "--config-file", CONFIG, "--weights", *map(str, weights), "--panel", "80",
        *tiny_overrides,
    ]  # fmt: skip


def run(command, *arguments, options, output):
    tool.main([command, *map(str, arguments), "--output", str(output), *options])
    with Image.open(output) as figure:
        return np.asarray(figure.convert("RGB"))


def test_responses_on_photos_and_a_mosaic(images, options, tmp_path, capsys):
    arguments = ["--input", *images, "--query", "dog", "a red car", "--mosaic", 2, "--tile", 1, 4, "--boxes"]
    figure = run("responses", *arguments, options=options, output=tmp_path / "sub" / "figure.png")
    # Rows: the mosaic of four and the fifth image, each with two queries.
    assert figure.shape[1] == 3 * (80 + figures.GAP) + figures.GAP
    assert 2 * 80 + 2 * 2 < figure.shape[0] < 2 * 80 + 400
    red = (figure == RED).all(axis=2)
    assert red[:, : 80 + figures.GAP].any() and red[:, -80 - figures.GAP :].any()
    assert f"{figure.shape[1]} x {figure.shape[0]} px" in capsys.readouterr().out


def test_classes_with_names_and_a_legend(images, options, tmp_path):
    arguments = ["--input", *images[:2], "--names", "dog, grass,a red car"]
    figure = run("classes", *arguments, options=options, output=tmp_path / "figure.png")
    # One row an image, the tall one at one and a half times its width; every class below has its swatch.
    assert figure.shape[1] == 3 * (80 + figures.GAP) + figures.GAP and figure.shape[0] > 53 + 120
    colours = figures.class_colours(3)
    assert any((figure == colour).all(axis=2).sum() >= 81 for colour in colours)


def test_figures_are_saved_small_or_lossy(tmp_path):
    ramp = np.linspace(0, 255, 160)
    figure = np.stack([*np.meshgrid(ramp, ramp), np.full((160, 160), 90)], axis=2).astype(np.uint8)
    for name, small, colours, error in [
        ("a.png", False, 10**6, 0),
        ("b.png", True, 256, 8),
        ("c.jpg", False, 10**6, 3),
    ]:
        figures.save(figure, tmp_path / name, small=small)
        with Image.open(tmp_path / name) as image:
            saved = np.asarray(image.convert("RGB"))
        assert saved.shape == figure.shape and len(np.unique(saved.reshape(-1, 3), axis=0)) <= colours
        assert np.abs(saved.astype(int) - figure).mean() <= error


def test_a_mosaic_holds_every_image_once_in_reading_order():
    photos = [np.full((30 + i, 40, 3), 10 * i, np.uint8) for i in range(4)]
    canvas, boxes = figures.lay_mosaic(photos, n=2, side=100)
    assert canvas.shape == (100, 100, 3) and boxes.shape == (4, 4)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        assert (canvas[y0:y1, x0:x1] == 10 * i).all()
        assert (x0 >= 50) == (i % 2 == 1) and (y0 >= 50) == (i >= 2)
        assert abs((x1 - x0) / (y1 - y0) - 40 / (30 + i)) < 0.05


MODELS = ["--query", "dog", "--config-file"]


@pytest.mark.parametrize(
    "command, arguments, message",
    [
        ("responses", ["--input", "gone.jpg", "--query", "dog"], "gone.jpg does not exist"),
        ("responses", ["--input", "no_folder/*.png", "--query", "dog"], "has no image"),
        ("responses", ["--query", " "], "--query holds no text"),
        ("responses", ["--query", "dog", "--tile", "1"], "give --mosaic N"),
        ("responses", ["--query", "dog", "--mosaic", "2"], "takes 4 images, but .* names 1"),
        ("responses", ["--query", "a", "b", "--mosaic", "1", "--tile", "1"], "each of the 2 texts"),
        ("responses", ["--query", "a", "--mosaic", "1", "--tile", "2"], "from 1 to N x N"),
        ("responses", ["--query", "dog", "--output", "figure"], "name a .png or a .jpg"),
        ("classes", ["--names", "pascal"], "is none of .*pascal_context"),
        ("classes", ["--names", "gone.txt"], "gone.txt is not there"),
        ("responses", ["--query", "dog"], "make demo"),
        ("responses", [*MODELS, "a", "b", "--weights", "c", "d", "e"], "2 files after --config-file and 3 after"),
        ("responses", [*MODELS, CONFIG, "--weights", "", "", "--titles", "CLIM"], "holds 1 different names for 2"),
    ],
)
def test_mistakes_are_errors_of_one_sentence(command, arguments, message, images, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        tool.main([command, "--input", images[0], *arguments])


@pytest.mark.parametrize(
    "models, titles",
    [
        ([("c/detic.yaml", None), ("c/detic_clim.yaml", "x/model_final.pth")], ["Detic", "Detic + CLIM"]),
        ([("a.yaml", "out/one/m.pth"), ("a.yaml", "out/two/m.pth")], ["one", "two"]),
        ([("a.yaml", "out/m1.pth"), ("a.yaml", "out/m2.pth")], ["m1.pth", "m2.pth"]),
        ([("a.yaml", "x/m.pth"), ("a.yaml", "x/m.pth")], ["a 1", "a 2"]),
    ],
)
def test_titles_come_from_what_differs(models, titles):
    assert figures.model_titles(*zip(*models, strict=True)) == titles
