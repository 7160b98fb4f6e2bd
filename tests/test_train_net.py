"""train_net.py from its command line: train, evaluate, be killed, resume."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser

from clim.errors import UserError
from train_net import add_train_options, check_processes, launch

ROOT = Path(__file__).parents[1]
CLIM = "configs/mini/detic_clim.yaml"
BOXES = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
LOSSES = BOXES | {"loss_caption", "loss_tag", "loss_caption_mosaic", "loss_tag_mosaic"}


TWO = ("--num-gpus", "2", "--dist-url", "auto")


@pytest.fixture
def train_net(tiny_mini, tiny_overrides):
    """``train_net("--flag", keys=("KEY", "value"))`` starts it on the tiny benchmark, with pipes to read from."""
    started = []

    def start(*flags, keys=(), config=CLIM):
        launcher, flags = [], list(flags)
        if "torchrun" in flags:
            flags.remove("torchrun")
            launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
        process = subprocess.Popen(
            [sys.executable, *launcher, "train_net.py", *flags, "--config-file", config, *tiny_overrides, *keys],
            cwd=ROOT,
            env=os.environ | {"DETECTRON2_DATASETS": str(tiny_mini), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finished(process, *, code=0):
    """(stdout, stderr) of a process that must end with ``code``."""
    out, err = process.communicate(timeout=900)
    assert process.returncode == code, err[-3000:]
    return out, err


def error_line(process):
    """The one line of a process that ends with a user's mistake."""
    _, err = finished(process, code=2)
    (line,) = (line for line in err.splitlines() if line.startswith("error:"))
    assert "Traceback" not in err
    return line


def losses_of(folder):
    by_iteration = {}
    for line in (Path(folder) / "metrics.json").read_text().splitlines():
        entry = json.loads(line)
        losses = {k: v for k, v in entry.items() if "loss" in k or k == "grad_norm"}
        by_iteration.setdefault(entry["iteration"], {}).update(losses)
    return by_iteration


def figures_in(folder):
    return json.loads((folder / "evaluation.json").read_text())


def kill_after(process, folder, iteration):
    """SIGKILL once the losses of ``iteration`` are on disk; the losses up to then."""
    metrics = Path(folder) / "metrics.json"
    reader = threading.Thread(target=process.communicate)  # a full pipe would stop the process
    reader.start()
    while process.poll() is None:
        if metrics.is_file() and f'"iteration": {iteration},' in metrics.read_text():
            process.send_signal(signal.SIGKILL)
            reader.join()
            assert process.returncode == -signal.SIGKILL
            return losses_of(folder)
        time.sleep(0.01)
    reader.join()
    raise AssertionError(process.communicate()[1][-3000:])


def test_train_kill_resume_evaluate(train_net, tmp_path):
    output = tmp_path / "output"
    keys = ("SOLVER.MAX_ITER", "5", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "3")
    before = kill_after(train_net(keys=keys), output, 3)
    assert not (output / "evaluation.json").exists() or max(before) >= 2
    pointer = (output / "last_checkpoint").read_text()
    assert pointer in ("model_0000001.pth", "model_0000003.pth")  # the kill may come before the second is there

    out, err = finished(train_net("--resume", keys=(*keys, "DATALOADER.NUM_WORKERS", "2")))
    after = losses_of(output)
    assert sorted(after) == [0, 1, 2, 3, 4, 5]
    for iteration in (0, 1, 2, 3):  # what came after the checkpoint was computed twice
        assert after[iteration] == before[iteration] and LOSSES < set(after[iteration])
    assert "no CUDA device was found" in out or torch.cuda.is_available()
    assert "iter: 4" in out and "loss_tag_mosaic" in out and "| novel" in out
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    trained = figures_in(output)
    assert {"AP50_novel", "AP50_base", "AP50_all"} < set(trained)

    (output / "evaluation.json").unlink()
    finished(train_net("--eval-only", "--resume"))
    assert figures_in(output) == trained
    assert losses_of(output) == after  # evaluation adds nothing to the run's losses


def stop_after(process, folder, iteration, signals=(signal.SIGTERM,)):
    """Send the signals once the losses of ``iteration`` are on disk; the exit code, the losses and the last line."""
    metrics = Path(folder) / "metrics.json"
    lines: list = []
    reader = threading.Thread(target=lambda: lines.extend(process.communicate()))
    reader.start()
    while process.poll() is None and not (metrics.is_file() and f'"iteration": {iteration},' in metrics.read_text()):
        time.sleep(0.01)
    for number in signals:
        process.send_signal(number)
    reader.join()
    return process.returncode, losses_of(folder), "".join(filter(None, lines))


STARTED = {
    "one": ((), signal.SIGUSR1),
    "launch": (TWO, signal.SIGUSR1),
    "ctrl-c": (TWO, signal.SIGINT),
    "torchrun": (("torchrun",), signal.SIGTERM),  # by its own rule it ends at SIGUSR1 itself
}


