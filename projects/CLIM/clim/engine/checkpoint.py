"""Checkpoints that survive a kill, and weights that run no code when they are loaded."""

import os
import pickle
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import Detectron2Handler
from torch import nn

from clim.errors import UserError
from clim.files import replacing
from clim.text.clip_weights import is_torchscript

# Everything that unpickling may call: it rebuilds arrays and plain containers, and touches nothing else.
_NUMPY_PARTS = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
for _core in ("numpy.core.multiarray", "numpy._core.multiarray"):  # NumPy 1 and 2
    _NUMPY_PARTS[_core, "_reconstruct"] = np.zeros(0).__reduce__()[0]
    _NUMPY_PARTS[_core, "scalar"] = np.float64(0).__reduce__()[0]
_PLAIN_PARTS = {("collections", "OrderedDict"), ("_codecs", "encode")}
_TRUST = ", or set MODEL.TRUST_WEIGHTS True if you trust its author"
_DAMAGE = (EOFError, OSError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError)


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer: atomic writes, and loading that executes nothing from the file.

    Args:
        trusted: load files that hold more than tensors and arrays, which may run code from them.
    """

    def __init__(self, model: nn.Module, save_dir: str, *, trusted: bool = False, **checkpointables):
        super().__init__(model, save_dir, **checkpointables)
        self.trusted = trusted

    def save(self, name: str, **kwargs) -> None:
        """Write ``name``.pth and point ``last_checkpoint`` at it; call on the main process only."""
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {path}")
        atomic_save(data, path)
        with replacing(Path(self.save_dir) / "last_checkpoint") as pointer:
            pointer.write_text(path.name)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """As Detectron2's: from a local file or an address; "" loads nothing.

        Raises:
            UserError: the file is missing, cannot be fetched, is damaged, would run code, or has no weight
                that this model knows.
        """
        try:
            if path:
                self._check_there(path)
            return super().load(path, checkpointables)
        finally:
            self._parsed_url_during_load = None

    def _check_there(self, path: str) -> None:
        try:
            local = self.path_manager.get_local_path(path.partition("?")[0])
        except (OSError, HTTPException, ValueError) as error:
            url = path.replace("detectron2://", Detectron2Handler.S3_DETECTRON2_PREFIX)
            raise UserError(
                f"MODEL.WEIGHTS: {path} could not be fetched ({error}): download {url} where there is a "
                'network and set MODEL.WEIGHTS to the file, or to "" for random weights.'
            ) from error
        if Path(local).is_file():
            return
        if Path(local).parent.resolve() == Path(self.save_dir).resolve():
            raise UserError(
                f"{local} is missing, although last_checkpoint beside it names it: correct that file."
            )
        raise UserError(f"MODEL.WEIGHTS: {path} does not exist{_how_to_get(Path(path))}.")

    def _load_file(self, filename):
        if is_torchscript(filename):
            raise UserError(
                f"{filename} is a TorchScript file, as OpenAI publishes CLIP: name it in "
                "MODEL.IMAGE_ENCODER.PRETRAINED instead of MODEL.WEIGHTS."
            )
        with readable(filename, otherwise=_TRUST):
            if filename.endswith(".pkl"):
                return _as_detectron2(load_numpy_pickle(filename, trusted=self.trusted))
            with torch.serialization.safe_globals(numpy_globals()):
                data = torch.load(filename, map_location="cpu", weights_only=not self.trusted)
        weights = weights_of(data, filename)
        data = data if "model" in data else {"model": weights}
        if parse_qs(self._parsed_url_during_load.query).get("matching_heuristics") == ["True"]:
            data["matching_heuristics"] = True
        return data

    def _load_model(self, checkpoint):
        names = len(checkpoint["model"])
        try:
            incompatible = super()._load_model(checkpoint)
        except RuntimeError as error:  # names that a model translates are compared late
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(
                f"The weights in the file do not fit this model ({reason}): it is of another architecture; "
                "check MODEL.WEIGHTS against the config."
            ) from error
        # Parameters without any in the file: Detectron2 would go on from random ones.
        if set(incompatible.missing_keys) >= {name for name, _ in self.model.named_parameters()}:
            raise UserError(
                f"None of the {names} weights in the file fits this model: it is of another architecture; "
                "check MODEL.WEIGHTS against the config."
            )
        for name, theirs, ours in incompatible.incorrect_shapes:
            self._check_vocabulary(name, theirs, ours)
        for name in incompatible.missing_keys:
            if (predictor := self._waiting_for(name)) is not None:
                raise UserError(
                    f"Neither the config nor the file says what the {predictor.num_classes} classes are: set "
                    "MODEL.VOCABULARY.NAMES or MODEL.VOCABULARY.EMBEDDINGS."
                )
        return incompatible

    def _check_vocabulary(self, name: str, theirs: tuple, ours: tuple) -> None:
        """A configured vocabulary wins over a file's; without one, random embeddings would take its place."""
        if (predictor := self._waiting_for(name)) is None:
            return
        classes, width = predictor.vocabulary_axis, 1 - predictor.vocabulary_axis
        raise UserError(
            f"The file's vocabulary has {theirs[classes] - 1} classes of {theirs[width]} dimensions, but the config's "
            f"detector {ours[classes] - 1} of {ours[width]} and no names: set MODEL.VOCABULARY, or MODEL.ROI_HEADS."
            "NUM_CLASSES and MODEL.TEXT.DIM to the file's."
        )

    def _waiting_for(self, name: str):
        """The box predictor whose class embeddings ``name`` is, if it takes them from files; else None."""
        owner, found, key = name.partition(".box_predictor.")
        predictor = self.model.get_submodule(f"{owner}.box_predictor") if found else None
        waits = key == getattr(predictor, "vocabulary_key", None) and not predictor.vocabulary_wins
        return predictor if waits else None


def atomic_save(data, path: Path) -> None:
    """torch.save that leaves either the old file or the whole new one, whenever the process is killed."""
    with replacing(path) as partial, open(partial, "wb") as file:
        torch.save(data, file)
        file.flush()
        os.fsync(file.fileno())


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


def _as_detectron2(data: dict) -> dict:
    """The two layouts of Detectron2's .pkl files, as its own checkpointer reads them."""
    if "model" in data and "__author__" in data:
        return data
    weights = data.get("blobs", data)
    weights = {k: v for k, v in weights.items() if not k.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _is_array(value) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


CONFIGS = Path(__file__).resolve().parents[4] / "configs"


def _how_to_get(weights: Path) -> str:
    """For what one of the configs trains, the base stage above all: that config, and a published file."""
    told = f'OUTPUT_DIR: "{weights.parent}"'
    config = next((path for path in sorted(CONFIGS.rglob("*.yaml")) if told in path.read_text()), None)
    if weights.name != "model_final.pth" or config is None:
        return ""
    published = (
        ", or point MODEL.WEIGHTS at Detic's published BoxSup_OVCOCO_CLIP_R50_1x.pth (trained at temperature 50 "
        "without a bias, as configs/Detic_C4_official.yaml has it)"
    )
    return (
        ": this config starts from what another one trains; run python train_net.py --config-file "
        f"{config.relative_to(CONFIGS.parent)} "
        f"first{published if config.name.startswith('BoxSup') else ''}"
    )
