"""CLIM for Detectron2: contrastive language-image mosaics for open-vocabulary detection (arXiv 2312.11376)."""

from importlib import import_module

__version__ = "0.1.0"

_OWNERS = {"Detector": "clim.detector", "add_clim_config": "clim.config"}
__all__ = ["Detector", "add_clim_config"]  # noqa: F822  found by __getattr__


def __getattr__(name: str):
    """Import ``Detector`` and ``add_clim_config`` on first use, so that ``import clim`` takes no time."""
    if name not in _OWNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_OWNERS[name]), name)