@pytest.mark.parametrize("start", [s if s == "one" else pytest.param(s, marks=pytest.mark.slow) for s in STARTED])
def test_a_signal_saves_and_the_run_goes_on_bit_by_bit(train_net, tmp_path, start):
    flags, number = STARTED[start]
    output, keys = tmp_path / "output", ("SOLVER.EMA", "0.9", "SOLVER.ACCUMULATE", "2", "SOLVER.MAX_ITER", "12")
    code, before, told = stop_after(train_net(*flags, keys=keys), output, 1, signals=(number, number))
    assert code == {"torchrun": 1, "ctrl-c": 130}.get(start, 143), told[-3000:]  # torchrun has no other code
    assert "Stopped by a signal after iteration" in told and (start == "torchrun" or "Traceback" not in told)
    last = max(before)
    assert (output / "last_checkpoint").read_text() == f"model_{last:07d}.pth" and 1 <= last < 11
    finished(train_net(*flags, "--resume", keys=keys))
    resumed, weights = losses_of(output), torch.load(output / "model_final.pth")
    assert all(resumed[i] == before[i] for i in before) and sorted(resumed) == list(range(13))
    if start == "one":
        finished(train_net(*flags, keys=(*keys, "OUTPUT_DIR", str(tmp_path / "whole"))))
        whole = torch.load(tmp_path / "whole/model_final.pth")
        assert losses_of(tmp_path / "whole") == resumed
        for part in ("model", "ema", "optimizer"):
            torch.testing.assert_close(weights[part], whole[part], rtol=0, atol=0)


