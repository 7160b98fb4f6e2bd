"""Training and evaluation around Detectron2's engine.

| file | what |
|---|---|
| ``trainer.py`` | ``Trainer``: one training step, resuming, hooks |
| ``setup.py``, ``checks.py`` | from the command line to a checked config |
| ``processes.py``, ``failures.py`` | launching processes; a mistake ends all of them with one sentence |
| ``loading.py`` | from a config and its weights to a model |
| ``checkpoint.py``, ``rank_state.py``, ``history.py`` | what a killed run goes on from |
| ``safe_load.py``, ``missing_start.py`` | weights that run no code when they are read; weights that are not there |
| ``schedule.py``, ``optimizer.py`` | learning rate for the processes there are; SGD or AdamW |
| ``evaluation.py``, ``hooks.py`` | scoring; checkpoints in time, unreadable pictures |
"""

from .checkpoint import SafeCheckpointer
from .evaluation import evaluate
from .failures import run_cleanly, together
from .loading import build, load_ensemble, load_model, load_weights
from .processes import launch
from .setup import load_config, setup
from .trainer import Trainer

__all__ = [
    "SafeCheckpointer",
    "Trainer",
    "build",
    "evaluate",
    "launch",
    "load_config",
    "load_ensemble",
    "load_model",
    "load_weights",
    "run_cleanly",
    "setup",
    "together",
]
