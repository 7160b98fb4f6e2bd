"""Trainings as resumable steps, with a quick stand-in for train_net.py that follows a plan."""

import io
import json
import os
import time
from pathlib import Path

import pytest

from clim.errors import UserError
from experiments import training
from experiments.launch import Launch, describe_machine
from experiments.progress import Board, clock
from experiments.rows import Row, config_of
from experiments.run_files import Progress, evaluation, last_iteration, log_tail, read_metrics
from experiments.training import below, holding, run_together, run_training, settings_of

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "mini" / "base_stage.yaml"
STAND_IN = """
import json, os, sys, time
from pathlib import Path
arguments = sys.argv[1:]
output = Path(arguments[arguments.index("OUTPUT_DIR") + 1])
calls = output.parent / "calls.txt"
number = len(calls.read_text().splitlines()) if calls.exists() else 0
environment = {key: os.environ[key] for key in ("DETECTRON2_DATASETS", "OMP_NUM_THREADS")}
with open(calls, "a") as file:
    file.write(json.dumps([arguments, environment]) + "\\n")
plan = json.loads((output.parent / "plan.json").read_text())
plan = plan.get(output.name, plan) if isinstance(plan, dict) else plan
step = plan[min(number, len(plan) - 1)]
end = arguments[arguments.index("SOLVER.MAX_ITER") + 1] if "SOLVER.MAX_ITER" in arguments else 300
print("Training from iteration 0 to", end, flush=True)
with open(output / "metrics.json", "a") as file:
    file.write(json.dumps({"iteration": 19, "total_loss": 2.5, "eta_seconds": 60.0}) + "\\n")
(output / "last_checkpoint").write_text("model_0000019.pth")
if step == "fail":
    print("\\x1b[32mlearning\\x1b[0m")
    print("error: loss_cls = nan")
    sys.exit(2)
if step == "hang":
    time.sleep(60)
time.sleep(step)
folder = output / "inference" / "mini_ov_val"
folder.mkdir(parents=True, exist_ok=True)
summary = {"AP50_novel": 1.0, "AP50_base": 2.0, "AP50_all": 3.0}
report = {"dataset": "mini_ov_val", "summary": summary, "per_class": [{"class": "dog"}]}
(folder / "ov_coco_results.json").write_text(json.dumps(report))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Takes a plan: seconds, "fail" or "hang" for each call in turn. ``calls()`` lists the calls."""
    script = tmp_path / "train_net.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(training, "TRAIN_NET", script)
    monkeypatch.setattr(training, "POLL_SECONDS", 0.02)

    def plan(*steps, **by_name):
        (tmp_path / "plan.json").write_text(json.dumps(by_name or steps))

    plan(0)
    plan.calls = lambda: [json.loads(line) for line in (tmp_path / "calls.txt").read_text().splitlines()]
    return plan


def run(tmp_path, *overrides, **options):
    return run_training(CONFIG, output=tmp_path / "run", overrides=overrides, datasets_root=tmp_path, **options)


