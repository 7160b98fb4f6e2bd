"""Write checkpoints that survive a kill; load a config's model with its weights."""

import logging
import os
import re
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from detectron2 import modeling
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn
from torch.optim import Optimizer

from clim.errors import UserError, telling
from clim.files import read_text, replacing

from .keys import TORCHVISION, take_vldet, translate
from .reading import leaves, read_content, readable, require_entries, require_finite, require_start, weights_of

logger = logging.getLogger(__name__)

ALPHA_KEY = "weight_ensemble"  # entry of a checkpoint: SOLVER.WEIGHT_ENSEMBLE of the run
CLIP_FILE = "clip.pt"  # file beside the checkpoints: the mixed weights
_FROZEN = (".weight", ".bias", ".running_mean", ".running_var")  # ends of names of weights that may be frozen
OTHER_CONFIG = "resume with the config of its training, or choose another OUTPUT_DIR"
_TRUST = ", or set MODEL.TRUST_WEIGHTS True if you trust its author"


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer: atomic writes, and loading that executes nothing from a file that is not ``trusted``.

    ``lacking`` are the weights that the last file does not hold, or holds in another shape, without another source. In
    the context ``published()`` the model has the weights to write.
    """

    published: Callable[[], AbstractContextManager] = nullcontext

    def __init__(self, model: nn.Module, save_dir: str, *, trusted=False, **checkpointables):
        super().__init__(model, save_dir, **checkpointables)
        self.trusted, self.lacking = trusted, []

    def save(self, name: str, **kwargs) -> None:
        """Write ``name``.pth and point ``last_checkpoint`` at it; call on the main process only."""
        self.write(name, **{key: obj.state_dict() for key, obj in self.checkpointables.items()}, **kwargs)
        with replacing(Path(self.save_dir) / "last_checkpoint") as pointer:
            pointer.write_text(f"{name}.pth")

    def write(self, name: str, **entries) -> None:
        """Write the model's weights and further ``entries`` to ``name``.pth; call on the main process only."""
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {path}")
        with self.published():
            atomic_save({"model": self.model.state_dict(), **entries}, path)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict:
        """Load a file or address; "" loads nothing. Without ``checkpointables`` load the states of all, to resume.

        Returns the file's other entries. UserError if it is missing, damaged, unsafe or of another model, if a number
        is not finite and, to resume, if a state is missing.
        """
        if not path:
            return super().load("")
        file = require_start(path, save_dir=self.save_dir, path_manager=self.path_manager)
        self.logger.info(f"Loading {path}")
        states = self.checkpointables if checkpointables is None else {}
        with readable(file):
            content = self._load_file(file)
            if "matching_heuristics=True" in path:
                content["matching_heuristics"] = True
            require_entries(content, dict.fromkeys(states, dict), file)
            absent = self._load_weights(content, file)
            require_finite({k: v for k, v in self.model.state_dict().items() if k not in absent}, file)
        for key, target in states.items():
            require_finite(content[key], file, name=key)
            with telling(f"The checkpoint's {key} does not fit, in {file}", remedy=OTHER_CONFIG):
                _load_state(target, content.pop(key), stepped="scaler" not in states)
        return content

    def get_checkpoint_file(self) -> str:
        """The checkpoint that ``last_checkpoint`` names. UserError where it is no file name."""
        pointer = Path(self.save_dir) / "last_checkpoint"
        remedy = f"write the name of a checkpoint of {self.save_dir} into it, or delete it to start anew"
        name = read_text(pointer, remedy=remedy).strip()
        if not re.fullmatch(r"[^/\\\0\n]+\.pth", name):
            raise UserError(f"{pointer} holds {name[:80]!r}, not the name of a .pth file beside it: {remedy}.")
        return str(pointer.with_name(name))

    def _load_file(self, filename):
        data = read_content(filename, trusted=self.trusted, trust=_TRUST)
        if filename.endswith(".pkl"):  # Detectron2's, in two layouts: as its own checkpointer gives it
            if "model" in data and "__author__" in data:
                return data | {"model": weights_of(data, filename)}
            weights = {k: v for k, v in data.get("blobs", data).items() if not k.endswith("_momentum")}
            return {"model": weights_of(weights, filename), "__author__": "Caffe2", "matching_heuristics": True}
        weights = {translate(name, TORCHVISION) or name: value for name, value in weights_of(data, filename).items()}
        return (data if "model" in data else {}) | {"model": take_vldet(weights)}

    def _load_weights(self, content: dict, file: str) -> set[str]:
        """Load ``content["model"]`` of ``file``; returns the names that it lacks, or holds in another shape."""
        weights, own = content["model"], self.model.state_dict()
        names = len(weights)
        for owner, module in self.model.named_modules():
            if hasattr(module, "before_load"):
                module.before_load(weights, prefix=f"{owner}.")
        for name, value in weights.items():
            if name in own and own[name].is_floating_point() != value.is_floating_point():
                raise TypeError(f"{name} has {value.dtype}, not {own[name].dtype}")
        incompatible = self._load_model(content)
        absent = {*incompatible.missing_keys, *(name for name, *_ in incompatible.incorrect_shapes)}
        learning = {name for name, weight in self.model.named_parameters() if weight.requires_grad}
        # Frozen weights may come from another file, but not those of a part that this file holds otherwise.
        held = tuple({name.partition(".")[0] for name in own.keys() - absent})
        frozen = {name for name in own if name.startswith(held) and name.endswith(_FROZEN)}
        self.lacking = [name for name in own if name in absent & (learning | frozen)]
        # Detectron2 would silently continue with random weights.
        if absent >= {name for name, _ in self.model.named_parameters()}:
            raise UserError(f"{file} has another architecture: none of its {names} weights fits this model.")
        self._check_vocabulary(incompatible, file)
        self._log_incompatible_keys(incompatible)
        return absent

    def _check_vocabulary(self, incompatible, file: str) -> None:
        """UserError where a box predictor needs the vocabulary of ``file`` and would keep random class embeddings."""
        shapes = {name: shapes for name, *shapes in incompatible.incorrect_shapes}
        for owner, module in self.model.named_modules():
            if not hasattr(module, "vocabulary_key") or module.vocabulary_wins:
                continue
            name, axis = f"{owner}.{module.vocabulary_key}".lstrip("."), module.vocabulary_axis
            if name in shapes:
                theirs, ours = (
                    f"{s[axis] - 1} classes of {s[1 - axis]} dimensions" if len(s) == 2 else f"classes {tuple(s)}"
                    for s in shapes[name]
                )
                remedy = "set MODEL.VOCABULARY, or MODEL.ROI_HEADS.NUM_CLASSES and MODEL.TEXT.DIM"
                raise UserError(f"{file} has {theirs}, but the config's detector {ours} and no names: {remedy}.")
            if name in incompatible.missing_keys:
                classes = f"the {module.num_classes} classes"
                raise UserError(f"Neither the config nor {file} names {classes}: set MODEL.VOCABULARY.")

    def require_whole(self, path: str, *, parts: tuple[str, ...] = ("",)) -> None:
        """UserError where the loaded file ``path`` lacks weights in use: those whose names begin with ``parts``."""
        used = [name for name in self.lacking if name.startswith(parts)]
        needed = [name for name in used if not name.startswith("method.") and not name.endswith(".cls_bias")]
        if needed:
            raise UserError(
                f"{path} lacks {len(needed)} weights that this config's model needs, {needed[0]} for one: they would "
                "stay random. Name a file of a training of this config, or of a similar one."
            )


