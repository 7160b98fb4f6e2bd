"""Learning rate and iterations for the processes and pictures that there are."""

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clim.engine import load_config
from clim.engine.schedule import count_epochs, scale_to_world

CONFIGS = Path(__file__).parents[2] / "configs"


def test_scaling_to_one_process():
    """Full-size configs are for 8 GPUs: one process takes an eighth of the rate and eight times the steps."""
    cfg = load_config(str(CONFIGS / "Detic_CLIM_C4.yaml"), ["TEST.EVAL_PERIOD", 5000])
    one = scale_to_world(cfg, 1)
    assert one.SOLVER.BASE_LR == 0.02 / 8
    assert one.SOLVER.MAX_ITER == 8 * 45000 and one.SOLVER.STEPS == (8 * 30000, 8 * 40000)
    assert one.SOLVER.WARMUP_ITERS == 8000 and one.SOLVER.CHECKPOINT_PERIOD == 40000
    assert one.TEST.EVAL_PERIOD == 40000
    assert cfg.SOLVER.BASE_LR == 0.02 and cfg.SOLVER.MAX_ITER == 45000  # the given config stays as it was
    assert scale_to_world(cfg, 8) is cfg
    assert scale_to_world(one, 1) is one
    two_machines = scale_to_world(cfg, 16)
    assert two_machines.SOLVER.BASE_LR == 0.04 and two_machines.SOLVER.MAX_ITER == 22500


def test_scaling_says_so_and_how_to_switch_it_off(caplog):
    cfg = load_config(str(CONFIGS / "Detic_CLIM_C4.yaml"), [])
    with caplog.at_level(logging.INFO, "clim"):
        scale_to_world(cfg, 1)
    (line,) = caplog.messages
    assert "written for 8 processes and runs on 1" in line and "SOLVER.BASE_LR 0.02 -> 0.0025" in line
    assert "SOLVER.MAX_ITER 45000 -> 360000" in line and "SOLVER.REFERENCE_WORLD_SIZE 0" in line
    caplog.clear()
    off = load_config(str(CONFIGS / "Detic_CLIM_C4.yaml"), ["SOLVER.REFERENCE_WORLD_SIZE", 0])
    with caplog.at_level(logging.INFO, "clim"):
        assert scale_to_world(off, 1) is off
    assert not caplog.messages


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 16), st.integers(1, 256), st.integers(0, 9))
def test_scaling_never_switches_anything_off_or_on(reference, world, period):
    cfg = load_config(
        str(CONFIGS / "mini/base_stage.yaml"),
        ["SOLVER.REFERENCE_WORLD_SIZE", reference, "SOLVER.CHECKPOINT_PERIOD", period, "TEST.EVAL_PERIOD", period],
    )
    scaled = scale_to_world(cfg, world)
    for value in (scaled.SOLVER.CHECKPOINT_PERIOD, scaled.TEST.EVAL_PERIOD):
        assert (value > 0) == (period > 0)
    assert scaled.SOLVER.MAX_ITER >= 1
    assert scaled.SOLVER.BASE_LR == pytest.approx(cfg.SOLVER.BASE_LR * world / reference)


def test_epochs_are_counted_in_whole_batches_of_all_processes(tiny_cfg):
    cfg = tiny_cfg("SOLVER.EPOCHS", 3.0, "DATALOADER.CAPTIONS_PER_GPU", 3, "SOLVER.MAX_ITER", 7)  # 16 pairs
    assert count_epochs(cfg, 1).SOLVER.MAX_ITER == 15
    assert count_epochs(cfg, 2).SOLVER.MAX_ITER == 6
    assert count_epochs(cfg, 100).SOLVER.MAX_ITER == 3
    boxes = tiny_cfg(
        "SOLVER.EPOCHS", 0.5, "DATALOADER.CAPTIONS_PER_GPU", 0, "DATALOADER.MOSAICS_PER_GPU", 0, "MODEL.METHOD.NAME", ""
    )
    assert count_epochs(boxes, 1).SOLVER.MAX_ITER == 3  # 12 scenes, 2 a step
    assert count_epochs(tiny_cfg("SOLVER.MAX_ITER", 7), 1).SOLVER.MAX_ITER == 7