def test_a_finished_run_is_kept(tmp_path, stand_in):
    seen = []
    first = run(tmp_path, "SEED", 7, threads=3, progress=seen.append)
    assert first["AP50_novel"] == 1.0 and first["per_class"] == [{"class": "dog"}]
    assert seen[0] == Progress("starting") and seen[-1] == Progress("finished")
    seen.clear()
    assert run(tmp_path, "SEED", 7, progress=seen.append) == first
    assert seen == [Progress("kept")]
    ((arguments, environment),) = stand_in.calls()
    assert arguments == [
        "--config-file", str(CONFIG), "--resume", "OUTPUT_DIR", str(tmp_path / "run"), "SEED", "7",
    ]  # fmt: skip
    assert environment == {"DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "3"}


def test_a_record_names_the_commit_that_a_training_began_with(tmp_path, stand_in, monkeypatch):
    stand_in(0.3)
    commits = ["first"]
    monkeypatch.setattr(training, "commit_of_code", lambda: commits[-1])
    run(tmp_path, progress=lambda now: commits.append("next") if now.phase != "starting" else None)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["commit"] == "first"


def test_figures_of_tasks_and_of_further_sets_have_their_names_in_front(tmp_path):
    for name, figure in (("set", 4.0), ("other", 5.0)):
        (tmp_path / "inference" / name).mkdir(parents=True)
        summary = {"segm": {"AP": 3.0, "APr": None}, "bbox": {"AP": figure}}
        report = {"dataset": name, "summary": summary, "per_class": [{"class": name}]}
        (tmp_path / "inference" / name / "lvis_results.json").write_text(json.dumps(report))
    expected = {"segm/AP": 3.0, "segm/APr": None, "bbox/AP": 4.0, "per_class": [{"class": "set"}]}
    assert evaluation(tmp_path, ["set"]) == expected
    others = {"other/segm/AP": 3.0, "other/segm/APr": None, "other/bbox/AP": 5.0}
    assert evaluation(tmp_path, ["set", "other"]) == expected | others


def test_other_settings_start_over(tmp_path, stand_in):
    run(tmp_path, "SEED", 1)
    for seed in (2, 1):  # what is there is moved, not deleted
        (tmp_path / "run" / "old.pth").write_text(str(seed))
        run(tmp_path, "SEED", seed)
    assert len(stand_in.calls()) == 3
    assert [(tmp_path / name / "old.pth").read_text() for name in ("run.1", "run.2")] == ["2", "1"]
    assert json.loads((tmp_path / "run.1" / "results.json").read_text())["results"]["AP50_novel"] == 1.0
    assert not (tmp_path / "run" / "old.pth").exists()
    (tmp_path / "run").rename(tmp_path / "moved")  # log period and place do not matter
    same = ["SEED", 1, "SOLVER.LOG_PERIOD", 3]
    run_training(CONFIG, output=tmp_path / "moved", overrides=same, datasets_root=tmp_path)
    assert len(stand_in.calls()) == 3
    for _ in range(2):  # without a test, "seconds" are the result
        assert list(run(tmp_path, "DATASETS.TEST", "()")) == ["seconds"]
    assert len(stand_in.calls()) == 4


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"settings": 3}', '{"seconds": NaN}', "\udcff", "\0" * 40])
def test_a_record_that_cannot_be_read_is_told_and_its_run_stays(tmp_path, stand_in, damage):
    run(tmp_path)
    record = tmp_path / "run" / "results.json"
    record.write_text(damage, errors="surrogateescape")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"{record}.*: if you want to keep .*, rename {record.parent}"):
        run(tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "key, file",
    [
        (None, "mini/annotations/instances_train_base.json"), (None, "mini/metadata/classes_minilm.npy"),
        ("MODEL.TEXT.PRETRAINED", "named"), ("INPUT.MOSAIC.PARTNERS", "named"),
        ("MODEL.OPEN_VOCAB.BASE_CLASSES", "named"), ("MODEL.METHOD.VLDET.EMBEDDINGS", "named"),
    ],
)  # fmt: skip
def test_other_contents_of_the_inputs_start_over(tmp_path, stand_in, key, file):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    for content, calls in (("{}", 1), ("{}", 1), ("{ }", 2)):
        path.write_text(content)
        run(tmp_path, *([key, str(path)] if key else []))
        assert len(stand_in.calls()) == calls


def test_a_failed_run_says_why_and_goes_on_next_time(tmp_path, stand_in):
    stand_in("fail", 0)
    with pytest.raises(UserError, match="exit code 2") as error:
        run(tmp_path)
    assert str(error.value).endswith("train.log ends:\n    error: loss_cls = nan")
    (tmp_path / "log").write_text("\n".join(f"\x1b[32mline {i}\x1b[0m" for i in range(30)))
    assert log_tail(tmp_path / "log", lines=2) == "    line 28\n    line 29"
    seen = []
    run(tmp_path, progress=seen.append)
    assert seen[0] == Progress("resuming") and len(stand_in.calls()) == 2


def test_seconds_add_up_over_sessions(tmp_path, stand_in):
    stand_in("hang", 0.3)

    def stop(progress):
        if progress.phase == "training":
            time.sleep(0.3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=stop)
    first = json.loads((tmp_path / "run" / "results.json").read_text())["seconds"]
    assert run(tmp_path)["seconds"] >= first + 0.2


def test_progress_comes_from_the_metrics(tmp_path, stand_in):
    stand_in(0.3)
    seen = []
    run(tmp_path, "SOLVER.MAX_ITER", 100, "SOLVER.STEPS", "()", progress=seen.append)
    assert Progress("training", 20, 100, 60.0, 2.5) in seen
    seen.clear()
    run(tmp_path, "SOLVER.MAX_ITER", 20, "SOLVER.STEPS", "()", progress=seen.append)
    assert Progress("evaluating", 0, 0) in seen


def test_the_last_session_in_a_log_says_where_it_ends(tmp_path):
    log = tmp_path / "train.log"
    log.write_text("Training from iteration 0 to 90000\n")
    size = log.stat().st_size
    log.write_text(log.read_text() + "begins\n")
    assert (last_iteration(log, start=0), last_iteration(log, start=size)) == (90000, None)
    log.write_text(log.read_text() + "[12:00 trainer]: Training from iteration 500 to 720000\n")
    assert last_iteration(log, start=size) == 720000


