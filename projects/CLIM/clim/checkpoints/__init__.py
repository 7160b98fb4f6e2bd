"""Files of weights.

| file | content |
|---|---|
| ``reading.py`` | read a file without running code from it |
| ``keys.py`` | translate the names of weights in files into ours |
| ``checkpointer.py`` | ``SafeCheckpointer``; ``load_model``: from a config and its weights to a model |
"""

from .checkpointer import SafeCheckpointer, load_model

__all__ = ["SafeCheckpointer", "load_model"]
