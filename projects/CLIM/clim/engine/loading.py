"""From a config and its weights to a model: built, loaded and checked in one place for all who use a trained model."""

from detectron2.modeling import build_model
from torch import nn

from clim.errors import UserError

from .checkpoint import SafeCheckpointer
from .weight_ensemble import WeightEnsemble, warn_unmixed


def build(cfg) -> nn.Module:
    """Detectron2's ``build_model``; a name that no registry knows is a :class:`UserError`."""
    try:
        return build_model(cfg)
    except KeyError as error:
        if "registry" not in str(error):
            raise
        raise UserError(f"The config names a part that does not exist: {error.args[0]}") from error


def load_model(cfg, *, parts: tuple[str, ...] = ("",)) -> nn.Module:
    """The config's model in evaluation mode, with the weights of cfg.MODEL.WEIGHTS; "" for what the parts bring.

    Args:
        parts: prefixes of the weights that are used, which the file must give; by default all.

    Raises UserError where the config names unknown parts, or the file does not fit or is not whole. Warns where
    the file holds trained weights that evaluation would mix with others.
    """
    return load_weights(build(cfg), cfg, parts=parts)


def load_weights(model: nn.Module, cfg, *, parts: tuple[str, ...] = ("",)) -> nn.Module:
    """:func:`load_model` for a ``model`` that is built already."""
    path, loaded = _load(model, cfg, parts=parts)
    warn_unmixed(path, loaded)
    return model.eval()


def load_ensemble(cfg, *, resume: bool = False) -> WeightEnsemble:
    """The config's model as evaluation uses it: inside ``mixed()`` its weights are mixed with the run's start.

    ``resume``: take OUTPUT_DIR's last checkpoint in the place of cfg.MODEL.WEIGHTS, if there is one.
    Raises UserError as :func:`load_model`.
    """
    model = build(cfg)
    path, loaded = _load(model, cfg, resume=resume)
    return WeightEnsemble.of_checkpoint(model, path, loaded, alpha=cfg.SOLVER.WEIGHT_ENSEMBLE)


def _load(model: nn.Module, cfg, *, parts: tuple[str, ...] = ("",), resume: bool = False) -> tuple[str, dict]:
    """The path whose weights ``model`` has now, and what the file holds beside them."""
    checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, trusted=cfg.MODEL.TRUST_WEIGHTS)
    resumes = resume and checkpointer.has_checkpoint()
    path = checkpointer.get_checkpoint_file() if resumes else cfg.MODEL.WEIGHTS
    loaded = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    checkpointer.require_whole(path, parts=parts)
    return path, loaded
