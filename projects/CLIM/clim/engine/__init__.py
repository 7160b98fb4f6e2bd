"""Training around Detectron2's engine.

| file | content |
|---|---|
| ``setup.py`` | ``launch`` starts the processes; ``load_config``, ``setup``: a checked config |
| ``trainer.py`` | ``Trainer``: hooks, one training step, evaluation |
| ``resume.py`` | what a killed run continues from |
| ``solver.py`` | learning rate and iterations for the number of processes; SGD or AdamW |
| ``weight_ensemble.py`` | the mean of trained and initial weights, for evaluation and ``clip.pt`` |
"""

from .setup import launch, load_config, setup
from .trainer import Trainer
from .weight_ensemble import load_ensemble

__all__ = ["Trainer", "launch", "load_config", "load_ensemble", "setup"]
