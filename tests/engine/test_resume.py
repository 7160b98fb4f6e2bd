"""A run that is cut off and resumed goes on exactly as it would have, on the CPU."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from clim.engine import Trainer
from clim.engine.rank_state import rank_state_path
from clim.errors import UserError
from clim.methods.memory import TextQueue

EXACT = ("loss", "norm", "lr", "AP", "AR", "num_", "accuracy")  # what must not differ by one bit


class CutOff(BaseException):
    """Not an Exception: nothing may clean up after it, as after a kill."""


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


def exact_metrics(cfg):
    by_iteration = {}
    for line in (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines():
        entry = json.loads(line)
        kept = {k: v for k, v in entry.items() if any(part in k for part in EXACT)}
        assert not kept.keys() & by_iteration.get(entry["iteration"], {}).keys(), "a line is there twice"
        by_iteration.setdefault(entry["iteration"], {}).update(kept)
    return by_iteration


@pytest.mark.parametrize(
    "config, key, value, sessions",
    [
        ("mini/detic_clim.yaml", "MODEL.METHOD.DETIC.QUEUE_LENGTH", 20, ((0, (2,)), (2, (2, 3)))),
        ("mini/baron_clim.yaml", "MODEL.METHOD.BARON.QUEUE_LENGTH", 20, ((0, (2,)),)),
        ("mini/ovrcnn_clim_pretrain.yaml", "MODEL.METHOD.GROUNDING.MAX_CELLS", 2, ((0, (2,)),)),
    ],
    ids=["detic", "baron", "grounding"],
)
def test_losses_after_resuming_are_bit_equal(tiny_cfg, tmp_path, config, key, value, sessions):
    """Checkpoints after iterations 1 and 3, evaluation after iteration 2; any number of loader workers.

    Grounding draws locations, hidden words and dropout, and has neither queues nor evaluation.
    """

    def load(*overrides):
        options = ("SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 3, key, value)
        return tiny_cfg(*options, *overrides, config=config)

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


def test_resuming_a_finished_run_evaluates_again(tiny_cfg):
    cfg = tiny_cfg("SOLVER.MAX_ITER", 1)
    run(cfg)
    (Path(cfg.OUTPUT_DIR) / "evaluation.json").unlink()
    before = exact_metrics(cfg)[0]
    trainer = run(cfg, resume=True)
    assert trainer.start_iter == 1
    assert (Path(cfg.OUTPUT_DIR) / "evaluation.json").is_file()
    assert exact_metrics(cfg)[0] == before


def test_a_fresh_run_does_not_resume_an_earlier_one(tiny_cfg):
    """Killed before its first checkpoint, a run must not go on from what another left in the folder."""
    cfg = tiny_cfg("SOLVER.MAX_ITER", 2)
    run(cfg)
    run(cfg, cut_after=0)
    trainer = run(cfg, resume=True)
    assert trainer.start_iter == 0
    assert sorted(exact_metrics(cfg)) == [0, 1, 2]


def test_another_number_of_processes(tiny_cfg, monkeypatch, caplog):
    cfg = tiny_cfg("SOLVER.MAX_ITER", 1)
    run(cfg)
    trainer = Trainer(tiny_cfg("SOLVER.MAX_ITER", 2))
    path = Path(cfg.OUTPUT_DIR) / "model_final.pth"
    torch.save(torch.load(path) | {"world_size": 8}, path)
    state = rank_state_path(cfg.OUTPUT_DIR, 0)
    torch.save(torch.load(state) | {"world_size": 8}, state)
    trainer.resume_or_load(resume=True)
    assert "another number of processes" in caplog.text

    scaled = Trainer(tiny_cfg("SOLVER.MAX_ITER", 2, "SOLVER.REFERENCE_WORLD_SIZE", 8))
    with pytest.raises(UserError, match="written by 8 processes.* resume with 8, not 1"):
        scaled.resume_or_load(resume=True)
