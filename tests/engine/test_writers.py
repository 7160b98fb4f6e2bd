"""What services get: new finite scalars, once; a resumed run goes on in its run."""

import json
import math
from pathlib import Path

import pytest
from detectron2.utils.events import EventStorage

from clim.engine.setup import check_hooks
from clim.engine.writers import RUN_IDS, ServiceWriter, build_writers
from clim.errors import UserError


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
    assert all(b"loss" in file.read_bytes() for file in files)


@pytest.mark.parametrize(
    "keys, sentence",
    [
        (("SOLVER.WRITERS", ["wandb"]), r'WRITERS "wandb" needs wandb: pip install -r requirements-extras\.txt'),
        (("SOLVER.EMA", 0.9, "SOLVER.WEIGHT_ENSEMBLE", 0.7), "SOLVER.EMA and SOLVER.WEIGHT_ENSEMBLE would both"),
        (("TEST.BEST_METRIC", "bbox/AP"), "needs evaluations during the training: set DATASETS.TEST and TEST.EVAL"),
        (("SOLVER.WRITERS", ["csv"]), r"SOLVER.WRITERS is \['csv'\]: it must be a list of tensorboard, wandb"),
        (("SOLVER.AMP.DTYPE", "half"), "SOLVER.AMP.DTYPE is half: it must be float16 or bfloat16"),
    ],
)
def test_mistakes_are_told_before_training(tiny_cfg, monkeypatch, keys, sentence):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=sentence):
        check_hooks(tiny_cfg("SOLVER.WRITERS", [], *keys))
