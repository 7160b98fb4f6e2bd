"""Rows at full size run in order, on several machines and as Slurm jobs, with a stand-in for train_net.py."""

import importlib
import json
import os
import pickle
import signal
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import pytest

from clim.errors import UserError
from clim_commands.main import main
from experiments import full, training
from experiments.full import Step, Training, needed_files, plan, run_tasks
from experiments.launch import Launch
from experiments.rows import Row, config_of
from experiments.tables import Entry, Table
from experiments.training import run_training, settings_of

# Writes what train_net.py writes, and fails where "fail" names its folder.
STAND_IN = """
import json, sys
from pathlib import Path
words = sys.argv[1:]
if "--output" in words:
    Path(words[words.index("--output") + 1]).write_text("made")
    sys.exit()
output = Path(words[words.index("OUTPUT_DIR") + 1])
here = Path(__file__).parent
with open(here / "calls.txt", "a") as file:
    file.write(json.dumps(words) + "\\n")
if (here / "fail").exists() and (here / "fail").read_text() == output.name:
    print("error: loss_cls = nan")
    sys.exit(2)
(output / "model_final.pth").write_text("weights")
folder = output / "inference" / "mini_ov_val"
folder.mkdir(parents=True, exist_ok=True)
report = {"dataset": "mini_ov_val", "summary": {"AP50_novel": 12.3}, "per_class": []}
(folder / "ov_coco_results.json").write_text(json.dumps(report))
"""
BASE = Row("mini/base_stage.yaml", ("MODEL.VOCABULARY.EMBEDDINGS", "mini/made.npy"))
TUNED = Row("mini/detic.yaml", starts_from=(("MODEL.WEIGHTS", BASE, "model_final.pth"),))
LAST = Row("mini/detic_clim.yaml", starts_from=(("MODEL.WEIGHTS", BASE, "model_final.pth"),))
METRICS = {"AP50_novel": "novel"}
TABLES = (
    Table("2a", "rows", [Entry("first", full=TUNED, published={"novel": 30}), Entry("theirs")], METRICS),
    Table("2b", "more", [Entry("last", full=LAST), Entry("first", full=TUNED)], METRICS),
)


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """``calls()``: the arguments of the stand-in so far, data sets and steps' files aside."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(training, "TRAIN_NET", script)
    monkeypatch.setattr(training, "POLL_SECONDS", 0.02)
    monkeypatch.setattr("reproduce.TABLES", TABLES)
    monkeypatch.setattr("reproduce.full.STEPS", (Step("mini/made.npy", f"{script} make"),))
    monkeypatch.setattr("clim_commands.reproduce.check_processes", lambda args: None)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    for row in (BASE, TUNED, LAST):
        for file in needed_files(config_of(row)):
            if file != "mini/made.npy":
                path = tmp_path / "data" / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}") if path.suffix else path.mkdir(exist_ok=True)
    path = tmp_path / "calls.txt"
    return lambda: [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def folders(calls):
    return [words[words.index("OUTPUT_DIR") + 1].rpartition("/")[2] for words in calls]


def reproduce(*words):
    main(["reproduce", "--output", "out", *words])


NAMES = [row.folder(Path(), 0).name for row in (BASE, TUNED, LAST)]


def test_what_is_missing_runs_in_order_and_a_killed_call_goes_on(tmp_path, calls, capsys):
    (tmp_path / "fail").write_text(NAMES[2])
    with pytest.raises(SystemExit):
        reproduce("--table", "2a", "2b", "--num-gpus", "8")
    assert "loss_cls = nan" in capsys.readouterr().err
    assert folders(calls()) == NAMES and (tmp_path / "data/mini/made.npy").read_text() == "made"
    assert calls()[1][:4] == ["--config-file", calls()[1][1], "--resume", "--num-gpus"]
    weights = f"out/full/seed0/{NAMES[0]}/model_final.pth"
    folder = f"out/full/seed0/{NAMES[1]}"
    words = ["8", "--dist-url", "auto", "OUTPUT_DIR", folder, "SEED", "0", "MODEL.WEIGHTS", weights]
    assert calls()[1][4:] == words  # another training may run on this machine
    (tmp_path / "fail").unlink()
    reproduce("--table", "2a", "2b", "--num-gpus", "8")  # trains the one that failed
    assert folders(calls()) == [*NAMES, NAMES[2]]
    text = (tmp_path / "out/full/tables.md").read_text()
    assert "| first | 12.3 | 30.0 | 12.3 |" in text and "theirs (quoted; figure not verified here)" in text
    assert f"seed 0; on {json.loads((tmp_path / folder / 'results.json').read_text())['machine']}" in text
    reproduce("--dry-run", "--table", "2a", "--output", str(tmp_path / "out"))  # the same folder
    out = capsys.readouterr().out
    assert f"2. {NAMES[0]}, seed 0: finished" in out and "1. mini/made.npy: there" in out
    assert len(calls()) == 4
    record = tmp_path / folder / "results.json"
    record.write_text(record.read_text().replace("BASE_LR: 0.00", "BASE_LR: 0.01"))  # of an earlier config
    reproduce("--dry-run", "--table", "2a")
    assert f"3. {NAMES[1]}, seed 0: not finished" in capsys.readouterr().out


def test_a_file_that_is_older_than_its_checkpoint_is_made_anew(tmp_path, calls):
    """Labels of a detector that has been trained anew are another detector's."""
    step = Step("mini/made.npy", f"{training.TRAIN_NET} make {{start}}", start=BASE._replace(overrides=()))
    (preparation,) = [t for t in plan([TUNED], [0], output=tmp_path, steps=(step,)) if not isinstance(t, Training)]
    made, start = tmp_path / "data/mini/made.npy", preparation.start
    assert start == BASE._replace(overrides=()).folder(tmp_path, 0) / "model_final.pth" and not preparation.done()
    made.touch()
    assert preparation.done()  # there is no checkpoint that would say otherwise
    start.parent.mkdir(parents=True)
    for seconds, done in ((-10, True), (10, False)):
        start.touch()
        os.utime(start, times=(made.stat().st_mtime + seconds,) * 2)
        assert preparation.done() is done
    made.write_text("mine")
    os.utime(made, times=(start.stat().st_mtime - 1,) * 2)
    preparation.run(Launch())
    os.utime(start, times=(made.stat().st_mtime,) * 2)
    assert made.read_text() == "made" and preparation.done()
    assert made.with_name("made.npy.old").read_text() == "mine"


