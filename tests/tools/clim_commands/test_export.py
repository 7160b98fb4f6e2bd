"""``clim export``: every kind of head equals PyTorch at several sizes, other words, clients, metadata, refusals."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.layers import paste_masks_in_image
from PIL import Image
from torch import nn

import build_text_embeddings
from clim.detector import Detector
from clim.errors import UserError
from clim.modeling.box_predictors import log_odds
from clim_commands.export.check import Difference, difference, exported, in_file, in_pytorch
from clim_commands.export.graph import class_rows
from clim_commands.export.programs import load_programs
from clim_commands.main import main
from clim_commands.predict import read_classes

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from clim_commands.export.onnx_file import OPSET, expm1  # noqa: E402

CLIENT = Path(__file__).parents[3] / "tools" / "onnx_predict.py"
SHAPES = (96, 96), (60, 130), (201, 77)  # of images
FROM_FILE = ["MODEL.IMAGE_ENCODER.PRETRAINED", ""]  # the encoder's weights are in the checkpoint
HEADS = {  # config, overrides, options, largest difference of scores
    "cosines": ("detic_clim", ["INPUT.FORMAT", "BGR"], ["--dynamic-classes"], 1e-5),
    "baked": ("detic_clim", [], ["--vocabulary", "dog; horse: mare, cat; kite"], 1e-5),
    "dot products": ("ovrcnn", [], ["--dynamic-classes"], 1e-5),
    "pseudo words": ("baron", [], [], 5e-5),  # their transformer computes in another order
    "F-VLM": ("fvlm", [*FROM_FILE, "INPUT.MAX_SIZE_TEST", "96"], ["--vocabulary", "dog, horse, cat"], 1e-5),
}

CASCADE = [  # without the data of mini OV-LVIS; more candidates than proposals
    "DATASETS.TRAIN", "('mini_ov_train',)", "DATASETS.TEST", "('mini_ov_val',)",
    "MODEL.OPEN_VOCAB.BASE_CLASSES", "mini_ov_train",
    "MODEL.CENTERNET.PRE_NMS_TOPK_TEST", "60", "MODEL.CENTERNET.POST_NMS_TOPK_TEST", "30",
]  # fmt: skip


@pytest.fixture
def make_checkpoint(tiny_cfg, tmp_path):
    """``make_checkpoint("KEY", value, …, config=…)``: path of a tiny random detector that holds its config."""

    def make(*overrides, config="mini/detic_clim.yaml"):
        torch.manual_seed(0)
        # A limit that is not reached: among the last places, equal scores may change.
        cfg = tiny_cfg("TEST.DETECTIONS_PER_IMAGE", "20000", *overrides, config=config)
        detector = Detector(cfg)
        for name, parameter in detector.model.roi_heads.named_parameters():
            if name.endswith("cls_bias"):
                nn.init.constant_(parameter, -2.0)
        detector.freeze(tmp_path / "model.pth")
        return str(tmp_path / "model.pth")

    return make


def photos(count=3):
    """RGB images of smooth noise. With seed 0, two overlapping boxes have the same score, and either may stay."""
    rng = np.random.default_rng(1)
    for i in range(count):
        height, width = SHAPES[i % len(SHAPES)]
        coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
        yield np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def export(weights, output, *options):
    main(["export", "--weights", weights, "--output", str(output), *options])


def assert_equal(detector, path, rows=None, *, count=3, box=1e-2, score=1e-5):
    """At least ten detections an image, and the same ones."""
    run, found = exported(path, rows, threads=1), 0
    for photo in photos(count):
        truth = in_pytorch(detector, photo)
        one = difference(in_file(run, photo, detector.resize), truth)
        assert one.unequal == 0 and one.box <= box and one.score <= score
        found += len(truth[0])
    assert found > 10 * count


@pytest.mark.parametrize("head", HEADS)
def test_detections_equal_pytorchs(make_checkpoint, tmp_path, head):
    config, overrides, options, score = HEADS[head]
    weights, path = make_checkpoint(*overrides, config=f"mini/{config}.yaml"), tmp_path / "model.onnx"
    export(weights, path, "--threshold", "0.01", *options, *overrides)
    classes = read_classes(options[1]) if "--vocabulary" in options else None
    detector = Detector(weights, classes=classes, score_threshold=0.01, device="cpu", overrides=overrides)
    rows = np.load(path.with_suffix(".npy")) if "--dynamic-classes" in options else None
    if head == "F-VLM":
        detector.model.square = detector.cfg.INPUT.MAX_SIZE_TEST
    assert_equal(detector, path, rows, score=score)
    if rows is not None:
        words = ["dog", "horse", "cat"]
        detector.set_classes(words)
        assert_equal(detector, path, detector.embed(words).numpy(), score=score)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--dynamic-classes"]], ids=["baked", "dynamic"])
def test_twenty_images_at_three_sizes(make_checkpoint, tmp_path, options):
    weights, path = make_checkpoint(), tmp_path / "model.onnx"
    detector = Detector(weights, device="cpu")
    for words in (None, ["dog", "horse", "cat"]):
        if words:
            detector.set_classes(words)
        export(weights, path, *options, *(["--vocabulary", ",".join(words)] if words and not options else []))
        rows = class_rows(detector.model).numpy() if options else None
        for side in (64, 96, 150):
            detector.resize = T.ResizeShortestEdge([side] * 2, 256)
            assert_equal(detector, path, rows, count=20)


def test_a_cascade_with_masks_behind_centernet(make_checkpoint, tmp_path):
    weights, path = make_checkpoint(*CASCADE, config="mini/lvis_detic.yaml"), tmp_path / "model.onnx"
    export(weights, path, "--threshold", "0.05")
    detector = Detector(weights, score_threshold=0.05, device="cpu")
    assert_equal(detector, path)
    session = onnxruntime.InferenceSession(path)
    for photo in photos():
        (truth,) = detector.detect([photo])
        resized = detector.resize.get_transform(photo).apply_image(photo)
        boxes, _, _, masks = session.run(None, {"image": resized})
        scale = np.tile(np.divide(photo.shape[1::-1], resized.shape[1::-1]), 2)
        boxes = torch.from_numpy((boxes * scale).astype(np.float32))
        whole = paste_masks_in_image(torch.from_numpy(masks), boxes, photo.shape[:2])
        assert masks.shape[1:] == (28, 28) and len(whole) == len(truth) > 3
        assert (whole != truth.pred_masks).float().mean() < 1e-3 and 0.1 < truth.pred_masks.float().mean() < 0.9


@pytest.mark.parametrize("config", ["detic_clim", "ovrcnn"])
def test_programs_of_torch_export_equal_pytorch(make_checkpoint, tmp_path, config):
    weights = make_checkpoint(config=f"mini/{config}.yaml")
    export(weights, tmp_path / "model.pt2", "--threshold", "0.01")
    detector = Detector(weights, score_threshold=0.01, device="cpu")
    assert_equal(detector, tmp_path / "model.pt2", box=1e-4, score=1e-6)
    with pytest.raises(UserError, match="model.pt2: .*trusted=True"):
        load_programs(tmp_path / "model.pt2")
    assert load_programs(tmp_path / "model.pt2", trusted=True).description["names"] == detector.names


def test_a_client_without_torch_reads_all_from_the_file(make_checkpoint, tmp_path):
    weights, path, rows = make_checkpoint(), tmp_path / "model.onnx", tmp_path / "rows.npy"
    export(weights, path, "--dynamic-classes")
    stored = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    about = {key: json.loads(value) for key, value in stored.items()}
    detector = Detector(weights, device="cpu")
    assert about["names"] == detector.names and about["novel"] == sorted(detector.novel)
    assert [about[key] for key in ("channels", "min_size", "max_size", "score_threshold")] == ["RGB", 96, 256, 0.05]
    assert about["text"] == {"tower": "minilm", "pretrained": "", "prompt": "a", "features": "embedding"}
    assert about["weights"]["sha256"] == hashlib.sha256(Path(weights).read_bytes()).hexdigest()

    words = ["dog", "horse", "cat"]
    build_text_embeddings.main(["classes", "--names", ",".join(words), "--like", str(path), "--output", str(rows)])
    assert np.load(rows).dtype == np.float32
    photo = next(photos())
    Image.fromarray(photo).save(tmp_path / "photo.png")
    run = f"runpy.run_path({str(CLIENT)!r}, None, '__main__')"
    code = f"import runpy, sys; sys.modules.update(torch=None, clim=None); {run}"
    arguments = [path, tmp_path / "photo.png", "--embeddings", rows, "--names", ",".join(words)]
    arguments += ["--output", tmp_path / "drawings"]
    printed = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout
    found = json.loads(printed)["detections"]
    arguments[1] = tmp_path / "photos"  # a folder
    arguments[1].mkdir()
    (tmp_path / "photo.png").rename(arguments[1] / "photo.png")
    (arguments[1] / "notes.txt").write_text("no image")
    of_folder = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True)
    assert json.loads(of_folder.stdout) == {"file": str(arguments[1] / "photo.png"), "detections": found}
    detector.set_classes(words)
    boxes, scores, classes = in_pytorch(detector, photo)
    places = [np.array([[one["box"] for one in found]][0]), np.array([one["score"] for one in found])]
    assert len(found) == len(boxes) > 10
    assert (
        difference((*places, np.array([words.index(one["name"]) for one in found])), (boxes, scores, classes)).unequal
        == 0
    )
    with Image.open(tmp_path / "drawings" / "photo.jpg") as drawing:
        assert drawing.size == photo.shape[1::-1] and np.ptp(np.asarray(drawing).astype(int) - photo) > 100


def test_differences_are_counted():
    boxes = np.array([[0, 0, 10, 10], [5, 5, 20, 20.0]])
    truth = boxes, np.array([0.9, 0.5]), np.array([1, 2])
    moved = boxes[::-1] + 0.005, np.array([0.4, 0.9]), np.array([2, 1])
    assert difference(truth, truth) == (0, 0.0, 0.0)
    assert difference(moved, truth) == pytest.approx((0, 0.005, 0.1))
    assert difference((boxes, truth[1], np.array([1, 1])), truth) == Difference(2, 0.0, 0.0)
    assert difference((boxes + [[0], [1]], *truth[1:]), truth).unequal == 2
    nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int)
    assert (difference(nothing, truth).unequal, difference(truth, nothing).unequal) == (2, 2)


def test_log_odds_in_a_graph_keep_their_digits(tmp_path):
    class LogOdds(nn.Module):
        def forward(self, x):
            return log_odds(x)

    values = -torch.logspace(-300, 2, 50, dtype=torch.float64)
    torch.onnx.register_custom_op_symbolic("aten::expm1", expm1, OPSET)
    torch.onnx.export(
        LogOdds(), (values,), tmp_path / "odds.onnx", dynamo=False, opset_version=OPSET, input_names=["x"]
    )
    (found,) = onnxruntime.InferenceSession(tmp_path / "odds.onnx").run(None, {"x": values.numpy()})
    np.testing.assert_allclose(found, log_odds(values).numpy(), rtol=1e-12)


def test_check_prints_what_differs(make_checkpoint, tmp_path, capsys):
    Image.fromarray(next(photos())).save(tmp_path / "photo.png")
    export(make_checkpoint(), tmp_path / "model.onnx", "--check", str(tmp_path / "photo.png"))
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]
    sizes = [["48", "1"], ["72", "1"], ["96", "1"], ["96", "2"]]
    assert [row[:2] for row in rows] == sizes and all(row[3] == "0" for row in rows)
    for _, _, detections, _, box, score, *speeds in rows:
        assert int(detections) > 0 and float(box) < 1e-2 and float(score) < 1e-5 and min(map(float, speeds)) > 0


def test_what_cannot_be_exported(make_checkpoint, mask_overrides, tmp_path, capsys, monkeypatch):
    def refused(output, *options, weights):
        with pytest.raises(SystemExit) as caught:
            export(weights, tmp_path / output, *options)
        assert caught.value.code == 2 and not (tmp_path / output).exists()
        return capsys.readouterr().err

    gone = str(tmp_path / "gone.pth")
    assert "gone.pth does not exist" in refused("a.onnx", weights=gone)
    weights = make_checkpoint(*mask_overrides)
    assert "decides the format" in refused("a.trt", weights=weights)
    assert "is for ONNX files" in refused("a.pt2", "--dynamic-classes", weights=weights)
    assert "has no .pt2 form" in refused("a.pt2", weights=weights)
    words = ["--dynamic-classes", "--vocabulary", "dog: puppy; cat"]
    assert "have synonyms" in refused("a.onnx", *words, weights=weights)
    per_class = make_checkpoint("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "False")
    assert "CLS_AGNOSTIC_BBOX_REG False" in refused("a.onnx", weights=per_class)
    fvlm = make_checkpoint(*FROM_FILE, config="mini/fvlm.yaml")
    assert "which classes had boxes" in refused("a.onnx", "--dynamic-classes", *FROM_FILE, weights=fvlm)
    assert "set INPUT.LSJ.SIZE to at least" in refused("a.onnx", "INPUT.MIN_SIZE_TEST", "64", *FROM_FILE, weights=fvlm)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install -r requirements-extras.txt" in refused("a.onnx", weights=weights)
    with pytest.raises(UserError, match="takes an ONNX file of `clim export`"):
        build_text_embeddings.text_of(CLIENT)
