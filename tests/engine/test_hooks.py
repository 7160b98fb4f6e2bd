"""Lines, bar and images of a training, which change no number; what services get, also from a run that resumes."""

import io
import json
import logging
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage, EventWriter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clim.engine import Trainer
from clim.engine.hooks import RUN_IDS, ProgressBar, ServiceWriter, TrainingImages, Writers, build_writers
from clim.engine.setup import check_hooks
from clim.errors import UserError


def run(cfg):
    seed_all_rng(1)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()


def test_images_change_no_number(tiny_cfg, tmp_path, metrics_of, drawn):
    """They come from both batches' sources, and from the evaluations, at their iterations."""
    metrics, numbers = [], []
    for name, period in (("plain", 0), ("images", 2)):
        keys = ("SOLVER.MAX_ITER", 3, "TEST.EVAL_PERIOD", 2, "VIS_PERIOD", period, "SOLVER.LOG_PERIOD", 2)
        run(tiny_cfg(*keys, "OUTPUT_DIR", str(tmp_path / name)))
        metrics.append(metrics_of(tmp_path / name, "loss", "norm", "lr", "AP", "AR"))
        numbers.append(drawn())
    assert metrics[0] == metrics[1] and numbers[0] == numbers[1]
    events = EventAccumulator(str(tmp_path / "images"), size_guidance={"images": 0}).Reload()
    steps = {tag: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]}
    assert steps.pop("Left: GT bounding boxes;  Right: Predicted proposals") == [0, 2]
    shown = {f"{source}/{i}": [0, 2] for source in ("detection", "captions", "mosaics") for i in range(2)}
    assert steps == shown | {f"detections/{i}": [1, 3] for i in range(4)}
    assert (events.Images("mosaics/0")[0].width, events.Images("mosaics/0")[0].height) == (128, 128)


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_boxes_are_where_they_belong_and_batches_stay_as_they_are(image_format):
    """An image of 50 x 40 px that is detected in at twice its size, with a box around its centre."""
    image = torch.full((3, 80, 100), 7, dtype=torch.uint8)
    image[2 if image_format == "BGR" else 0] = 200
    hook = TrainingImages(period=1, names=["dog"], image_format=image_format)
    found = Instances((40, 50), pred_boxes=Boxes([[20.0, 15.0, 30.0, 25.0], [0.0, 0.0, 1.0, 1.0]]))
    found.scores, found.pred_classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 1])
    net = torch.nn.Identity().eval()
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(raw_model=net, storage=storage, iter=1, batch={})
        hook.before_train()
        net.forward = lambda batch: [{"instances": found[:1]} for _ in batch]
        net([{"image": image, "width": 50, "height": 40}] * 3)
        net([{"image": image, "width": 50, "height": 40}] * 3)
        assert [name for name, *_ in storage._vis_data] == [f"detections/{i}" for i in range(4)]
        shown = storage._vis_data[0][1]
    assert shown[:, 75, 95].tolist() == [200, 7, 7] and image[1].unique().tolist() == [7]
    changed = np.argwhere((shown != shown[:, 75:76, 95:96]).any(0))
    assert changed[:, 1].min() >= 36 and changed[:, 0].max() <= 52  # the label is above the box, inside the image
    assert hook.named(torch.tensor([0, 1])) == ["dog", "1"] and found.pred_boxes.tensor[0].tolist() == [20, 15, 30, 25]


class Recorder(EventWriter):
    def __init__(self):
        self.calls = []

    def write(self):
        self.calls.append("write")

    def close(self):
        self.calls.append("close")


def test_the_first_line_comes_at_once_then_every_period():
    first, second = Recorder(), Recorder()
    hook, lines = Writers([first, second], period=4), []
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(storage=storage, start_iter=5, max_iter=10)
        for hook.trainer.iter in range(5, 10):
            before = len(first.calls), len(second.calls)
            hook.after_step()
            lines.append((len(first.calls) - before[0], len(second.calls) - before[1]))
        assert lines == [(1, 0), (0, 0), (1, 1), (0, 0), (1, 1)]
    hook.close()
    assert first.calls == ["write"] * 3 and second.calls == ["write"] * 3 + ["close"]