def test_one_of_several_machines_ends_at_its_first_failure(tmp_path, calls):
    (tmp_path / "fail").write_text(NAMES[1])
    tasks = plan([TUNED, LAST], [0], output=tmp_path / "out", steps=(Step("mini/made.npy", f"{training.TRAIN_NET} x"),))
    with pytest.raises(UserError, match="loss_cls = nan"):
        run_tasks(tasks, Launch(8, 2, 0, "tcp://first:1234"))
    assert folders(calls()) == NAMES[:2]


@pytest.mark.parametrize("fails, trained", [(0, NAMES[:1]), (1, NAMES)])
def test_a_row_that_fails_ends_only_those_that_start_from_it(tmp_path, calls, capsys, fails, trained):
    (tmp_path / "fail").write_text(NAMES[fails])
    with pytest.raises(SystemExit):
        reproduce("--table", "2a", "2b")
    error = capsys.readouterr().err
    assert folders(calls()) == trained and error.count("loss_cls = nan") == 1
    assert error.count(f"was left out: {NAMES[0]}, seed 0 failed") == (2 if fails == 0 else 0)


def test_a_missing_file_stops_before_the_first_training(tmp_path, calls, capsys):
    (tmp_path / "data/mini/annotations/instances_val_all.json").unlink()
    with pytest.raises(SystemExit):
        reproduce("--table", "2a")
    error = capsys.readouterr().err
    assert "instances_val_all.json is missing: make it with: python tools/make_mini.py" in error and not calls()


@pytest.mark.parametrize(
    "words, told",
    [
        *((words, "are for --scale full") for words in ("--num-gpus 8", "--machine-rank 1", "--slurm", "--dry-run")),
        ("--table 2b", "no rows with --scale mini"),
    ],
)
def test_options_that_do_not_go_with_a_scale_are_told(calls, words, told, capsys):
    with pytest.raises(SystemExit):
        reproduce("--scale", "mini", *words.split())
    assert told in capsys.readouterr().err and not calls()


