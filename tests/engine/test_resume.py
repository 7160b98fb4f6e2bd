"""A run that is killed and resumed continues bit by bit, on the CPU; checkpoints, rank states, metrics.json."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import nn

from clim.checkpoints import SafeCheckpointer
from clim.engine import Trainer
from clim.engine.resume import (
    CheckpointHook,
    load_rank_state,
    prepare_metrics,
    random_states_kept,
    rank_state_path,
    save_rank_state,
)
from clim.errors import UserError, sentence
from clim.methods.memory import TextQueue
from clim.processes import StopSignals

EXACT = ("loss", "norm", "lr", "AP", "AR", "num_", "accuracy")  # what must not differ by one bit


class CutOff(BaseException):
    """Not an Exception: nothing may clean up after it, as after a kill."""


@pytest.fixture
def exact_metrics(metrics_of):
    return lambda cfg: metrics_of(cfg.OUTPUT_DIR, *EXACT)


def run(cfg, *, resume=False, cut_after=None):
    """One session of a training; ``cut_after``: the iteration after which it dies."""
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    after_step = trainer.after_step

    def dying():
        after_step()
        if trainer.iter == cut_after:
            raise CutOff

    trainer.after_step = dying
    if cut_after is None:
        trainer.train()
        return trainer
    with pytest.raises(CutOff):
        trainer.train()
    seed_all_rng(4711)
    return trainer


@pytest.mark.parametrize(
    "config, key, value, batches, sessions",
    [
        ("mini/detic_clim.yaml", "MODEL.METHOD.DETIC.QUEUE_LENGTH", 20, 1, ((0, (2,)), (2, (2, 3)))),
        ("mini/detic_clim.yaml", "MODEL.METHOD.DETIC.QUEUE_LENGTH", 20, 2, ((1, (2,)),)),
        ("mini/baron_clim.yaml", "MODEL.METHOD.BARON.QUEUE_LENGTH", 20, 1, ((0, (2,)),)),
        ("mini/ovrcnn_clim_pretrain.yaml", "MODEL.METHOD.GROUNDING.MAX_CELLS", 2, 1, ((0, (2,)),)),
    ],
    ids=["detic", "accumulation", "baron", "grounding"],
)
def test_losses_after_resuming_are_bit_equal(tiny_cfg, tmp_path, exact_metrics, config, key, value, batches, sessions):
    """Checkpoints after iterations 1 and 3, evaluation after iteration 2; any number of loader workers.

    Grounding draws locations, hidden words and dropout, and has neither queues nor evaluation.
    """

    def load(*overrides):
        options = ("SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 3, key, value)
        return tiny_cfg(*options, "SOLVER.ACCUMULATE", batches, *overrides, config=config)

    whole = load("OUTPUT_DIR", str(tmp_path / "whole"))
    straight = run(whole)
    expected = exact_metrics(whole)
    assert sorted(expected) == [0, 1, 2, 3, 4, *([5] if whole.DATASETS.TEST else [])]
    for workers, deaths in sessions:
        folder = tmp_path / f"parts{workers}"
        parts = load("DATALOADER.NUM_WORKERS", workers, "OUTPUT_DIR", str(folder))
        for session, death in enumerate(deaths):
            run(parts, resume=session > 0, cut_after=death)
        last = {2: "model_0000001.pth", 3: "model_0000003.pth"}[death]
        assert (folder / "last_checkpoint").read_text() == last
        resumed = run(parts, resume=True)

        assert exact_metrics(parts) == expected
        found = resumed.raw_model
        for name, buffer in straight.raw_model.named_buffers():
            assert torch.equal(buffer, dict(found.named_buffers())[name]), name
        for name, parameter in straight.raw_model.named_parameters():
            assert torch.equal(parameter, dict(found.named_parameters())[name]), name
        queues = [module for module in found.method.modules() if isinstance(module, TextQueue)]
        # full and overflowing: the oldest fell out
        assert bool(queues) == ("QUEUE" in key) and all((queue.image_ids >= 0).all() for queue in queues)


def test_resuming_a_finished_run(tiny_cfg, exact_metrics, caplog):
    cfg = tiny_cfg("SOLVER.MAX_ITER", 1)
    run(cfg)
    output = Path(cfg.OUTPUT_DIR)
    (output / "evaluation.json").unlink()
    before = exact_metrics(cfg)[0]
    assert run(cfg, resume=True).start_iter == 1
    assert (output / "evaluation.json").is_file() and exact_metrics(cfg)[0] == before

    # with another number of processes
    for path in (output / "model_final.pth", rank_state_path(output, 0)):
        torch.save(torch.load(path) | {"world_size": 8}, path)
    Trainer(tiny_cfg("SOLVER.MAX_ITER", 2)).resume_or_load(resume=True)
    assert "another number of processes" in caplog.text
    scaled = Trainer(tiny_cfg("SOLVER.MAX_ITER", 2, "SOLVER.REFERENCE_WORLD_SIZE", 8))
    with pytest.raises(UserError, match="8 processes wrote .* resume with 8, not 1"):
        scaled.resume_or_load(resume=True)
    eightfold = ("SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.ACCUMULATE", 8)  # counts as 8 processes
    Trainer(tiny_cfg("SOLVER.MAX_ITER", 2, *eightfold)).resume_or_load(resume=True)


def test_a_fresh_run_does_not_resume_an_earlier_one(tiny_cfg, exact_metrics):
    """Killed before its first checkpoint, a run must not go on from what another left in the folder."""
    cfg = tiny_cfg("SOLVER.MAX_ITER", 2)
    run(cfg)
    run(cfg, cut_after=0)
    assert run(cfg, resume=True).start_iter == 0
    assert sorted(exact_metrics(cfg)) == [0, 1, 2]


# ---- checkpoints


def write_checkpoints(folder, *, start=0, until, **options):
    """A training of 9 iterations that only writes checkpoints, cut off before iteration ``until``."""
    options = {"period": 2, "keep": 2, "extra": {"data_seed": 5}} | options
    hook = CheckpointHook(SafeCheckpointer(nn.Linear(1, 1), str(folder)), start_iter=start, **options)
    hook.trainer = SimpleNamespace(max_iter=9, stop=StopSignals())
    for hook.trainer.iter in range(start, until):
        hook.after_step()
    return sorted(p.name for p in folder.glob("*.pth")), sorted(p.name for p in (folder / "rank_states").iterdir())


def test_the_newest_checkpoints_of_a_run_stay_with_their_rank_states(tmp_path):
    others = ["model_0000099.pth", "model_best.pth"]
    for name in others:
        torch.save({}, tmp_path / name)
    assert write_checkpoints(tmp_path, until=5)[0] == ["model_0000001.pth", "model_0000003.pth", *others]
    assert write_checkpoints(tmp_path, start=4, until=9) == (  # a resumed run continues counting
        ["model_0000005.pth", "model_0000007.pth", *others, "model_final.pth"],
        [f"iteration_{i:07d}.rank0.pth" for i in (5, 7, 8)],
    )
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    stored = torch.load(tmp_path / "model_final.pth")
    assert stored["iteration"] == 8 and stored["data_seed"] == 5
    (tmp_path / "last").mkdir()
    final = (["model_final.pth"], ["iteration_0000008.rank0.pth"])
    assert write_checkpoints(tmp_path / "last", until=9, period=0) == final
    assert len(write_checkpoints(tmp_path / "all", until=9, keep=0)[0]) == 5


def test_the_rank_state_is_written_first(tmp_path, monkeypatch):
    """So that a checkpoint that is there always has its rank states."""

    def killed(self, name, **kwargs):
        assert rank_state_path(tmp_path, 1).is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(SafeCheckpointer, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoints(tmp_path, until=2)
    assert not (tmp_path / "last_checkpoint").exists()


# ---- the state of a process


def test_random_states_and_queues_come_back_and_nothing_else(tmp_path, drawn):
    model = nn.Module()
    model.queue = TextQueue(4, 3)
    model.queue.push(torch.eye(3), torch.tensor([5, 6, 7]))
    model.register_buffer("class_mask", torch.ones(2), persistent=False)  # the config determines it
    contents = {name: buffer.clone() for name, buffer in model.queue.named_buffers()}
    seed_all_rng(3)
    np.random.randn()  # leaves a second normal number in store
    save_rank_state(model, tmp_path / "state.pth")
    expected = drawn()

    seed_all_rng(4)
    model.queue.push(torch.ones(2, 3), torch.tensor([8, 9]))
    model.class_mask.zero_()
    assert load_rank_state(model, tmp_path / "state.pth")
    assert drawn() == expected and not model.class_mask.any()
    for name, buffer in model.queue.named_buffers():
        assert torch.equal(buffer, contents[name])
    assert model.queue.read()[1].tolist() == [5, 6, 7]


def test_states_that_do_not_fit_change_nothing(tmp_path, monkeypatch, drawn):
    queue = TextQueue(4, 3)
    assert not load_rank_state(queue, tmp_path / "missing.pth")
    save_rank_state(queue, tmp_path / "state.pth")
    longer = TextQueue(5, 3)
    longer.push(torch.ones(1, 3), torch.tensor([1]))
    seed_all_rng(1)
    expected = drawn()
    seed_all_rng(1)
    assert not load_rank_state(longer, tmp_path / "state.pth")
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    assert not load_rank_state(queue, tmp_path / "state.pth")
    with pytest.raises(ZeroDivisionError), random_states_kept():
        drawn()
        1 / 0  # noqa: B018
    assert drawn() == expected and longer.image_ids.tolist() == [1, -1, -1, -1, -1]


STATE = {"world_size": 1, "queues": {}, "python": (3, (0,) * 625, None)}
DAMAGES = {
    "empty": b"", "text": b"no archive", "list": [1], "nothing": {}, "no queues": {"world_size": 1, "queues": None},
    "no numbers": STATE, "wrong numbers": STATE | {"python": "a", "numpy": 3, "torch": None, "cuda": None},
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_state_is_told_with_its_file(tmp_path, damage):
    path = tmp_path / "iteration_0000003.rank0.pth"
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        torch.save(damage, path)
    with random_states_kept(), pytest.raises(UserError, match=f"state of process 0 is damaged .*: delete {path}, and"):
        load_rank_state(nn.Linear(1, 1), path)


@pytest.mark.parametrize("damage", [b"\xff\x00\n", b"[1]\n", b'{"iteration": "a"}\n', b"[" * 9999 + b"\n", b"null\n"])
def test_damaged_lines_of_metrics_are_left_out_and_counted(tmp_path, caplog, damage):
    lines = [b'{"iteration": 1}\n', damage, b'{"iteration": 2}\n', b'{"iterat']
    (tmp_path / "metrics.json").write_bytes(b"".join(lines))
    prepare_metrics(tmp_path, resume=True, start_iter=3)
    assert (tmp_path / "metrics.json").read_bytes() == lines[0] + lines[2]
    assert "metrics.json: 1 damaged lines are left out" in caplog.text


FULL = ("metrics.json", "events.out", "iteration_0000001.rank0", "model_0000001", "last_checkpoint", "model_final")


@pytest.mark.parametrize("site", [s if "model_0" in s else pytest.param(s, marks=pytest.mark.slow) for s in FULL])
def test_a_full_disk_stops_with_a_sentence_and_the_last_checkpoint_stays_whole(tiny_cfg, monkeypatch, site):
    """Files whose name begins with ``site`` have no space."""
    cfg, opened = tiny_cfg("SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 1, "DATASETS.TEST", "()"), open
    folder = Path(cfg.OUTPUT_DIR)

    def full(path, mode="r", *args, **options):
        first = site == "last_checkpoint" and not (folder / site).is_file()
        lacks = Path(str(path)).name.startswith(site) and mode[0] in "wa" and not first
        return opened("/dev/full" if lacks else path, mode, *args, **options)

    with monkeypatch.context() as patch:
        for name in ("builtins.open", "io.open"):
            patch.setattr(name, full)
        with pytest.raises(OSError, match="No space") as caught:
            run(cfg)
    assert "no space left" in sentence(caught.value).lower()
    assert not list(folder.rglob("*.partial"))
    last = 1 if site == "model_final" else 0
    name = (folder / "last_checkpoint").read_text()
    assert name == f"model_{last:07d}.pth" and torch.load(folder / name)["iteration"] == last
    assert run(cfg, resume=True).start_iter == last + 1


def test_metrics_hold_one_run(tmp_path):
    prepare_metrics(tmp_path, resume=True, start_iter=3)
    assert list(tmp_path.iterdir()) == []
    lines = ['{"iteration": 1, "total_loss": 0.1}\n', '{"iteration": 2}\n', '{"iteration": 3}\n', '{"iterat']
    (tmp_path / "metrics.json").write_text("".join(lines))
    prepare_metrics(tmp_path, resume=True, start_iter=3)
    assert (tmp_path / "metrics.json").read_text() == "".join(lines[:2])
    prepare_metrics(tmp_path, resume=False, start_iter=0)
    assert [path.name for path in tmp_path.iterdir()] == ["previous.metrics.json"]
