"""Training around Detectron2's engine.

| file | what |
|---|---|
| ``trainer.py`` | ``Trainer``: one training step, resuming, hooks |
| ``setup.py``, ``checks.py`` | from the command line to a checked config |
| ``processes.py`` | launching processes; a mistake ends all of them with one sentence |
| ``loading.py`` | from a config and its weights to a model |
| ``checkpoint.py``, ``rank_state.py``, ``history.py`` | what a killed run goes on from |
| ``schedule.py``, ``optimizer.py`` | learning rate for the processes there are; SGD or AdamW |
| ``hooks.py`` | checkpoints in time, unreadable images |
"""

from .checkpoint import SafeCheckpointer
from .loading import build, load_ensemble, load_model, load_weights
from .processes import launch
from .setup import load_config, setup
from .trainer import Trainer

__all__ = [
    "SafeCheckpointer",
    "Trainer",
    "build",
    "launch",
    "load_config",
    "load_ensemble",
    "load_model",
    "load_weights",
    "setup",
]
