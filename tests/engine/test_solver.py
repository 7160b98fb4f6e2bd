"""Learning rate and iterations for the processes and images that there are; weight decay of each parameter."""

import logging
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses import FakeTensorMode

from clim.data.loader import source_records
from clim.engine import load_config
from clim.engine.solver import build_optimizer, build_solver, count_epochs, scale_to_world
from clim.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
FULL = str(CONFIGS / "Detic_CLIM_C4.yaml")


def test_scaling_to_one_process(caplog):
    """Full-size configs are for 8 GPUs: one process takes an eighth of the rate and eight times the steps."""
    cfg = load_config(FULL, ["TEST.EVAL_PERIOD", 5000])
    with caplog.at_level(logging.INFO, "clim"):
        one = scale_to_world(cfg, 1)
    solver = one.SOLVER
    assert (solver.BASE_LR, solver.MAX_ITER, solver.STEPS) == (0.02 / 8, 8 * 45000, (8 * 30000, 8 * 40000))
    assert (solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD, one.TEST.EVAL_PERIOD) == (8000, 40000, 40000)
    assert cfg.SOLVER.BASE_LR == 0.02 and cfg.SOLVER.MAX_ITER == 45000  # the given config stays as it was
    (line,) = caplog.messages
    for part in ("SOLVER.BASE_LR 0.02 -> 0.0025", "SOLVER.MAX_ITER 45000 -> 360000", "SOLVER.REFERENCE_WORLD_SIZE 0"):
        assert part in line
    two_machines = scale_to_world(cfg, 16)
    assert two_machines.SOLVER.BASE_LR == 0.04 and two_machines.SOLVER.MAX_ITER == 22500
    off = load_config(FULL, ["SOLVER.REFERENCE_WORLD_SIZE", 0])
    fourfold = load_config(FULL, ["SOLVER.ACCUMULATE", 4])
    assert scale_to_world(fourfold, 1).SOLVER.MAX_ITER == 90000 and scale_to_world(fourfold, 4).SOLVER.BASE_LR == 0.04
    smaller = ["DATALOADER.DETECTION_PER_GPU", 8, "SOLVER.ACCUMULATE", 4, "SOLVER.REFERENCE_WORLD_SIZE", 32]
    same_batch = load_config(str(CONFIGS / "lvis/FVLM_RN50x64_CLIM_LVIS.yaml"), smaller)  # docs/train.md
    for same, world_size in ((cfg, 8), (one, 1), (off, 1), (fourfold, 2), (same_batch, 8)):
        assert scale_to_world(same, world_size) is same


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 16), st.integers(1, 256), st.integers(0, 9))
def test_scaling_never_switches_anything_off_or_on(reference, world, period):
    periods = ("SOLVER.CHECKPOINT_PERIOD", period, "TEST.EVAL_PERIOD", period)
    cfg = load_config(str(CONFIGS / "mini/base_stage.yaml"), ["SOLVER.REFERENCE_WORLD_SIZE", reference, *periods])
    scaled = scale_to_world(cfg, world)
    for value in (scaled.SOLVER.CHECKPOINT_PERIOD, scaled.TEST.EVAL_PERIOD):
        assert (value > 0) == (period > 0)
    assert scaled.SOLVER.MAX_ITER >= 1
    assert scaled.SOLVER.BASE_LR == pytest.approx(cfg.SOLVER.BASE_LR * world / reference)


def test_epochs_are_counted_in_whole_batches_of_all_processes(tiny_cfg):
    cfg = tiny_cfg("SOLVER.EPOCHS", 3.0, "DATALOADER.CAPTIONS_PER_GPU", 3, "SOLVER.MAX_ITER", 7)  # 16 pairs
    assert [count_epochs(cfg, world_size).SOLVER.MAX_ITER for world_size in (1, 2, 100)] == [15, 6, 3]
    boxes = tiny_cfg("SOLVER.EPOCHS", 0.5, "DATALOADER.CAPTIONS_PER_GPU", 0, "DATALOADER.MOSAICS_PER_GPU", 0)
    assert count_epochs(boxes, 1).SOLVER.MAX_ITER == 3  # 12 scenes, 2 a step
    assert count_epochs(tiny_cfg("SOLVER.MAX_ITER", 7), 1).SOLVER.MAX_ITER == 7


@pytest.mark.parametrize(
    "epochs, drops, world, batches, reference, expected",
    [  # 16 pairs, 2 in a batch
        (48.0, (32, 44), 1, 1, 0, (384, (256, 352))),
        (48.0, (32, 44), 1, 4, 0, (96, (64, 88))),
        (48.0, (32, 44), 2, 2, 8, (96, (64, 88))),  # the images decide, not the reference
        (3.0, (0.5, 2.4), 1, 3, 0, (6, (1, 5))),  # whole steps of an epoch: 16 // 6 = 2
        (3.0, (1,), 100, 2, 8, (3, (1,))),
        (3.0, (), 2, 2, 2, (6, (20,))),  # STEPS stay, as the processes scale them
        (0.0, (), 2, 2, 8, (14, (20,))),
    ],
)
def test_epochs_and_drops_of_the_learning_rate(tiny_cfg, epochs, drops, world, batches, reference, expected):
    steps = ("SOLVER.MAX_ITER", 7, "SOLVER.STEPS", (40,) if reference == 2 else (10,))
    keys = ("SOLVER.EPOCHS", epochs, "SOLVER.STEP_EPOCHS", drops, "SOLVER.ACCUMULATE", batches)
    cfg = tiny_cfg(*steps, *keys, "SOLVER.REFERENCE_WORLD_SIZE", reference)
    solver = count_epochs(scale_to_world(cfg, world), world).SOLVER
    assert (solver.MAX_ITER, solver.STEPS) == expected


