"""Files of weights, read without running code from them."""

import pickle
from contextlib import contextmanager

import numpy as np
import torch

from clim.errors import UserError

# Everything that unpickling may call: it rebuilds arrays and plain containers, and touches nothing else.
_NUMPY_PARTS = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
for _core in ("numpy.core.multiarray", "numpy._core.multiarray"):  # NumPy 1 and 2
    _NUMPY_PARTS[_core, "_reconstruct"] = np.zeros(0).__reduce__()[0]
    _NUMPY_PARTS[_core, "scalar"] = np.float64(0).__reduce__()[0]
_PLAIN_PARTS = {("collections", "OrderedDict"), ("_codecs", "encode")}
_DAMAGE = (EOFError, OSError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError)


@contextmanager
def readable(filename: str, *, otherwise: str = ""):
    """Inside, a file that cannot be read, or asks for more than arrays and plain containers, is a UserError.

    ``otherwise``: what can be done with the latter but to re-save it.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{filename} is damaged or holds more than tensors, and was not loaded, because that could "
            f"run code from it: re-save its weights alone (torch.save({{'model': state_dict}}, FILE)){otherwise}."
        ) from error
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:160]
        raise UserError(f"{filename} cannot be read as a file of weights ({reason}): is it whole?") from error


def weights_of(data, filename: str) -> dict:
    """{name: tensor or array} in what a file holds: below "model" or "state_dict", or at the top; else UserError."""
    data = data if isinstance(data, dict) else {}
    weights = data.get("model", data.get("state_dict", data))
    if isinstance(weights, dict) and weights and all(map(_is_array, weights.values())):
        return weights
    raise UserError(
        f"{filename} holds no weights: expected {{'model': {{name: tensor}}}} or {{name: tensor}}."
    )


def load_numpy_pickle(path, *, trusted: bool = False) -> dict:
    """A .pkl of NumPy arrays (Detectron2's model zoo, MSRA R-50), without executing what it says.

    Raises pickle.UnpicklingError where the file asks for anything but arrays and plain containers.
    """
    with open(path, "rb") as file:
        unpickler = pickle.Unpickler if trusted else _NumpyUnpickler
        return unpickler(file, encoding="latin1").load()


class _NumpyUnpickler(pickle.Unpickler):
    """Arrays and plain containers, nothing callable."""

    def find_class(self, module, name):
        if (module, name) in _NUMPY_PARTS:
            return _NUMPY_PARTS[module, name]
        if (module, name) not in _PLAIN_PARTS:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a file of weights")
        return super().find_class(module, name)


def numpy_globals() -> list[tuple]:
    """What torch.load may rebuild besides tensors, as (object, its name): NumPy arrays and numbers, by dtype."""
    dtypes = {type(np.dtype(char)) for char in np.typecodes["All"]}
    parts = _NUMPY_PARTS | {(kind.__module__, kind.__qualname__): kind for kind in dtypes}
    return [(part, ".".join(name)) for name, part in parts.items()]


def _is_array(value) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)
