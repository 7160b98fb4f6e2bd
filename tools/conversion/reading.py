"""Reading official files without running anything that they hold beside tensors."""

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from clim.engine.safe_load import numpy_globals, readable, weights_of
from clim.errors import UserError


class Inert:
    """Replaces any class or function that a file names: takes all arguments, does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def read_official(path: str) -> dict[str, Tensor]:
    """Names and tensors of a file that ``torch.save`` wrote: below "model" (maskrcnn-benchmark), "state_dict"
    (MMDetection), or at its top.

    MMDetection's files also hold logs and settings as objects of its own classes. The reader puts an inert object in
    the place of each, so MMDetection need not be installed, and none of its code runs.

    Raises UserError where the file is missing, damaged, holds no weights, or asks for the operating system.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} is not a file: name the published one.")
    with readable(path):
        with torch.serialization.safe_globals(numpy_globals()):
            # The old format, from before PyTorch 1.6, cannot be searched; it is read if it holds tensors alone.
            modern = zipfile.is_zipfile(path)
            strangers = torch.serialization.get_unsafe_globals_in_checkpoint(path) if modern else []
            with torch.serialization.safe_globals([(Inert, name) for name in strangers]):
                data = torch.load(path, map_location="cpu", weights_only=True)
    return {name: torch.as_tensor(value) for name, value in weights_of(data, path).items()}
