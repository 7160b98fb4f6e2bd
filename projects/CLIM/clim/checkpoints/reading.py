"""Read files of weights without running code from them. UserError for a missing, damaged or unsafe file."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from contextlib import contextmanager
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Annotated, TypedDict

import msgspec
import numpy as np
import torch
from detectron2.utils.file_io import Detectron2Handler
from iopath.common.file_io import PathManager
from safetensors.torch import load_file
from torch import Tensor

from clim.checkpoints.torchscript import is_torchscript, read_torchscript
from clim.errors import UserError

DESCRIPTION = "clim"  # entry of a checkpoint
_MOST_PACKED = 100  # times the size of a zip that its files may have


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


def require_start(path: str, *, save_dir: str | os.PathLike, path_manager: PathManager) -> str:
    """Fetch ``path``, the file or address that a run in ``save_dir`` starts from: the file's own path.

    UserError if it does not exist.
    """
    try:
        local = Path(path_manager.get_local_path(path.partition("?")[0]))
    except (OSError, HTTPException, ValueError) as error:
        url = path.replace("detectron2://", Detectron2Handler.S3_DETECTRON2_PREFIX)
        remedy = f'download {url} on another machine and set MODEL.WEIGHTS to the file, or to "" for random weights'
        raise UserError(f"MODEL.WEIGHTS: {path} could not be fetched ({error}): {remedy}.") from error
    if local.is_file():
        return str(local)
    if local.parent.resolve() == Path(save_dir).resolve():
        raise UserError(f"{local} is missing, but last_checkpoint beside it names it: correct that file.")
    remedy = f": first train the config with OUTPUT_DIR {local.parent}, or use another file (docs/checkpoints.md)"
    raise UserError(f"MODEL.WEIGHTS: {path} does not exist{remedy if local.name == 'model_final.pth' else ''}.")


@contextmanager
def readable(filename: str | os.PathLike, *, otherwise: str = ""):
    """Turn errors of the block, which reads ``filename``, into a UserError; ``otherwise``: another remedy."""
    try:
        yield
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{filename} is damaged or holds more than tensors, and was not loaded, because that could run code from "
            f"it: re-save its weights alone (torch.save({{'model': state_dict}}, FILE)){otherwise}."
        ) from error
    except Exception as error:  # a damaged file makes its reader raise anything
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:160]
        raise UserError(
            f"{filename} cannot be read as a file of weights ({reason}): is it whole? Copy or download it again."
        ) from error


def read_content(path: str | os.PathLike, *, trusted: bool = False, otherwise: str = ""):
    """Content of a .safetensors, TorchScript or ``torch.save`` file, or of a .pkl of NumPy arrays (Detectron2's zoo).

    Where it is not ``trusted`` and holds more than tensors, arrays and plain containers: UserError of :func:`readable`;
    also for a zip whose checksums are wrong. TorchScript's code never runs.
    """
    path = _regular(path)
    with readable(path, otherwise=otherwise):
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".pkl":
            unpickler = pickle.Unpickler if trusted else _NumpyUnpickler
            return unpickler(BytesIO(path.read_bytes()), encoding="latin1").load()
        check_archive(path)
        if is_torchscript(path):
            return read_torchscript(path)
        with torch.serialization.safe_globals(numpy_globals()):
            return torch.load(path, map_location="cpu", weights_only=not trusted)


def _regular(path: str | os.PathLike) -> Path:
    if not Path(path).is_file():
        raise UserError(f"{path} is not a file: name a file of weights.")
    return Path(path)


def check_archive(path: Path) -> None:
    """ValueError where a checksum of a zip is wrong, which torch ignores; torch.serialization may write 0 for each."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > _MOST_PACKED * path.stat().st_size:
            raise ValueError(f"its parts are more than {_MOST_PACKED} times as large as the file")
        for entry in archive.infolist():
            entry.CRC = entry.CRC or None
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong")


def require_entries(content, kinds: Mapping[str, type], where: str | os.PathLike) -> dict:
    """``content`` of the file or entry ``where``, if it is a dict with entries of these types; else a UserError."""
    remedy = "it is damaged, or not of our training: use another one, or start anew from MODEL.WEIGHTS"
    for name, kind in kinds.items():
        if not isinstance(content.get(name) if isinstance(content, dict) else None, kind):
            raise UserError(f'{where} has no "{name}" of type {kind.__name__}: {remedy}.')
    return content


def read_description(path: str | os.PathLike) -> Description | None:
    """What our trainer writes into a checkpoint beside its weights, without reading these; None in other files.

    UserError for a file that is missing or unreadable, and for a description of another form.
    """
    path = _regular(path)
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


def read_weights(path: Path) -> dict[str, Tensor]:
    """{name: tensor on the CPU} of a file of :func:`read_content` that holds weights; UserError for other files."""
    return weights_of(read_content(path), path)


def weights_of(data, filename: str | os.PathLike) -> dict[str, Tensor]:
    """{name: tensor} in a file's content: under "model" or "state_dict", or at the top; else a UserError."""
    data = data if isinstance(data, dict) else {}
    weights = data.get("model", data.get("state_dict", data))
    if isinstance(weights, dict) and weights and all(_is_named_array(*item) for item in weights.items()):
        with readable(filename):
            return {name: torch.as_tensor(value) for name, value in weights.items()}
    raise UserError(f"{filename} holds no weights: expected {{'model': {{name: tensor}}}} or {{name: tensor}}.")


def _is_named_array(name, value) -> bool:
    plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return isinstance(name, str) and (isinstance(value, np.ndarray) or plain and not value.is_quantized)


def require_finite(content, path: str | os.PathLike, *, name: str = "") -> None:
    """UserError that names the first tensor or number with nan or infinity in nested containers from ``path``."""
    if isinstance(content, Tensor | float):
        value = torch.as_tensor(content)  # the two bounds take half the time of isfinite
        if value.is_floating_point() and value.numel() and not all(map(torch.isfinite, value.aminmax())):
            remedy = "it is damaged, or its training has diverged: use an earlier checkpoint, or copy the file again"
            raise UserError(f"{name} of {path} holds nan or infinity; {remedy}.")
    elif isinstance(content, list | tuple):
        content = dict(enumerate(content))
    for key, part in content.items() if isinstance(content, Mapping) else ():
        require_finite(part, path, name=f"{name}.{key}".lstrip("."))


class _NumpyUnpickler(pickle._Unpickler):  # as torchscript._Unpickler
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
