"""The end of a training whose losses or gradients are no numbers, and which pictures it met."""

import math

import torch
from detectron2.utils import comm

from clim.errors import UserError


def check_finite(losses: dict, gradient_norm: float, batch: dict, iteration: int) -> None:
    """Stop at the first loss or gradient that is not a number, before it reaches the weights."""
    values = dict(zip(losses, torch.stack([loss.detach() for loss in losses.values()]).tolist(), strict=True))
    values["gradient norm"] = gradient_norm
    bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise diverged(", ".join(bad), batch, iteration)


def diverged(what: str, batch: dict, iteration: int) -> UserError:
    """The error that names what is not finite, and the image ids of the batch."""
    ids = {
        source: [s["image_id"] if "image_id" in s else s["tiles"].image_ids.tolist() for s in samples]
        for source, samples in batch.items()
        if samples
    }
    rank = f" on process {comm.get_rank()}" if comm.get_world_size() > 1 else ""
    return UserError(
        f"Iteration {iteration}{rank}: {what.rstrip('.')}; image ids of the batch: {ids}. Training "
        "stopped: look at these pictures, or start anew with a lower SOLVER.BASE_LR."
    )