def build_model(cfg) -> nn.Module:
    """Detectron2's ``build_model``. UserError, with the line that finds it, where the config's parts do not fit."""
    try:
        return modeling.build_model(cfg)
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        place, model = traceback.extract_tb(error.__traceback__)[-1], cfg.MODEL
        what = f"{Path(place.filename).name}: {place.line}: {' '.join(str(error).split())}"
        generator, heads = model.PROPOSAL_GENERATOR.NAME, model.ROI_HEADS.NAME
        raise UserError(
            f"The model cannot be built ({what}). Its parts do not fit: MODEL.META_ARCHITECTURE "
            f"{model.META_ARCHITECTURE}, BACKBONE {model.BACKBONE.NAME}, PROPOSAL_GENERATOR {generator}, ROI_HEADS "
            f"{heads} with their keys: start from a config of configs/ that has such parts."
        ) from error


def load_model(cfg, *, parts: tuple[str, ...] = ("",), model: nn.Module | None = None) -> nn.Module:
    """The config's model in evaluation mode with cfg.MODEL.WEIGHTS; "": its parts load their own weights.

    UserError where the file does not fit. ``parts``: prefixes of the weights in use, which the file must hold; by
    default all. ``model``: load into this model, not into a new one.
    """
    model = build_model(cfg) if model is None else model
    path, loaded = load_whole(model, cfg, parts=parts)
    if loaded.get(ALPHA_KEY, 1.0) < 1:
        mixture = Path(path).with_name(CLIP_FILE)
        hint = f" {mixture} holds the mixture: set MODEL.IMAGE_ENCODER.PRETRAINED to it." if mixture.is_file() else ""
        mixed = "which evaluation mixes with the initial ones (SOLVER.WEIGHT_ENSEMBLE)"
        logger.warning(f"{path} holds only trained weights, {mixed}.{hint}")
    return model.eval()


