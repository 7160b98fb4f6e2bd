"""Training around Detectron2's engine: from the command line to a config, a trainer, and what a killed run needs."""

from .setup import load_config, setup
from .trainer import Trainer
from .weight_ensemble import load_ensemble

__all__ = ["Trainer", "load_config", "load_ensemble", "setup"]
