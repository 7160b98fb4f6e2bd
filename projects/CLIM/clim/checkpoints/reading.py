"""Read files of weights without running code from them. UserError for a missing, damaged or unsafe file."""

import os
import pickle
import zipfile
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, TypedDict

import msgspec
import numpy as np
import torch
from detectron2.utils.file_io import Detectron2Handler
from iopath.common.file_io import PathManager
from safetensors import SafetensorError
from safetensors.torch import load_file

from clim.errors import UserError

DESCRIPTION = "clim"  # entry of a checkpoint


class Description(TypedDict):
    """What a checkpoint says about itself."""

    config: str  # YAML text of the frozen config
    class_names: list[str]  # K
    base_classes: list[str] | None  # the classes that had boxes; None: all
    train_sets: list[str]
    rows: Annotated[int, msgspec.Meta(ge=1, le=10**6)]  # number of class embeddings, more than K with synonyms


# Unpickling may call these alone: they rebuild arrays and plain containers, without other effects.
_NUMPY_PARTS = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
for _core in ("numpy.core.multiarray", "numpy._core.multiarray"):  # NumPy 1 and 2
    _NUMPY_PARTS[_core, "_reconstruct"] = np.zeros(0).__reduce__()[0]
    _NUMPY_PARTS[_core, "scalar"] = np.float64(0).__reduce__()[0]
_PLAIN_PARTS = {("collections", "OrderedDict"), ("_codecs", "encode")}
_DAMAGE = (EOFError, OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, SafetensorError)


def require_start(path: str, *, save_dir: str | os.PathLike, path_manager: PathManager) -> None:
    """Fetch ``path``, the file or address that a run in ``save_dir`` starts from. UserError if it does not exist."""
    try:
        local = Path(path_manager.get_local_path(path.partition("?")[0]))
    except (OSError, HTTPException, ValueError) as error:
        url = path.replace("detectron2://", Detectron2Handler.S3_DETECTRON2_PREFIX)
        remedy = f'download {url} on another machine and set MODEL.WEIGHTS to the file, or to "" for random weights'
        raise UserError(f"MODEL.WEIGHTS: {path} could not be fetched ({error}): {remedy}.") from error
    if local.is_file():
        return
    if local.parent.resolve() == Path(save_dir).resolve():
        raise UserError(f"{local} is missing, but last_checkpoint beside it names it: correct that file.")
    remedy = f": first train the config with OUTPUT_DIR {local.parent}, or use another file (docs/checkpoints.md)"
    raise UserError(f"MODEL.WEIGHTS: {path} does not exist{remedy if local.name == 'model_final.pth' else ''}.")


@contextmanager
def readable(filename: str | os.PathLike, *, otherwise: str = ""):
    """Turn errors of the block, which reads ``filename``, into a UserError; ``otherwise``: another remedy."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{filename} is damaged or holds more than tensors, and was not loaded, because that could run code from "
            f"it: re-save its weights alone (torch.save({{'model': state_dict}}, FILE)){otherwise}."
        ) from error
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:160]
        raise UserError(f"{filename} cannot be read as a file of weights ({reason}): is it whole?") from error


def read_pickle(path: str | os.PathLike, *, trusted: bool = False, otherwise: str = ""):
    """Content of a file of ``torch.save``, or of a .pkl of NumPy arrays (Detectron2's model zoo).

    Where it is not ``trusted`` and holds more than tensors, arrays and plain containers: UserError of :func:`readable`.
    """
    with readable(path, otherwise=otherwise):
        if Path(path).suffix == ".pkl":
            with open(path, "rb") as file:
                return (pickle.Unpickler if trusted else _NumpyUnpickler)(file, encoding="latin1").load()
        with torch.serialization.safe_globals(numpy_globals()):
            return torch.load(path, map_location="cpu", weights_only=not trusted)


def read_description(path: str | os.PathLike) -> Description | None:
    """What our trainer writes into a checkpoint beside its weights, without reading these; None in other files.

    UserError for a file that is missing or unreadable, and for a description of another form.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} is not a file: name a checkpoint.")
    if not zipfile.is_zipfile(path):
        return None
    with readable(path), torch.serialization.safe_globals(numpy_globals()):
        content = None if is_torchscript(path) else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, dict) or content.get(DESCRIPTION) is None:
        return None
    try:
        found = msgspec.convert(content[DESCRIPTION], Description)
        names = found["class_names"]
        if len(set(names)) < len(names) or not all(map(str.strip, names)) or len(names) > found["rows"]:
            raise ValueError(f"{len(names)} class_names with empty or equal ones, or more than {found['rows']} rows")
    except ValueError as error:  # also msgspec's
        reason = str(error).replace("`", "")
        raise UserError(f"The entry {DESCRIPTION!r} of {path} is damaged ({reason}): take another file.") from error
    return found


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """{name: tensor on the CPU} of a .safetensors, TorchScript or ``torch.save`` file; UserError for other files."""
    with readable(path):
        if path.suffix == ".safetensors":
            return load_file(path)
        if is_torchscript(path):
            return torch.jit.load(path, map_location="cpu").state_dict()
    return {name: torch.as_tensor(value) for name, value in weights_of(read_pickle(path), path).items()}


def weights_of(data, filename: str | os.PathLike) -> dict:
    """{name: tensor or array} in a file's content: under "model" or "state_dict", or at the top; else a UserError."""
    data = data if isinstance(data, dict) else {}
    weights = data.get("model", data.get("state_dict", data))
    arrays = torch.Tensor | np.ndarray
    if isinstance(weights, dict) and weights and all(isinstance(value, arrays) for value in weights.values()):
        return weights
    raise UserError(f"{filename} holds no weights: expected {{'model': {{name: tensor}}}} or {{name: tensor}}.")


def is_torchscript(path: str | os.PathLike) -> bool:
    """Whether a file is a TorchScript program, such as OpenAI's CLIP, and not a pickle of tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("/constants.pkl") for entry in archive.namelist())


class _NumpyUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) in _NUMPY_PARTS:
            return _NUMPY_PARTS[module, name]
        if (module, name) not in _PLAIN_PARTS:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a file of weights")
        return super().find_class(module, name)


def numpy_globals() -> list[tuple]:
    """(object, its name) of all that torch.load may rebuild besides tensors: NumPy arrays, numbers, their types."""
    dtypes = {type(np.dtype(char)) for char in np.typecodes["All"]}
    parts = _NUMPY_PARTS | {(kind.__module__, kind.__qualname__): kind for kind in dtypes}
    return [(part, ".".join(name)) for name, part in parts.items()]