def load_whole(model: nn.Module, cfg, *, parts: tuple[str, ...] = ("",), resume: bool = False) -> tuple[str, dict]:
    """Load cfg.MODEL.WEIGHTS into ``model``; with ``resume`` OUTPUT_DIR's last checkpoint, if there is one.

    Returns the file's path and its other entries. UserError where weights are missing.
    """
    checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, trusted=cfg.MODEL.TRUST_WEIGHTS)
    resumes = resume and checkpointer.has_checkpoint()
    path = checkpointer.get_checkpoint_file() if resumes else cfg.MODEL.WEIGHTS
    loaded = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    checkpointer.require_whole(path, parts=parts)
    return path, loaded


def _load_state(target, state: dict, *, stepped: bool) -> None:
    """``target.load_state_dict(state)``. ValueError or another error where the state is not of this kind and size. An
    optimiser has no state of weights that have had no gradient; one that has not ``stepped`` may have none at all.
    """
    is_optimizer = isinstance(target, Optimizer)
    numbers = is_optimizer and (state["state"] or (None if stepped else ()))
    ours = _kinds(_after_a_step(target, numbers) if is_optimizer else target.state_dict())
    if is_optimizer:  # the kernel is this device's; the file may come from another one
        for group, own in zip(state["param_groups"], target.param_groups, strict=False):
            group["fused"] = own["fused"]
    target.load_state_dict(state)
    theirs = _kinds(target.state_dict() if is_optimizer else state)  # an optimiser adds the options of newer versions
    for place in {**ours, **theirs}:
        if ours.get(place) != theirs.get(place):
            raise ValueError(f"{place} is {theirs.get(place, 'missing')}, not {ours.get(place, 'missing')}")


def _after_a_step(optimizer: Optimizer, numbers) -> dict:
    """The ``state_dict()`` after a step of the weights with these ``numbers``, None: all; without any values."""
    groups = [
        group | {"params": [w.detach().to("meta") for w in group["params"]], "fused": None}  # which takes real ones
        for group in optimizer.param_groups
    ]
    for i, weight in enumerate(weight for group in groups for weight in group["params"]):
        weight.grad = torch.zeros_like(weight) if numbers is None or i in numbers else None
    twin = type(optimizer)(groups)
    twin.step()
    return twin.state_dict() | {"param_groups": optimizer.state_dict()["param_groups"]}


def _kinds(state: dict) -> dict[str, str]:
    """{place: kind of the value} of nested containers."""
    kinds = {int: "a number", float: "a number"}
    return {
        place: f"a tensor {tuple(v.shape)}" if isinstance(v, Tensor) else kinds.get(type(v), type(v).__name__)
        for place, v in leaves(state)
    }


def atomic_save(data, path: Path) -> None:
    """torch.save; after a kill, ``path`` is the old file or the whole new one."""
    with replacing(path) as partial, open(partial, "wb") as file:
        try:
            torch.save(data, file)
        except RuntimeError as error:  # torch's archive complains of its position, not of the disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        file.flush()
        os.fsync(file.fileno())