def test_a_bar_shows_loss_and_progress_below_the_log(monkeypatch):
    terminal, logger = io.StringIO(), logging.getLogger("clim.test")
    monkeypatch.setattr(sys, "stdout", terminal)
    handler = logging.StreamHandler(terminal)
    logging.getLogger("clim").addHandler(handler)
    try:
        with EventStorage() as storage:
            bar = ProgressBar()
            bar.trainer = SimpleNamespace(storage=storage, start_iter=2, max_iter=4)
            bar.before_train()
            storage.put_scalar("total_loss", 1.25)
            bar.after_step()
            logger.warning("a line")
            bar.after_step()
            bar.after_train()
    finally:
        logging.getLogger("clim").removeHandler(handler)
    text = terminal.getvalue()
    assert "4/4" in text and "loss=1.25" in text and "\na line\n" in text.replace("\r", "\n")


def put(storage, iteration, **scalars):
    storage.iter = iteration
    for name, value in scalars.items():
        storage.put_scalar(name, value, smoothing_hint=name.startswith("loss"))


def test_new_finite_scalars_are_sent_once():
    writer, sent = ServiceWriter(), []
    writer.log = lambda scalars, iteration: sent.append((iteration, scalars))
    with EventStorage() as storage:
        put(storage, 0, loss=1.0, lr=0.1)
        put(storage, 1, loss=4.0, **{"bbox/AP-hot dog (food)": 7.0, "nan": math.nan})
        put(storage, 2, loss=2.0, lr=0.2)
        writer.write()
        writer.write()
        put(storage, 3, loss=9.0, lr=0.3)
        writer.write()
    assert sent == [
        (1, {"bbox/AP-hot dog _food_": 7.0}), (2, {"loss": 2.0, "lr": 0.2}), (3, {"loss": 3.0, "lr": 0.3}),
    ]  # fmt: skip


def session(cfg, *, resume, iteration):
    """The writers of one session, which log one loss."""
    with EventStorage(iteration) as storage:
        writers = build_writers(cfg, resume=resume, start_iter=iteration)
        put(storage, iteration, loss=float(iteration), time=1.0)
        for writer in writers:
            writer.write()
            writer.close()
    return writers


def test_mlflow_goes_on_in_the_same_run(tiny_cfg, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    cfg = tiny_cfg("SOLVER.WRITERS", ["mlflow", "tensorboard"])
    session(cfg, resume=False, iteration=3)
    first = json.loads(Path(cfg.OUTPUT_DIR, RUN_IDS).read_text())["mlflow"]
    session(cfg, resume=True, iteration=4)
    client = mlflow.MlflowClient()
    assert [(m.step, m.value) for m in client.get_metric_history(first, "loss")] == [(3, 3.0), (4, 4.0)]
    run = client.get_run(first).info
    assert (run.run_name, run.status) == ("output", "FINISHED")
    assert [file.path for file in client.list_artifacts(first)] == ["config.yaml"]
    session(cfg, resume=False, iteration=0)
    assert json.loads(Path(cfg.OUTPUT_DIR, RUN_IDS).read_text())["mlflow"] != first


def test_wandb_goes_on_in_the_same_run(tiny_cfg, monkeypatch):
    pytest.importorskip("wandb")
    for key, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(key, value)
    cfg = tiny_cfg("SOLVER.WRITERS", ["wandb"])
    first, second = (session(cfg, resume=resume, iteration=3 + resume)[-1] for resume in (False, True))
    files = sorted(Path(cfg.OUTPUT_DIR, "wandb").glob("offline-run-*/*.wandb"))
    assert first.run_id == second.run_id and {file.stem for file in files} == {f"run-{first.run_id}"}
    end = time.monotonic() + 20  # W&B's own process writes the files
    while not (written := all(b"loss" in file.read_bytes() for file in files)) and time.monotonic() < end:
        time.sleep(0.2)
    assert written


@pytest.mark.parametrize(
    "keys, sentence",
    [
        (("SOLVER.WRITERS", ["wandb"]), r'WRITERS "wandb" needs wandb: pip install -r requirements-extras\.txt'),
        (("SOLVER.EMA", 0.9, "SOLVER.WEIGHT_ENSEMBLE", 0.7), "SOLVER.EMA and SOLVER.WEIGHT_ENSEMBLE would both"),
        (("TEST.BEST_METRIC", "bbox/AP"), "needs evaluations during the training: set DATASETS.TEST and TEST.EVAL"),
    ],
)
def test_mistakes_are_told_before_training(tiny_cfg, monkeypatch, keys, sentence):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=sentence):
        check_hooks(tiny_cfg("SOLVER.WRITERS", [], *keys))
