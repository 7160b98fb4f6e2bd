"""Checkpoints that survive a kill, hold all that the next loss depends on, and run no code when loaded."""

import os
import pickle
import random
from pathlib import Path

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from clim.errors import UserError


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer: atomic writes, and loading that executes nothing from the file."""

    def save(self, name: str, **kwargs) -> None:
        """Write ``name``.pth and point ``last_checkpoint`` at it; call on the main process only."""
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {path}")
        atomic_save(data, path)
        pointer = Path(self.save_dir) / "last_checkpoint"
        temporary = pointer.with_suffix(".tmp")
        temporary.write_text(path.name)
        os.replace(temporary, pointer)

    def _load_file(self, filename):
        path = self.path_manager.get_local_path(filename)
        try:
            if filename.endswith(".pkl"):
                return _as_detectron2(load_numpy_pickle(path))
            data = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{filename} holds more than tensors and was not loaded, because loading it would run code from "
                f"it. If you trust it, re-save its weights alone: torch.save({{'model': state_dict}}, FILE)."
            ) from error
        return data if "model" in data else {"model": data.get("state_dict", data)}


def atomic_save(data, path: Path) -> None:
    """torch.save that leaves either the old file or the whole new one, whenever the process is killed."""
    temporary = path.with_name(path.name + f".tmp{os.getpid()}")
    with open(temporary, "wb") as file:
        torch.save(data, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class _NumpyUnpickler(pickle.Unpickler):
    """Arrays and plain containers, nothing callable."""

    _ALLOWED = {
        *((module, name) for module in ("numpy.core.multiarray", "numpy._core.multiarray") for name in ("_reconstruct", "scalar")),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
    }  # fmt: skip

    def find_class(self, module, name):
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a file of weights")
        return super().find_class(module, name)


def load_numpy_pickle(path) -> dict:
    """A .pkl of NumPy arrays (Detectron2's model zoo, MSRA R-50), without executing what it says."""
    with open(path, "rb") as file:
        return _NumpyUnpickler(file, encoding="latin1").load()


def _as_detectron2(data: dict) -> dict:
    """The two layouts of Detectron2's .pkl files, as its own checkpointer reads them."""
    if "model" in data and "__author__" in data:
        return data
    weights = data.get("blobs", data)
    weights = {k: v for k, v in weights.items() if not k.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


# ---- What the next loss depends on besides weights and optimiser: one file a rank ----------------


def rank_state_path(output_dir, name: str) -> Path:
    return Path(output_dir) / "rank_states" / f"{name}.rank{comm.get_rank()}.pth"


def save_rank_state(model: nn.Module, path: Path) -> None:
    """Random states and non-persistent buffers (queues) of this process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numpy_state = np.random.get_state()
    state = {
        "world_size": comm.get_world_size(),
        "buffers": dict(_transient_buffers(model)),
        "python": random.getstate(),
        "numpy": [numpy_state[0], torch.from_numpy(numpy_state[1].copy()), *numpy_state[2:]],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }
    atomic_save(state, path)


def load_rank_state(model: nn.Module, path: Path) -> bool:
    """Restore what :func:`save_rank_state` stored; False where this rank's file is missing or of another world."""
    if not path.is_file():
        return False
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["world_size"] != comm.get_world_size():
        return False
    for name, buffer in _transient_buffers(model):
        buffer.copy_(state["buffers"][name])
    random.setstate(_tuples(state["python"]))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy(), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    return True


def _transient_buffers(model: nn.Module):
    stored = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name not in stored]


def _tuples(value):
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
