"""Files of weights: how to read them safely, to translate their names, to load and to write checkpoints."""

from .checkpointer import SafeCheckpointer, load_model

__all__ = ["SafeCheckpointer", "load_model"]
