"""The mean of trained and initial weights, for evaluation and for clip.pt, not for training (clip_fvlm §2).

CLIM mixes .7 of the trained weights with .3 of CLIP's, so that the model keeps CLIP's knowledge of whole images.
"""

import logging
from contextlib import contextmanager
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from clim.checkpoints.checkpointer import ALPHA_KEY, CLIP_FILE, atomic_save, build_model, load_whole
from clim.checkpoints.reading import read_weights, require_finite
from clim.errors import UserError

START_FILE = "start_weights.pth"
logger = logging.getLogger(__name__)


class WeightEnsemble:
    """``alpha`` · trained + (1 - ``alpha``) · initial weights, those of ``model`` now, for every weight that learns."""

    def __init__(self, model: nn.Module, *, alpha: float):
        self.model, self.alpha = model, alpha
        learning = self._learning() if alpha < 1 else []
        self.start: dict[str, Tensor] = {name: weight.detach().cpu().clone() for name, weight in learning}

    def _learning(self):
        return [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]

    def save(self, folder: Path) -> None:
        """Write the initial weights, for a run that resumes."""
        if self.start and comm.is_main_process():
            atomic_save(self.start, folder / START_FILE)

    def load(self, folder: Path) -> None:
        """Read the initial weights of the run in ``folder``. UserError where they are missing."""
        if not self.start:
            return
        path = folder / START_FILE
        start = read_weights(path, remedy="copy it from this run, start anew, or set SOLVER.WEIGHT_ENSEMBLE 1.0")
        require_finite(start, path)
        ours, theirs = ({name: tensor.shape for name, tensor in tensors.items()} for tensors in (self.start, start))
        if ours != theirs:
            raise UserError(f"{path} holds the initial weights of another model: copy those of this run there.")
        self.start = start

    @contextmanager
    def mixed(self):
        """In the block the model has the mixed weights, afterwards exactly the trained ones."""
        weights = self._learning() if self.start else []
        trained = [weight.data for _, weight in weights]
        try:
            for name, weight in weights:
                weight.data = weight.data.lerp(self.start[name].to(weight.data), 1 - self.alpha)
            yield self.model
        finally:
            for (_, weight), before in zip(weights, trained, strict=True):
                weight.data = before


def load_ensemble(cfg, *, resume: bool = False) -> WeightEnsemble:
    """The config's model for evaluation: ``mixed()`` gives the mixture of its run, or the weights as they are.

    ``resume``: OUTPUT_DIR's last checkpoint, if there is one, replaces cfg.MODEL.WEIGHTS. UserError if it does not fit.
    """
    model = build_model(cfg)
    path, loaded = load_whole(model, cfg, resume=resume)
    if loaded.get(ALPHA_KEY, 1.0) >= 1:  # no part of a mixture
        return WeightEnsemble(model, alpha=1.0)
    ensemble = WeightEnsemble(model, alpha=cfg.SOLVER.WEIGHT_ENSEMBLE)
    ensemble.load(Path(path).parent)
    if ensemble.start:
        logger.info("Evaluating %g of %s and %g of its initial weights.", ensemble.alpha, path, 1 - ensemble.alpha)
    return ensemble


class PublishClip(HookBase):
    """Writes OUTPUT_DIR/clip.pt with every checkpoint: the mixed weights under open_clip's names (clip_fvlm §7).

    It is ``{"epoch", "name", "state_dict"}`` as open_clip's training writes it, with the frozen text half if that is
    CLIP's. ``period``: iterations between two files, 0: one at the end; ``epochs``: of the whole training.
    """

    def __init__(self, ensemble: WeightEnsemble, folder: str, *, name: str, period: int, epochs: float):
        self.ensemble, self.folder, self.name = ensemble, Path(folder), name
        self.period, self.epochs = period, epochs

    def after_step(self):
        done, end = self.trainer.iter + 1, self.trainer.max_iter
        if comm.is_main_process() and (done == end or self.period > 0 and done % self.period == 0):
            content = {"epoch": round(self.epochs * done / end), "name": self.name}
            with self.ensemble.mixed() as model:
                atomic_save(content | {"state_dict": clip_state_dict(model)}, self.folder / CLIP_FILE)
            logger.info("Wrote %s", self.folder / CLIP_FILE)


def clip_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Image half, temperature and CLIP text half of an ImageTextModel, under OpenAI's and open_clip's names."""
    text = model.text_encoder.live.state_dict()
    is_clip = any(name.endswith("token_embedding.weight") for name in text)
    state = {**model.image_encoder.state_dict(), **(text if is_clip else {})}
    if hasattr(model.method, "logit_scale"):
        state["logit_scale"] = model.method.logit_scale
    return {name: value.detach().cpu() for name, value in state.items()}
