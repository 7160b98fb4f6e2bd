"""Training around Detectron2's engine.

| file | what |
|---|---|
| ``trainer.py`` | ``Trainer``: one training step, resuming, hooks |
| ``setup.py``, ``checks.py`` | from the command line to a checked config |
| ``processes.py``, ``failures.py`` | launching processes; a mistake ends all of them with one sentence |
| ``checkpoint.py``, ``rank_state.py``, ``history.py`` | what a killed run goes on from |
| ``safe_load.py``, ``missing_start.py`` | weights that run no code when they are read; weights that are not there |
| ``schedule.py``, ``optimizer.py`` | learning rate for the processes there are; SGD or AdamW |
| ``hooks.py`` | checkpoints in time, unreadable images |
"""

from .checkpoint import SafeCheckpointer
from .failures import run_cleanly, together
from .processes import launch
from .setup import load_config, setup
from .trainer import Trainer, build
from .weight_ensemble import WeightEnsemble

__all__ = [
    "SafeCheckpointer",
    "Trainer",
    "WeightEnsemble",
    "build",
    "launch",
    "load_config",
    "run_cleanly",
    "setup",
    "together",
]