def test_a_run_is_the_same_on_a_machine_without_gpu(tmp_path):
    found = []
    for device in ("cuda", "cpu"):
        cfg = config_of(Row("mini/base_stage.yaml")).clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = device
        found.append(settings_of(cfg, tmp_path, beside=tmp_path))
    assert found[0] == found[1]


def test_a_run_is_the_same_wherever_it_and_its_start_lie(tmp_path, monkeypatch):
    """One folder has several spellings, and may move."""
    found = []
    monkeypatch.chdir(tmp_path)
    for folder in (Path("out"), tmp_path / "out", Path("..", tmp_path.name, "out"), tmp_path / "moved"):
        (folder / "base").mkdir(parents=True, exist_ok=True)
        (folder / "base/model_final.pth").write_text("weights")
        row = Row("mini/detic.yaml", ("MODEL.WEIGHTS", folder / "base/model_final.pth"))
        found.append(settings_of(config_of(row), tmp_path, beside=folder))
    assert found[1:] == found[:1] * 3 and "base/model_final.pth" in found[0]["inputs"]
    assert "WEIGHTS: base/model_final.pth" in found[0]["config"]
    assert below("else/where.pth", Path("out")) == "else/where.pth" and below("", Path()) == ""


def test_a_machine_is_named_by_what_a_training_runs_on(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Big GPU")
    assert describe_machine(Launch(8, 2), device="cuda").startswith("16 x Big GPU, torch ")
    assert f"{os.cpu_count()} cores of " in describe_machine(Launch(), device="cpu")


def test_the_facts_of_an_index_of_shards_are_inputs(tmp_path):
    index = tmp_path / "shards"
    index.mkdir()
    cfg = config_of(Row("mini/base_stage.yaml", ("INPUT.MOSAIC.PARTNERS", str(index))))
    found = []
    for facts in ("{}", "{ }"):
        (index / "facts.json").write_text(facts)
        found.append(settings_of(cfg, tmp_path, beside=tmp_path / "runs")["inputs"][str(index)])
    assert found[0] != found[1]


def test_folders_of_others_are_left_alone(tmp_path, stand_in):
    with holding(tmp_path / "run"), pytest.raises(UserError, match="another training is still writing there"):
        run(tmp_path)
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds files that no such run has made"):
        run(tmp_path)
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


def test_runs_together_and_one_failure_stops_the_others(tmp_path, stand_in):
    def together(*names):
        arguments = {"config": CONFIG, "datasets_root": tmp_path}
        return run_together({name: arguments | {"output": tmp_path / name} for name in names}, at_once=2)

    results = together("b", "a", "c")
    assert list(results) == ["b", "a", "c"] and all(r["AP50_all"] == 3.0 for r in results.values())
    stand_in(d=["hang"], e=["fail"])
    start = time.monotonic()
    with pytest.raises(UserError, match="loss_cls = nan"):
        together("d", "e")
    assert time.monotonic() - start < 40  # of the 60 that "d" would take


def test_metrics_of_a_resumed_run_are_read_once(tmp_path):
    lines = [{"iteration": 0, "a": 1}, {"iteration": 20, "a": 2}, {"iteration": 20, "a": 3}, {"iteration": 20, "b": 4}]
    odd = ["5", "null", "[]", '{"iteration": "9"}', '{"iteration": 1e3}', '{"iteration": 7, "a": "x"}', "\0", "\udcff"]
    text = "\n".join([*map(json.dumps, lines), *odd]) + '\n{"iteration": 40, "a'
    (tmp_path / "metrics.json").write_text(text, errors="surrogateescape")
    assert read_metrics(tmp_path) == [{"iteration": 0, "a": 1}, {"iteration": 20, "a": 3, "b": 4}]
    assert read_metrics(tmp_path / "nowhere") == []


def test_the_board_writes_lines_to_a_file_and_redraws_one_on_a_terminal():
    stream = io.StringIO()
    board = Board(stream, period=1000)
    update = board.of("Detic")
    for done in (20, 40, 60):
        update(Progress("training", done, 300, 83.0, 2.345))
    update(Progress("evaluating", 11, 250))
    board.done("Detic", "fine")
    assert stream.getvalue().splitlines() == [
        "  Detic: iteration 20 of 300, loss 2.35, 1:23 left", "  Detic: evaluating, image 11 of 250", "  Detic: fine",
    ]  # fmt: skip
    stream = io.StringIO()
    stream.isatty = lambda: True
    board = Board(stream)
    board.of("a")(Progress("starting"))
    board.of("b")(Progress("training", 1, 2))
    board.done("a", "fine")
    assert stream.getvalue().split("\r\x1b[K") == [
        "", "a: starting", "a: starting   b: iteration 1 of 2", "  a: fine\n",
    ]  # fmt: skip
    assert [clock(s) for s in (0, 59.6, 83, 3723)] == ["0:00", "1:00", "1:23", "1:02:03"]