def test_drops_without_epochs_are_a_mistake(tiny_cfg):
    with pytest.raises(
        UserError, match=r"^SOLVER.STEP_EPOCHS \[32, 44\] needs SOLVER.EPOCHS: [^.]*SOLVER.STEPS[^.]*\.$"
    ):
        count_epochs(tiny_cfg("SOLVER.STEP_EPOCHS", (32, 44)), 1)


@pytest.mark.parametrize("sampler", ["RepeatFactorTrainingSampler", "TrainingSampler"])
@pytest.mark.parametrize("rounded_up", [True, False])
def test_an_epoch_over_boxes_counts_repeated_images(tiny_cfg, sampler, rounded_up):
    threshold = 0.7
    cfg = tiny_cfg(
        "SOLVER.EPOCHS", 10.0, "DATALOADER.CAPTIONS_PER_GPU", 0, "DATALOADER.DETECTION_PER_GPU", 1,
        "DATALOADER.SAMPLER_TRAIN", sampler, "DATALOADER.REPEAT_THRESHOLD", threshold,
        "DATALOADER.REPEAT_ROUND_UP", rounded_up,
    )  # fmt: skip
    shown = [{box["category_id"] for box in record["annotations"]} for record in source_records(cfg, "detection")]
    images = 0.0
    for classes in shown:
        shares = [sum(c in other for other in shown) / len(shown) for c in classes]
        factor = max(max(1.0, math.sqrt(threshold / share)) for share in shares)
        images += math.ceil(factor) if rounded_up else factor
    images = round(images) if "Repeat" in sampler else 12
    assert (images > 12) == ("Repeat" in sampler)
    assert count_epochs(cfg, 1).SOLVER.MAX_ITER == 10 * images


@pytest.mark.parametrize("bias_decay", [0.0, None])
def test_weight_decay_of_every_parameter(bias_decay):
    cfg = load_config("", ["SOLVER.OPTIMIZER", "ADAMW", "SOLVER.WEIGHT_DECAY", 0.1]).clone()
    cfg.defrost()
    cfg.SOLVER.WEIGHT_DECAY_BIAS = bias_decay
    net = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2), "norm": nn.LayerNorm(8)})
    net.logit_scale = nn.Parameter(torch.zeros(()))
    decay = {id(p): g["weight_decay"] for g in build_optimizer(cfg, net).param_groups for p in g["params"]}
    of_bias = 0.1 if bias_decay is None else bias_decay
    assert {name: decay[id(p)] for name, p in net.named_parameters()} == {
        "attn.in_proj_weight": 0.1, "attn.in_proj_bias": of_bias, "attn.out_proj.weight": 0.1,
        "attn.out_proj.bias": of_bias, "norm.weight": 0.0, "norm.bias": 0.0, "logit_scale": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("optimizer, fused", [("SGD", None), ("ADAMW", True)])
def test_adamw_is_one_kernel_on_cuda_alone(optimizer, fused):
    cfg = load_config("", ["SOLVER.OPTIMIZER", optimizer])
    with FakeTensorMode():
        on_cuda = build_optimizer(cfg, nn.Linear(2, 2, device="cuda"))
    for built, expected in ((on_cuda, fused), (build_optimizer(cfg, nn.Linear(2, 2)), None)):
        assert built.param_groups and all(group["fused"] is expected for group in built.param_groups)


@pytest.mark.parametrize("optimizer", ["SGD", "ADAMW"])
def test_detectron2_own_clipping_still_works(tiny_cfg, optimizer):
    cfg = tiny_cfg(
        "SOLVER.OPTIMIZER", optimizer, "SOLVER.CLIP_GRADIENTS.ENABLED", True,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.25,
    )  # fmt: skip
    net = nn.Linear(2, 1)
    solver, _ = build_solver(cfg, net)
    net.weight.grad, net.bias.grad = torch.tensor([[3.0, -0.1]]), torch.tensor([-9.0])
    solver.step()
    torch.testing.assert_close(net.weight.grad, torch.tensor([[0.25, -0.1]]))
    assert net.bias.grad.item() == -0.25


@pytest.mark.parametrize("steps, left", [((1, 2), (1,)), ((0, 0, 1), (1,)), ((2, 5), ()), ((1, 1), (1,))])
def test_steps_outside_a_short_training_and_equal_ones_do_not_count(steps, left, caplog):
    """Rounding makes some of few iterations. The rate is that of a training whose config has only those ``left``."""
    rates, base = [], load_config(str(CONFIGS / "mini/base_stage.yaml"), ["SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "()"])
    with caplog.at_level(logging.INFO, "clim"):
        for given_steps in (steps, left):
            cfg = base.clone()
            cfg.defrost()
            cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = given_steps, 0
            optimizer, scheduler = build_solver(cfg, nn.Linear(2, 1))
            rates.append([optimizer.param_groups[0]["lr"]])
            for _ in range(2):
                optimizer.step()
                scheduler.step()
                rates[-1].append(optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1] and rates[0][0] == cfg.SOLVER.BASE_LR
    assert caplog.messages == [f"Of SOLVER.STEPS {list(steps)} the training has {list(left)}."]