@pytest.mark.slow
def test_a_signal_ends_an_evaluation_at_once(train_net, tmp_path):
    keys = ("SOLVER.MAX_ITER", "5", "TEST.EVAL_PERIOD", "2")
    process = train_net(keys=keys)
    assert any("Start inference" in line for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    out, _ = finished(process, code=143)
    assert "generalized: 4 of 4" not in out
    assert (tmp_path / "output/last_checkpoint").read_text() == "model_0000001.pth"
    finished(train_net("--resume", keys=keys))
    assert sorted(losses_of(tmp_path / "output")) == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow
def test_mistakes_end_with_one_line_and_code_2(train_net):
    for keys, named in (
        (("MODEL.WEIGHTS", "nowhere.pth"), "nowhere.pth does not exist"),
        (("DATASETS.TEST", "('mini_ov_vall',)"), "mini_ov_vall, which is not registered"),
    ):
        for flags in ((), TWO):
            assert named in error_line(train_net(*flags, keys=keys))
    keys = ("SOLVER.MAX_ITER", "6", "SOLVER.BASE_LR", "1e15", "SOLVER.WARMUP_ITERS", "0")
    line = error_line(train_net(*TWO, keys=keys))  # one rank stops the other
    assert "Training stopped" in line and "image ids of the batch" in line


@pytest.mark.slow
def test_two_processes_are_killed_and_resume(train_net, tmp_path):
    keys = ("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "DATALOADER.NUM_WORKERS", "1")
    before = kill_after(train_net(*TWO, keys=keys), tmp_path / "output", 2)
    finished(train_net(*TWO, "--resume", keys=keys))
    after = losses_of(tmp_path / "output")
    assert sorted(after) == [0, 1, 2, 3, 4]
    assert [after[iteration] == before[iteration] for iteration in (0, 1, 2)] == [True] * 3
    assert len(list((tmp_path / "output/rank_states").glob("iteration_0000003.rank?.pth"))) == 2


def wait_for(path):
    deadline = time.monotonic() + 300
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()


@pytest.mark.slow
def test_a_killed_process_is_told_in_the_last_line_and_ends_all(train_net, tmp_path):
    process = train_net(*TWO, keys=("SOLVER.MAX_ITER", "99"))
    wait_for(tmp_path / "output/metrics.json")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(ranks[1], signal.SIGKILL)
    _, err = finished(process, code=2)
    assert err.splitlines()[-1].startswith(
        "error: One of the processes ended: process 1 terminated with signal SIGKILL"
    )
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.mark.slow
def test_two_trainings_in_one_folder(train_net, tmp_path):
    first = train_net(keys=("SOLVER.MAX_ITER", "6"))
    wait_for(tmp_path / "output/training.lock")
    assert f"(process {first.pid} on " in error_line(train_net(keys=("SOLVER.MAX_ITER", "6")))
    finished(first)
    assert sorted(losses_of(tmp_path / "output")) == list(range(7))


@pytest.mark.slow
def test_two_machines(train_net, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    flags = ("--num-machines", "2", "--dist-url", url, "--machine-rank")
    for machine in [train_net(*flags, str(rank), keys=("SOLVER.MAX_ITER", "2")) for rank in range(2)]:
        finished(machine)
    assert sorted(losses_of(tmp_path / "output")) == [0, 1, 2]


@pytest.mark.slow
def test_ovrcnns_second_stage_on_two_processes(train_net, tmp_path):
    """Its projection has no gradient; every other parameter needs its own, or the second step would fail."""
    options = {"keys": ("SOLVER.MAX_ITER", "3", "SOLVER.CHECKPOINT_PERIOD", "2"), "config": "configs/mini/ovrcnn.yaml"}
    finished(train_net(*TWO, **options))
    whole = losses_of(tmp_path / "output")
    assert sorted(whole) == [0, 1, 2, 3]
    (tmp_path / "output/last_checkpoint").write_text("model_0000001.pth")
    (tmp_path / "output/model_final.pth").unlink()
    finished(train_net(*TWO, "--resume", **options))
    assert losses_of(tmp_path / "output") == whole


@pytest.mark.slow
def test_official_recipe_alternates_on_two_processes(train_net, tmp_path):
    keys = (
        *("DATALOADER.MOSAICS_PER_GPU", "0", "DATALOADER.ALTERNATE", "(1, 1)", "SOLVER.MAX_ITER", "8"),
        *("MODEL.METHOD.DETIC.CAPTION_NEGATIVES", "gather", "MODEL.METHOD.DETIC.TAG_TARGET", "per_tag"),
        *("MODEL.METHOD.DETIC.BIAS", "[]"),
    )
    finished(train_net(*TWO, keys=keys))
    kinds = {frozenset(k for k in entry if k.startswith("loss_")) for entry in losses_of(tmp_path / "output").values()}
    pairs = frozenset({"loss_caption", "loss_tag"})
    assert kinds - {frozenset()} == {frozenset(BOXES), pairs}


def test_train_has_detectron2s_options():
    parser, ours = default_argument_parser(), argparse.ArgumentParser()
    add_train_options(ours)
    for line in (
        [],
        ["--config-file", "x.yaml", "--resume", "SEED", "1"],
        ["--eval-only", "--num-gpus", "2", "--num-machines", "3", "--machine-rank", "1", "--dist-url", "auto"],
    ):
        assert vars(ours.parse_args(line)) == vars(parser.parse_args(line))


def arguments(*words):
    parser = argparse.ArgumentParser()
    add_train_options(parser)
    return parser.parse_args(words)


def test_a_config_is_needed():
    with pytest.raises(UserError, match="--config-file"):
        launch(arguments())


def test_processes_that_cannot_start(monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = ("--dist-url", f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(UserError, match="already in use.*--dist-url auto"):
            check_processes(arguments("--num-gpus", "2", *url))
        check_processes(arguments("--num-machines", "2", "--machine-rank", "1", *url))
        check_processes(arguments(*url))  # one process needs no port
    for host in ("192.0.2.1", "[2001:db8::1]", "nowhere.invalid"):
        with pytest.raises(UserError, match="cannot be opened .*--dist-url auto"):
            check_processes(arguments("--num-gpus", "2", "--dist-url", f"tcp://{host}:49999"))
    ipv6, file = ("--dist-url", "tcp://[::1]:49999"), ("--dist-url", "file:///tmp/meeting")
    for right in ((), url, ipv6, file, ("--num-gpus", "2", "--dist-url", "auto"), ("--num-gpus", "0")):
        check_processes(arguments("--num-gpus", "2", *right))
    for url in (
        "x",
        "",
        "tcp://host",
        "tcp://host:0",
        "tcp://host:65536",
        "tcp://host:a",
        "http://host:80",
        "file:///no/folder/x",
        "tcp://:80",
    ):
        with pytest.raises(UserError, match=f"^--dist-url {url} is no address"):
            check_processes(arguments("--num-gpus", "2", "--dist-url", url))
    for words in ("--num-gpus -1", "--num-gpus 100000", "--num-machines 0", "--num-machines 2 --num-gpus 0",
                  "--machine-rank 1", "--machine-rank -1"):  # fmt: skip
        with pytest.raises(UserError, match="^" + " ".join(words.split()[:2])):
            check_processes(arguments(*words.split()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for wrong in (("--num-machines", "2", "--machine-rank", "2"), ("--num-gpus", "2")):
        with pytest.raises(UserError, match=wrong[-2]):
            check_processes(arguments(*wrong))


@pytest.mark.parametrize("asked, expected", [(None, "3"), ("1", "1")])
def test_processes_share_the_cores_unless_a_number_is_set(monkeypatch, asked, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", asked or "")
    if asked is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    seen = []
    start = lambda *_, **__: seen.append(os.environ["OMP_NUM_THREADS"])  # noqa: E731
    monkeypatch.setattr("train_net.start_ranks", start)
    launch(arguments("--config-file", "configs/mini/detic.yaml", "--num-gpus", "2"))
    assert seen == [expected]
