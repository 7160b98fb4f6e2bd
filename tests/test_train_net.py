"""train_net.py from its command line: train, evaluate, be killed, resume."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
CLIM = "configs/mini/detic_clim.yaml"
LOSSES = {
    "loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc",
    "loss_caption", "loss_tag", "loss_caption_mosaic", "loss_tag_mosaic",
}  # fmt: skip


@pytest.fixture
def train_net(tiny_mini, tiny_overrides):
    """``train_net("--flag", "KEY", "value")`` starts it on the tiny benchmark, with pipes to read from."""
    started = []

    def start(*arguments, config=CLIM):
        """KEYS stands between flags and config overrides."""
        arguments = [*arguments, *([] if "KEYS" in arguments else ["KEYS"])]
        flags, keys = arguments[: arguments.index("KEYS")], arguments[arguments.index("KEYS") + 1 :]
        process = subprocess.Popen(
            [sys.executable, "train_net.py", *flags, "--config-file", config, *tiny_overrides, *keys],
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


def losses_of(folder):
    by_iteration = {}
    for line in (Path(folder) / "metrics.json").read_text().splitlines():
        entry = json.loads(line)
        losses = {k: v for k, v in entry.items() if "loss" in k or k == "grad_norm"}
        by_iteration.setdefault(entry["iteration"], {}).update(losses)
    return by_iteration


def kill_after(process, folder, iteration):
    """SIGKILL once the losses of ``iteration`` are on disk; the losses up to then."""
    metrics = Path(folder) / "metrics.json"
    while process.poll() is None:
        if metrics.is_file() and f'"iteration": {iteration},' in metrics.read_text():
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.returncode == -signal.SIGKILL
            return losses_of(folder)
        time.sleep(0.01)
    raise AssertionError(process.communicate()[1][-3000:])


def error_lines(err):
    return [line for line in err.splitlines() if line.startswith("error:")]


def test_train_kill_resume_evaluate(train_net, tmp_path):
    output = tmp_path / "output"
    keys = ("SOLVER.MAX_ITER", "5", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "3")
    before = kill_after(train_net("KEYS", *keys), output, 3)
    assert not (output / "evaluation.json").exists() or max(before) >= 2
    pointer = (output / "last_checkpoint").read_text()
    assert pointer in ("model_0000001.pth", "model_0000003.pth")  # the kill may come before the second is there

    out, err = finished(train_net("--resume", "KEYS", *keys, "DATALOADER.NUM_WORKERS", "2"))
    after = losses_of(output)
    assert sorted(after) == [0, 1, 2, 3, 4, 5]
    for iteration in (0, 1, 2, 3):  # what came after the checkpoint was computed twice
        assert after[iteration] == before[iteration]
        assert LOSSES < set(after[iteration])
    assert "no CUDA device was found" in out or torch.cuda.is_available()
    assert "iter: 4" in out and "loss_tag_mosaic" in out and "| novel" in out
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    trained = json.loads((output / "evaluation.json").read_text())
    assert {"AP50_novel", "AP50_base", "AP50_all"} < set(trained)

    (output / "evaluation.json").unlink()
    finished(train_net("--eval-only", "--resume", "KEYS"))
    assert json.loads((output / "evaluation.json").read_text()) == trained
    assert losses_of(output) == after  # evaluation adds nothing to the run's losses


@pytest.mark.slow
def test_evaluating_a_file_on_several_sets(train_net, tmp_path):
    finished(train_net("KEYS", "SOLVER.MAX_ITER", "2"))
    weights = tmp_path / "output/model_final.pth"
    trained = json.loads((tmp_path / "output/evaluation.json").read_text())
    finished(train_net("--eval-only", "KEYS", "MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(tmp_path / "scored")))
    assert json.loads((tmp_path / "scored/evaluation.json").read_text()) == trained


@pytest.mark.slow
def test_mistakes_end_with_one_line_and_code_2(train_net, tmp_path):
    for keys, told in (
        (("MODEL.WEIGHTS", "nowhere.pth"), "nowhere.pth does not exist"),
        (("DATASETS.TEST", "('mini_ov_vall',)"), "mini_ov_vall, which is not registered"),
    ):
        for flags in ((), ("--num-gpus", "2", "--dist-url", "auto")):
            _, err = finished(train_net(*flags, "KEYS", *keys), code=2)
            (line,) = error_lines(err)
            assert told in line and "Traceback" not in err


@pytest.mark.slow
def test_a_diverging_rank_stops_the_other(train_net, tmp_path):
    keys = ("SOLVER.MAX_ITER", "6", "SOLVER.BASE_LR", "1e20", "SOLVER.WARMUP_ITERS", "0")
    _, err = finished(train_net("--num-gpus", "2", "--dist-url", "auto", "KEYS", *keys), code=2)
    (line,) = error_lines(err)
    assert "Training stopped" in line and "image ids of the batch" in line and "Traceback" not in err


@pytest.mark.slow
def test_two_processes_are_killed_and_resume(train_net, tmp_path):
    flags = ("--num-gpus", "2", "--dist-url", "auto")
    keys = ("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "DATALOADER.NUM_WORKERS", "1")
    before = kill_after(train_net(*flags, "KEYS", *keys), tmp_path / "output", 2)
    # The workers of the killed program end by themselves; resume only when they no longer write.
    time.sleep(5)
    finished(train_net(*flags, "--resume", "KEYS", *keys))
    after = losses_of(tmp_path / "output")
    assert sorted(after) == [0, 1, 2, 3, 4]
    for iteration in (0, 1, 2):
        assert after[iteration] == before[iteration]
    assert len(list((tmp_path / "output/rank_states").glob("iteration_0000003.rank?.pth"))) == 2


@pytest.mark.slow
def test_two_machines(train_net, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    keys = ("SOLVER.MAX_ITER", "2")
    machines = [
        train_net("--num-machines", "2", "--machine-rank", str(rank), "--dist-url", url, "KEYS", *keys)
        for rank in range(2)
    ]
    for machine in machines:
        finished(machine)
    assert sorted(losses_of(tmp_path / "output")) == [0, 1, 2]


@pytest.mark.slow
def test_ovrcnns_second_stage_on_two_processes(train_net, tmp_path):
    """Its projection has no gradient; every other parameter needs its own, or the second step would fail."""
    keys = ("SOLVER.MAX_ITER", "3", "SOLVER.CHECKPOINT_PERIOD", "2")
    flags = ("--num-gpus", "2", "--dist-url", "auto")
    finished(train_net(*flags, "KEYS", *keys, config="configs/mini/ovrcnn.yaml"))
    whole = losses_of(tmp_path / "output")
    assert sorted(whole) == [0, 1, 2, 3]
    (tmp_path / "output/last_checkpoint").write_text("model_0000001.pth")
    (tmp_path / "output/model_final.pth").unlink()
    finished(train_net(*flags, "--resume", "KEYS", *keys, config="configs/mini/ovrcnn.yaml"))
    assert losses_of(tmp_path / "output") == whole


@pytest.mark.slow
def test_official_recipe_alternates_on_two_processes(train_net, tmp_path):
    keys = (
        *("DATALOADER.MOSAICS_PER_GPU", "0", "DATALOADER.ALTERNATE", "(1, 1)", "SOLVER.MAX_ITER", "8"),
        *("MODEL.METHOD.DETIC.CAPTION_NEGATIVES", "gather", "MODEL.METHOD.DETIC.TAG_TARGET", "per_tag"),
        *("MODEL.METHOD.DETIC.BIAS", "[]"),
    )
    finished(train_net("--num-gpus", "2", "--dist-url", "auto", "KEYS", *keys))
    kinds = {frozenset(k for k in entry if k.startswith("loss_")) for entry in losses_of(tmp_path / "output").values()}
    boxes = frozenset({"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"})
    assert kinds - {frozenset()} == {boxes, frozenset({"loss_caption", "loss_tag"})}
