"""Checkpoints that survive a kill, and loading that tells what does not fit."""

import os
from pathlib import Path
from urllib.parse import parse_qs

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from clim.errors import UserError
from clim.files import replacing
from clim.text.clip_weights import is_torchscript

from .missing_start import require_start
from .safe_load import load_numpy_pickle, numpy_globals, readable, weights_of

_TRUST = ", or set MODEL.TRUST_WEIGHTS True if you trust its author"


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer: atomic writes, and loading that executes nothing from the file.

    Args:
        trusted: load files that hold more than tensors and arrays, which may run code from them.

    Attributes:
        lacking: weights that learn and that the last file did not give, or in another shape.
    """

    def __init__(self, model: nn.Module, save_dir: str, *, trusted: bool = False, **checkpointables):
        super().__init__(model, save_dir, **checkpointables)
        self.trusted = trusted
        self.lacking: list[str] = []

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
                require_start(path, save_dir=self.save_dir, path_manager=self.path_manager)
            return super().load(path, checkpointables)
        finally:
            self._parsed_url_during_load = None

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
        absent = {*incompatible.missing_keys, *(name for name, *_ in incompatible.incorrect_shapes)}
        self.lacking = [n for n, p in self.model.named_parameters() if p.requires_grad and n in absent]
        # Parameters without any in the file: Detectron2 would go on from random ones.
        if absent >= {name for name, _ in self.model.named_parameters()}:
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

    def require_whole(self, path: str, *, parts: tuple[str, ...] = ("",)) -> None:
        """UserError where ``path``, which was loaded, left random what detections or scores depend on.

        ``parts``: prefixes of the names that are used; by default all.
        """
        depends = [
            name
            for name in self.lacking
            if name.startswith(parts) and not name.startswith("method.") and not name.endswith(".cls_bias")
        ]
        if depends:
            raise UserError(
                f"{path} lacks {len(depends)} weights that this config's model learns, {depends[0]} for one, so that "
                "what it finds would mean nothing: name a file of a training of this config, or of one like it."
            )

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
        for owner, module in self.model.named_modules():
            key = getattr(module, "vocabulary_key", None)
            if key is not None and name == f"{owner}.{key}".lstrip("."):
                return None if module.vocabulary_wins else module
        return None


def atomic_save(data, path: Path) -> None:
    """torch.save that leaves either the old file or the whole new one, whenever the process is killed."""
    with replacing(path) as partial, open(partial, "wb") as file:
        torch.save(data, file)
        file.flush()
        os.fsync(file.fileno())


def _as_detectron2(data: dict) -> dict:
    """The two layouts of Detectron2's .pkl files, as its own checkpointer reads them."""
    if "model" in data and "__author__" in data:
        return data
    weights = data.get("blobs", data)
    weights = {k: v for k, v in weights.items() if not k.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
