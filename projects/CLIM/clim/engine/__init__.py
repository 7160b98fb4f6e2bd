"""Training and evaluation around Detectron2's engine."""

from .setup import load_config, run_cleanly, setup
from .trainer import Trainer, evaluate

__all__ = ["Trainer", "evaluate", "load_config", "run_cleanly", "setup"]
