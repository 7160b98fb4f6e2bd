"""Files of weights: how to read them safely, to translate their names, to load and to write checkpoints."""

from .checkpointer import SafeCheckpointer, load_model
from .reading import read_description

__all__ = ["SafeCheckpointer", "load_model", "read_description"]
