"""What the next loss depends on besides weights and optimiser, of each process: random states and queues.

One file a process and checkpoint, OUTPUT_DIR/rank_states/iteration_0004999.rank0.pth. The position in the
data is no part of it: batches are a function of seed and iteration (data/streams.py).
"""

import random
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from detectron2.utils import comm
from torch import nn

from clim.methods.memory import TextQueue

from .checkpoint import atomic_save


def rank_state_path(output_dir, iteration: int, rank: int | None = None) -> Path:
    """File of a process's state after ``iteration``; ``rank`` None: of this process."""
    rank = comm.get_rank() if rank is None else rank
    return Path(output_dir) / "rank_states" / f"iteration_{iteration:07d}.rank{rank}.pth"


def save_rank_state(model: nn.Module, path: Path) -> None:
    """Write this process's random states and the queues of its method."""
    state = {"world_size": comm.get_world_size(), "queues": _queues(model), **_random_states()}
    atomic_save(state, path)


def load_rank_state(model: nn.Module, path: Path) -> bool:
    """Restore what :func:`save_rank_state` wrote.

    False, and nothing changed, where there is no such file, or one of another number of processes or of a
    model with other queues.
    """
    if not path.is_file():
        return False
    state = torch.load(path, map_location="cpu", weights_only=True)
    queues = _queues(model)
    shapes = {name: buffer.shape for name, buffer in queues.items()}
    stored = {name: buffer.shape for name, buffer in state.get("queues", {}).items()}
    if state["world_size"] != comm.get_world_size() or stored != shapes:
        return False
    for name, buffer in queues.items():
        buffer.copy_(state["queues"][name])
    _set_random_states(state)
    return True


@contextmanager
def random_states_kept():
    """Whatever draws random numbers inside, the program goes on as if it had not."""
    states = _random_states()
    try:
        yield
    finally:
        _set_random_states(states)


def _random_states() -> dict:
    """Python's, NumPy's and torch's random states, in types that load without running code."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(keys.copy()), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_states(states: dict) -> None:
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy(), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _queues(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers of the model's queues. Other buffers that checkpoints leave out are the config's business."""
    queues = [(name, module) for name, module in model.named_modules() if isinstance(module, TextQueue)]
    return {f"{name}.{key}": buffer for name, queue in queues for key, buffer in queue.named_buffers()}
