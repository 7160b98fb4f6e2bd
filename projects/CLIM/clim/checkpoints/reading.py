"""Read files of weights without running code from them. UserError for a missing, damaged or unsafe file."""

import codecs
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
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
from clim.errors import UserError, telling

DESCRIPTION = "clim"  # entry of a checkpoint
_MOST_PACKED = 100  # times the size of a zip that its files may have
_PLAIN = torch.strided, "cpu"  # layout and device of a file's tensors


class Description(TypedDict):
    """What a checkpoint says about itself."""

    config: str  # YAML text of the frozen config
    class_names: list[str]  # K
    base_classes: list[str] | None  # the classes that had boxes; None: all
    train_sets: list[str]
    rows: Annotated[int, msgspec.Meta(ge=1, le=10**6)]  # number of class embeddings, more than K with synonyms


# Unpickling may call these alone: they rebuild arrays and plain containers, without other effects.
_PARTS = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype, "_codecs.encode": codecs.encode,
          "collections.OrderedDict": OrderedDict}  # fmt: skip
_PARTS |= {f"{kind.__module__}.{kind.__qualname__}": kind for kind in {type(np.dtype(c)) for c in np.typecodes["All"]}}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    _PARTS[f"{_core}.multiarray._reconstruct"] = np.zeros(0).__reduce__()[0]
    _PARTS[f"{_core}.multiarray.scalar"] = np.float64(0).__reduce__()[0]
    _PARTS[f"{_core}.numeric._frombuffer"] = np.zeros(0).__reduce_ex__(5)[0]  # of protocol 5


def require_start(path: str, *, save_dir: str | os.PathLike, path_manager: PathManager) -> str:
    """The file of ``path``, a file or address that a run in ``save_dir`` starts from; UserError if there is none."""
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
def readable(filename: str | os.PathLike, *, remedy: str = "copy or download it again, whole", trust: str = ""):
    """Turn errors of the block, which reads ``filename``, into a UserError; also where that is no regular file.

    ``trust``: what else to do about a file that could run code.
    """
    if not Path(filename).is_file():
        raise UserError(f"{filename} is not a file: correct its name, or {remedy}.")
    with telling(f"{filename} cannot be read", remedy=remedy):
        try:
            yield
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{filename} is damaged or holds more than tensors, and was not loaded, because that could run code "
                f"from it: re-save its weights alone (torch.save({{'model': state_dict}}, FILE)){trust}."
            ) from error


def read_content(path: str | os.PathLike, *, trusted: bool = False, **options):
    """Content of a .safetensors, TorchScript, .npy or ``torch.save`` file, or of a .pkl of arrays (Detectron2's zoo).

    Where it is not ``trusted`` and holds more than tensors, arrays and plain containers: UserError of :func:`readable`,
    which takes the ``options``; also for a zip whose checksums are wrong. TorchScript's code never runs. The array of a
    .npy is a memory map: it compares the sizes of file and array, so a damaged header reserves no memory.
    """
    path = Path(path)
    with readable(path, **options):
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npy":
            return np.load(path, "r", allow_pickle=False)
        if path.suffix == ".pkl":
            unpickler = pickle.Unpickler if trusted else _ArrayUnpickler
            return unpickler(BytesIO(path.read_bytes()), encoding="latin1").load()
        check_archive(path)
        if is_torchscript(path):
            return read_torchscript(path)
        with torch.serialization.safe_globals(numpy_globals()):
            return torch.load(path, map_location="cpu", weights_only=not trusted)


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
    with readable(path), torch.serialization.safe_globals(numpy_globals()), open(path, "rb") as file:
        if not (start := file.read(2)):
            raise EOFError("it is empty")
        ours = start == b"PK" and not is_torchscript(path)  # also a zip that is cut off
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True) if ours else None
    if not isinstance(content, dict) or content.get(DESCRIPTION) is None:
        return None
    with telling(f"The entry {DESCRIPTION!r} of {path} is damaged", remedy="take another file"):
        found = msgspec.convert(content[DESCRIPTION], Description)
        names = found["class_names"]
        if len(set(names)) < len(names) or not all(map(str.strip, names)) or len(names) > found["rows"]:
            raise ValueError(f"{len(names)} class_names with empty or equal ones, or more than {found['rows']} rows")
    return found


def read_weights(path: Path, **options) -> dict[str, Tensor]:
    """{name: tensor on the CPU} of a file of :func:`read_content` that holds weights; UserError for other files."""
    return weights_of(read_content(path, **options), path)


def weights_of(data, filename: str | os.PathLike) -> dict[str, Tensor]:
    """{name: tensor} in a file's content: under "model" or "state_dict", or at the top; else a UserError."""
    data = data if isinstance(data, dict) else {}
    weights = data.get("model", data.get("state_dict", data))
    if isinstance(weights, dict) and weights and all(_is_weight(*item) for item in weights.items()):
        return {name: torch.as_tensor(value) for name, value in weights.items()}
    raise UserError(f"{filename} holds no weights: expected {{'model': {{name: tensor}}}} or {{name: tensor}}.")


def _is_weight(name, value) -> bool:
    if isinstance(value, np.ndarray):
        return isinstance(name, str) and value.dtype.isnative and value.dtype.char in "?bBhilqefdFD"
    return isinstance(name, str) and isinstance(value, Tensor) and (value.layout, value.device.type) == _PLAIN


def leaves(content, name: str = "") -> Iterator[tuple[str, object]]:
    """(place, value) of all that nested dicts, lists and tuples hold; a place is "state.0.exp_avg"."""
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping):
        yield name, content
        return
    for key, part in content.items():
        yield from leaves(part, f"{name}.{key}".lstrip("."))


def require_finite(content, path: str | os.PathLike, *, name: str = "") -> None:
    """UserError that names the first tensor or number with nan or infinity in nested containers from ``path``."""
    for place, value in leaves(content, name):
        number = torch.as_tensor(value if isinstance(value, Tensor | float) else 0)
        # The two bounds take half the time of isfinite.
        if number.is_floating_point() and number.numel() and not all(map(torch.isfinite, number.aminmax())):
            remedy = "it is damaged, or its training has diverged: use an earlier checkpoint, or copy the file again"
            raise UserError(f"{place} of {path} holds nan or infinity; {remedy}.")


class _ArrayUnpickler(pickle._Unpickler):  # as torchscript._Unpickler
    def find_class(self, module, name):
        if (part := _PARTS.get(f"{module}.{name}")) is None:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a file of weights")
        return part


def numpy_globals() -> list[tuple]:
    """(object, its name) of all that torch.load may rebuild besides tensors: NumPy arrays, numbers, their types."""
    return [(part, name) for name, part in _PARTS.items()]
