"""Training around Detectron2's engine.

| file | content |
|---|---|
| ``setup.py`` | ``load_config``, ``setup``: from the command line to a checked config |
| ``launch.py`` | ``launch``: start the processes; a user's mistake ends all of them with one sentence |
| ``trainer.py`` | ``Trainer``: hooks, one training step, evaluation |
| ``resume.py`` | what a killed run continues from |
| ``solver.py`` | learning rate and iterations for the number of processes; SGD or AdamW |
| ``weight_ensemble.py`` | trained weights mixed with the initial ones, for evaluation and ``clip.pt`` |
"""

from .launch import launch
from .setup import load_config, setup
from .trainer import Trainer
from .weight_ensemble import load_ensemble

__all__ = ["Trainer", "launch", "load_config", "load_ensemble", "setup"]
