"""What tools/benchmarks/waits.py counts, for operations whose waits on a GPU are known, and in a real step."""

import pytest
import torch
from torch import nn

from benchmarks.waits import Moves, Waits, waits_of

DEVICE = torch.device("cpu")  # as a model has it; what is on the host has no device, or "cpu"
MASK = [True, False, True]


def moved(values):
    return torch.tensor(values).to(DEVICE)


def trained_by_mask(weight):
    weight[moved(MASK)].sum().backward()


CASES = {
    "a number": (lambda w: w.sum().item(), 1),
    "a condition": (lambda w: bool((w > 0).any()), 1),
    "a number of the host": (lambda w: torch.arange(3).sum().item(), 0),
    "the length is known": (lambda w: range(len(w)), 0),
    "a list": (lambda w: w.tolist(), 1),
    "a copy on the host": (lambda w: w.detach().cpu().sum().item(), 1),
    "by name": (lambda w: w.to("cpu").sum().item(), 1),
    "another type": (lambda w: w.to(torch.float64).sum().item(), 1),
    "moved": (lambda w: moved([1, 2]).sum().item(), 1),
    "the original of what is moved": (lambda w: (lambda x: (x.to(DEVICE), x.tolist()))(torch.ones(3)), 0),
    "made there": (lambda w: torch.zeros(2, device=w.device).sum().item(), 1),
    "made on the host": (lambda w: torch.zeros(2, device=torch.ones(1).device).sum().item(), 0),
    "taken back, and made there": (lambda w: torch.zeros(2, device=w.detach().cpu().device).tolist(), 1),
    "made from it": (lambda w: w.new_zeros(2).tolist(), 1),
    "a mask, and backward": (trained_by_mask, 2),
    "assigned by a mask": (lambda w: w.detach().clone().index_put_((moved(MASK),), torch.zeros(())), 1),
    "numbers as an index": (lambda w: w[moved([0, 2])], 0),
    "a mask of the host": (lambda w: torch.arange(3)[torch.tensor(MASK)], 0),
    "two masks": (lambda w: w[None].expand(3, 3)[moved(MASK), moved(MASK)], 2),
    "unique": (lambda w: w.unique(), 1),
    "nonzero": (lambda w: w.nonzero(as_tuple=True), 1),
    "repeats": (lambda w: w.repeat_interleave(moved([1, 0, 2])), 1),
    "repeats of a known sum": (lambda w: w.repeat_interleave(moved([1, 0, 2]), output_size=3), 0),
    "only CPUs look": (lambda w: nn.functional.one_hot(moved([1, 0, 2]), 3), 0),
}


@pytest.mark.parametrize("function, expected", CASES.values(), ids=CASES)
def test_a_gpus_host_would_wait(function, expected):
    layer = nn.Linear(3, 1)
    waits = Waits(layer)
    for _ in range(20):
        with waits, Moves(waits):
            [2 * layer.weight for _ in range(3)]  # whose memory what follows may take
            function(layer.weight[0])
    assert waits.counts.total() == 20 * expected


@pytest.mark.slow
def test_a_step_of_two_processes_exchanges_two_small_tensors(tiny_cfg):
    rows = waits_of(tiny_cfg("MODEL.WEIGHTS", ""))
    exchanged = [(row["what"], row["where"].partition(":")[0], row["a step"]) for row in rows if row["bytes"] != ""]
    assert exchanged == [("exchange of a tensor", "clim/engine/trainer.py", 1)] * 2  # the batch, the losses
    waits = {row["where"]: row["a step"] for row in rows if row["what"] == "host wait"}
    assert [n for where, n in waits.items() if where.startswith("clim/engine/trainer.py")] == [1, 2]
    assert waits["all of Detectron2"] > 20  # backward, in our trainer, waits for the two masks of Detectron2's RPN
