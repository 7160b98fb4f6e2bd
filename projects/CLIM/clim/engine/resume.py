"""A run that is stopped or killed continues exactly: checkpoints, the state of processes, metrics.json.

A checkpoint is OUTPUT_DIR/model_0004999.pth (weights, optimiser) and, for each process,
rank_states/iteration_0004999.rank0.pth (random states, queues). Seed and iteration determine the batches.
"""

import json
import logging
import math
import os
import random
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from clim.checkpoints.checkpointer import SafeCheckpointer, atomic_save
from clim.checkpoints.reading import read_content, require_entries, require_finite
from clim.errors import UserError
from clim.files import replacing
from clim.methods.memory import TextQueue

BEST = "model_best"  # name of the checkpoint of TEST.BEST_METRIC
logger = logging.getLogger(__name__)


class CheckpointHook(HookBase):
    """Every process writes its state, then the main one writes weights and ``last_checkpoint``.

    In this order, the checkpoint that ``last_checkpoint`` names is always complete. The last one is model_final.
    ``period``: iterations between two checkpoints, 0: model_final only. ``keep``: number of newest checkpoints that
    stay beside model_final, 0: all. The run owns the checkpoints in the folder that are older than ``start_iter``.
    ``extra``: further entries of a checkpoint.
    """

    def __init__(self, checkpointer: SafeCheckpointer, *, period: int, keep: int, start_iter: int, extra: dict):
        self.checkpointer, self.period, self.keep, self.extra = checkpointer, period, keep, extra
        self.folder = Path(checkpointer.save_dir)
        found = (re.fullmatch(r"model_(\d{7})\.pth", path.name) for path in self.folder.glob("model_*.pth"))
        self.kept = sorted(int(match[1]) for match in found if match and int(match[1]) < start_iter)

    def after_step(self):
        iteration = self.trainer.iter
        if iteration + 1 >= self.trainer.max_iter:
            self.save("model_final")
        elif self.trainer.stop.agreed or (self.period > 0 and (iteration + 1) % self.period == 0):
            self.save(f"model_{iteration:07d}")
            self.kept.append(iteration)
            while len(self.kept) > self.keep > 0:
                old = self.kept.pop(0)
                rank_state_path(self.folder, old).unlink(missing_ok=True)
                if comm.is_main_process():
                    (self.folder / f"model_{old:07d}.pth").unlink(missing_ok=True)

    def save(self, name: str, *, wait: bool = True) -> None:
        """Write a checkpoint; processes that do not ``wait`` for each other all have to call this."""
        iteration, synchronize = self.trainer.iter, comm.synchronize if wait else lambda: None
        save_rank_state(self.checkpointer.model, rank_state_path(self.folder, iteration))
        synchronize()
        if comm.is_main_process():
            self.checkpointer.save(name, iteration=iteration, **self.extra)
        synchronize()


def rank_state_path(output_dir, iteration: int) -> Path:
    """File of the state of this process after ``iteration``."""
    return Path(output_dir) / "rank_states" / f"iteration_{iteration:07d}.rank{comm.get_rank()}.pth"


def save_rank_state(model: nn.Module, path: Path) -> None:
    """Write this process's random states and the queues of ``model``."""
    atomic_save({"world_size": comm.get_world_size(), "queues": _queues(model), **_random_states()}, path)


def load_rank_state(model: nn.Module, path: Path) -> bool:
    """Restore what :func:`save_rank_state` wrote; False if there is none for these queues and number of processes.

    UserError for a damaged file.
    """
    if not path.is_file():
        return False
    try:
        state = require_entries(read_content(path), {"world_size": int, "queues": dict}, path)
        queues, stored = _queues(model), state["queues"]
        ours, theirs = ({name: buffer.shape for name, buffer in buffers.items()} for buffers in (queues, stored))
        if state["world_size"] != comm.get_world_size() or ours != theirs:
            return False
        require_finite(stored, path)
        for name, buffer in queues.items():
            buffer.copy_(stored[name])
        _set_random_states(state)
    except (UserError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        remedy = f"delete {path}, and the run goes on with new random states and empty queues"
        raise UserError(f"The state of process {comm.get_rank()} is damaged ({error}): {remedy}.") from error
    return True


def _queues(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers of the model's queues. The config determines all other buffers that checkpoints leave out."""
    queues = [(name, module) for name, module in model.named_modules() if isinstance(module, TextQueue)]
    return {f"{name}.{key}": buffer for name, queue in queues for key, buffer in queue.named_buffers()}


@contextmanager
def random_states_kept():
    """Restore all random states at the end of the block."""
    states = _random_states()
    try:
        yield
    finally:
        _set_random_states(states)


def _random_states() -> dict:
    """Python's, NumPy's and torch's random states, in types that load without running code."""
    kind, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    numpy = [kind, torch.from_numpy(keys.copy()), *rest]
    return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state(), "cuda": cuda}


def _set_random_states(states: dict) -> None:
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy(), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def prepare_metrics(output_dir, *, resume: bool, start_iter: int) -> None:
    """Keep one run in metrics.json.

    A run that resumes drops the lines from ``start_iter`` on, and an incomplete last line. A new run renames the
    metrics.json, last_checkpoint and model_best.pth of an earlier one: --resume must never continue the earlier run.
    """
    files = [Path(output_dir) / name for name in ("metrics.json", "last_checkpoint", f"{BEST}.pth")]
    metrics = files[0]
    if resume and metrics.is_file():
        lines = metrics.read_bytes().splitlines(keepends=True)
        iterations = list(map(_iteration, lines))
        if damaged := iterations[:-1].count(math.inf):  # the last line of a killed run may be incomplete
            logger.warning("%s: %d damaged lines are left out.", metrics, damaged)
        kept = [line for line, iteration in zip(lines, iterations, strict=True) if iteration < start_iter]
        with replacing(metrics) as partial:
            partial.write_bytes(b"".join(kept))
    for path in () if resume else filter(Path.is_file, files):
        aside = path.with_name(f"previous.{path.name}")
        os.replace(path, aside)
        logger.info("Renamed %s, which belongs to an earlier run, to %s.", path, aside.name)


def _iteration(line: bytes) -> float:
    """The iteration of a line of metrics.json; inf if it is damaged."""
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return math.inf
