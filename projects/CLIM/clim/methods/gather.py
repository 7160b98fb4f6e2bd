"""Rows of all processes in one contrast, with gradients across them."""

from typing import NamedTuple

import torch
from detectron2.utils import comm
from torch import Tensor
from torch.distributed.nn.functional import all_gather


class Gathered(NamedTuple):
    """``rows`` (N, D) of all processes in rank order; this process's begin at ``start``."""

    rows: Tensor
    start: int


def gather_rows(rows: Tensor) -> Gathered:
    """All processes' rows (R_i, D); their numbers may differ.

    The gradient of a process's own rows is summed over the losses of all processes. Averaged over processes,
    as DistributedDataParallel does, that is the gradient of the mean loss (open_clip's ``gather_with_grad``).
    """
    if comm.get_world_size() == 1:
        return Gathered(rows, 0)
    counts = comm.all_gather(len(rows))
    padded = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), rows.shape[1])])
    parts = all_gather(padded)
    gathered = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return Gathered(gathered, sum(counts[: comm.get_rank()]))