@pytest.mark.parametrize("scale", ["full", "mini"])
def test_sigterm_is_like_ctrl_c_until_the_trainings_are_over(calls, scale, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("reproduce.TABLES", [TABLES[0]._replace(entries=[Entry("both", TUNED, TUNED)])])
    for function in ("full.run_tasks", "rows.run_rows"):
        monkeypatch.setattr(f"experiments.{function}", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        reproduce("--scale", scale, "--table", "2a")
    assert ended.value.code == 130 and signal.getsignal(signal.SIGTERM) == before


def test_other_machines_train_what_the_first_one_begins(tmp_path, calls):
    tasks = plan([TUNED], [0], output=tmp_path / "out", steps=(Step("mini/made.npy", f"{training.TRAIN_NET} make"),))
    launches = [Launch(8, 2, rank, "tcp://first:1234") for rank in (0, 1)]
    other = threading.Thread(target=run_tasks, args=(tasks, launches[1]))
    other.start()
    other.join(0.5)
    assert other.is_alive() and not calls()
    run_tasks(tasks, launches[0])
    other.join(60)
    ranks = [words[words.index("--machine-rank") + 1] for words in calls()]
    assert [name for rank, name in zip(ranks, folders(calls()), strict=True) if rank == "0"] == NAMES[:2]
    words = next(words for words in calls() if "0" == words[words.index("--machine-rank") + 1])
    assert words[3:11] == [
        "--num-gpus", "8", "--num-machines", "2", "--machine-rank", "0", "--dist-url", "tcp://first:1234",
    ]  # fmt: skip
    assert not other.is_alive()


def test_another_machine_trains_beside_an_unfinished_record(tmp_path, calls):
    """Its own log, no record of its own; it returns when the first machine's record has figures."""
    output, config = tmp_path / "run", full.CONFIGS / "mini/base_stage.yaml"
    settings = settings_of(config_of(Row("mini/base_stage.yaml")), tmp_path / "data", beside=tmp_path)
    record = {"settings": settings, "seconds": 5.0, "results": None}
    output.mkdir()
    (output / "results.json").write_text(json.dumps(record))
    found = []
    launch = Launch(2, 2, 1, "tcp://first:1")
    other = threading.Thread(target=lambda: found.append(run_training(config, output=output, launch=launch)))
    other.start()
    while not (output / "model_final.pth").exists():
        other.join(0.05)
    assert other.is_alive() and (output / "train.log.1").is_file() and not (output / "train.log").exists()
    (output / "results.json").write_text(json.dumps(record | {"results": {"AP50_novel": 7.0}}))
    other.join(60)
    assert found == [{"AP50_novel": 7.0, "seconds": 5.0}]


def test_a_run_that_was_begun_by_hand_is_adopted(tmp_path, calls):
    config = full.CONFIGS / "mini/base_stage.yaml"
    cfg = config_of(Row("mini/base_stage.yaml")).clone()
    cfg.defrost()
    for lr, adopted in ((0.5, False), (cfg.SOLVER.BASE_LR, True)):
        output = tmp_path / f"run{adopted}"
        output.mkdir()
        changed = cfg.clone()
        changed.SOLVER.BASE_LR, changed.OUTPUT_DIR = lr, str(output)
        (output / "config.yaml").write_text(changed.dump())
        if adopted:
            assert run_training(config, output=output)["AP50_novel"] == 12.3
        else:
            with pytest.raises(UserError, match="no such run has made"):
                run_training(config, output=output)
    assert folders(calls()) == ["runTrue"]


@pytest.fixture
def slurm(monkeypatch):
    """A stand-in for submitit. ``slurm.submitted``: (constructor's words, parameters, function) of each job."""
    module = ModuleType("submitit")
    submitted, ended = [], set()

    class AutoExecutor:
        def __init__(self, **words):
            self.words, self.parameters = words, {}

        def update_parameters(self, **parameters):
            self.parameters |= parameters

        def submit(self, function):
            submitted.append((self.words, self.parameters, function))
            return SimpleNamespace(job_id=str(100 + len(submitted)))

    class Checkpointable:
        pass

    module.AutoExecutor, module.submitted, module.ended = AutoExecutor, submitted, ended
    module.SlurmJob = lambda folder, job_id: SimpleNamespace(done=lambda: job_id in ended)
    again = lambda function: ("again", function)  # noqa: E731
    module.helpers = SimpleNamespace(Checkpointable=Checkpointable, DelayedSubmission=again)
    module.JobEnvironment = lambda: SimpleNamespace(job_id="103", node=1, hostnames=["first", "second"])
    monkeypatch.setitem(sys.modules, "submitit", module)
    monkeypatch.delitem(sys.modules, "experiments.slurm", raising=False)
    monkeypatch.setenv("PYTHONPATH", "")
    yield module
    sys.modules.pop("experiments.slurm", None)


def test_slurm_gets_a_job_for_each_task_which_waits_for_what_it_needs(tmp_path, calls, slurm, capsys, monkeypatch):
    words = ["--table", "2b", "--num-gpus", "8", "--num-machines", "2", "--slurm"]
    words += ["partition=gpu", "timeout_min=600", "slurm_mem=0"]
    reproduce(*words)
    names = ["mini/made.npy", *(f"{NAMES[i]}, seed 0" for i in (0, 2, 1))]
    assert [parameters["name"] for _, parameters, _ in slurm.submitted] == names and not calls()
    assert [line for line in capsys.readouterr().out.splitlines() if "job" in line] == [
        f"{names[0]}: job 101", f"{names[1]}: job 102, after 101", f"{names[2]}: job 103, after 102",
        f"{names[3]}: job 104, after 102",
    ]  # fmt: skip
    constructed, parameters, job = slurm.submitted[2]
    assert constructed["cluster"] == "slurm" and constructed["slurm_max_num_timeout"] == 100
    own = {"partition": "gpu", "dependency": "afterok:102", "kill-on-invalid-dep": "yes"}
    assert parameters["slurm_additional_parameters"] == own
    chosen = {"timeout_min": 600, "slurm_mem": 0, "nodes": 2, "gpus_per_node": 8, "tasks_per_node": 1}
    assert chosen.items() <= parameters.items()
    assert slurm.submitted[0][1]["nodes"] == 1
    reproduce(*words)  # all of them wait or run
    assert len(slurm.submitted) == 4 and "job 104 waits or runs" in capsys.readouterr().out
    slurm.ended.update({"103"})  # failed: it is submitted again, after those that still run
    reproduce(*words)
    assert [(p["name"], p["slurm_additional_parameters"]["dependency"]) for _, p, _ in slurm.submitted[4:]] == [
        (names[2], "afterok:102")
    ]
    # The base stage was removed, from which all start.
    monkeypatch.setattr(full, "finished", lambda row, *_: None if row == BASE else {})
    (tmp_path / "data/mini/made.npy").touch()
    slurm.ended.update(map(str, range(100, 110)))
    reproduce(*words)
    assert [p["name"] for _, p, _ in slurm.submitted[5:]] == names[1:]
    with pytest.raises(SystemExit):
        reproduce("--slurm", "gpu")
    assert "--slurm gpu: give KEY=VALUE" in capsys.readouterr().err


def test_a_job_trains_with_its_machine_and_is_queued_again_when_training_has_stopped(calls, slurm, monkeypatch):
    module = importlib.import_module("experiments.slurm")
    ran = []
    monkeypatch.setattr(Training, "run", lambda task, launch: ran.append((task, launch)))
    task = Training(BASE, 0, Path("out"))
    job = pickle.loads(pickle.dumps(module.Job(task, Launch(8, 2))))
    job()
    module.Job(task, Launch(8))()
    assert ran == [(task, Launch(8, 2, 1, "tcp://first:29603")), (task, Launch(8))]

    def fail(task, launch):
        raise UserError("stopped with exit code 143")

    with monkeypatch.context() as patch, pytest.raises(UserError):
        patch.setattr(Training, "run", fail)
        patch.setattr(module.time, "sleep", lambda seconds: ran.append(seconds))
        job()
    assert ran.pop() == module.GRACE
    monkeypatch.setattr(module, "stop_running", lambda: ran.append("stopped"))
    again, function = job.__submitit_checkpoint__()
    assert ran[2:] == ["stopped"] and (again, function) == ("again", job)


@pytest.mark.parametrize("error", [RuntimeError("no srun"), NameError("Unknown argument slurm_x")])
def test_what_slurm_refuses_is_one_line(calls, slurm, error, monkeypatch, capsys):
    monkeypatch.setattr(slurm.AutoExecutor, "update_parameters", Mock(side_effect=error))
    with pytest.raises(SystemExit):
        reproduce("--table", "2b", "--slurm")
    assert capsys.readouterr().err == f"error: --slurm: {error}\n"


def test_without_submitit_the_command_says_how_to_get_it(calls, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SystemExit):
        reproduce("--table", "2a", "--slurm", "partition=gpu")
    assert "make extras" in capsys.readouterr().err and not calls()


def test_stopping_ends_the_trainings_of_this_process(tmp_path):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with training._process(command, log=tmp_path / "log", environment={}) as process:
        training.stop_running()
        assert process.poll() == -signal.SIGTERM
    assert not training._running
