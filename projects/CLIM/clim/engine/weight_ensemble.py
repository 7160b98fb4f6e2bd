"""Weights between the start's and the trained ones, evaluated and published but not trained on (clip_fvlm §2).

CLIM mixes .7 of the trained weights with .3 of CLIP's, which keeps what CLIP knows of whole pictures.
"""

import logging
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from clim.errors import UserError

from .checkpoint import atomic_save

START_FILE = "start_weights.pth"
CLIP_FILE = "clip.pt"
CHECKPOINT_KEY = "weight_ensemble"  # in a run's checkpoints: its alpha
logger = logging.getLogger(__name__)


class WeightEnsemble:
    """``alpha`` · trained + (1 - ``alpha``) · start, for every weight that learns.

    Args:
        model: what is trained; its present weights are the start.
        alpha: 1 leaves everything as it is.
    """

    def __init__(self, model: nn.Module, *, alpha: float):
        if not 0 <= alpha <= 1:
            raise UserError(f"SOLVER.WEIGHT_ENSEMBLE is {alpha}: give the trained weights' part, 0 to 1.")
        self.model, self.alpha = model, alpha
        self.start: dict[str, Tensor] = {}
        if alpha < 1:
            self.start = {name: weight.detach().cpu().clone() for name, weight in self._learning()}

    def _learning(self):
        return [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]

    def save(self, folder: Path) -> None:
        """Keep the start on disk: a resumed run has other weights when it begins."""
        if self.start and comm.is_main_process():
            atomic_save(self.start, folder / START_FILE)

    def load(self, folder: Path) -> None:
        """The start of the run that is resumed. UserError where it is missing."""
        if not self.start:
            return
        path = folder / START_FILE
        if not path.is_file():
            raise UserError(
                f"{path} is missing, and with it the weights that SOLVER.WEIGHT_ENSEMBLE {self.alpha} mixes with "
                "the trained ones: copy it there, start anew, or set SOLVER.WEIGHT_ENSEMBLE 1.0."
            )
        self.start = torch.load(path, map_location="cpu", weights_only=True)

    @classmethod
    def of_checkpoint(cls, model: nn.Module, path: str, loaded: dict, *, alpha: float) -> "WeightEnsemble":
        """The mixture of a run whose checkpoint ``path`` the model has loaded; of other files nothing is mixed.

        Args:
            loaded: what the checkpointer gave back of the file, beside the weights.
        """
        if not is_mixed_with_start(loaded):
            return cls(model, alpha=1.0)
        ensemble = cls(model, alpha=alpha)
        ensemble.load(Path(path).parent)
        if ensemble.start:
            logger.info("Evaluating %g of %s and %g of the weights that it started from.", alpha, path, 1 - alpha)
        return ensemble

    @contextmanager
    def mixed(self):
        """Inside, the model has the mixed weights; afterwards the trained ones, bit by bit."""
        if not self.start:
            yield self.model
            return
        trained = {name: weight.detach().clone() for name, weight in self._learning()}
        try:
            with torch.no_grad():
                for name, weight in self._learning():
                    weight.lerp_(self.start[name].to(weight), 1 - self.alpha)
            yield self.model
        finally:
            with torch.no_grad():
                for name, weight in self._learning():
                    weight.copy_(trained[name])


def is_mixed_with_start(loaded: dict) -> bool:
    """Whether a file, of which ``loaded`` came back beside the weights, holds half of a mixture: trained weights."""
    return loaded.get(CHECKPOINT_KEY, 1.0) < 1


def warn_unmixed(path: str, loaded: dict) -> None:
    """Warn where the weights of ``path`` are used as they were trained, although evaluation would mix them."""
    if not is_mixed_with_start(loaded):
        return
    mixture = Path(path).with_name(CLIP_FILE)
    logger.warning(
        "%s holds the trained weights alone: evaluation mixes them with the start's (SOLVER.WEIGHT_ENSEMBLE).%s",
        path,
        f" {mixture} holds the mixture: set MODEL.IMAGE_ENCODER.PRETRAINED to it." if mixture.is_file() else "",
    )


class PublishClip(HookBase):
    """Writes OUTPUT_DIR/clip.pt with every checkpoint: the mixed weights under open_clip's names (clip_fvlm §7).

    ``{"epoch", "name", "state_dict"}`` as open_clip's training writes it, with the frozen text half where that is
    CLIP's: a file for open_clip, for MODEL.IMAGE_ENCODER.PRETRAINED and for detectors.
    """

    def __init__(self, ensemble: WeightEnsemble, folder: str, *, name: str, period: int, epochs: float):
        """``period``: iterations between two files, 0: one at the end; ``epochs`` of the whole training."""
        self.ensemble, self.folder, self.name = ensemble, Path(folder), name
        self.period, self.epochs = period, epochs

    def after_step(self):
        done, end = self.trainer.iter + 1, self.trainer.max_iter
        if comm.is_main_process() and (done == end or self.period > 0 and done % self.period == 0):
            self.publish(epoch=round(self.epochs * done / end))

    def publish(self, *, epoch: int) -> None:
        """Write the file now, as of ``epoch``."""
        with self.ensemble.mixed() as model:
            state = clip_state_dict(model)
            atomic_save({"epoch": epoch, "name": self.name, "state_dict": state}, self.folder / CLIP_FILE)
        logger.info("Wrote %s (%d tensors)", self.folder / CLIP_FILE, len(state))


def clip_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Image half, temperature and text half of an ImageTextModel, named as in OpenAI's and open_clip's files."""
    state = {**model.image_encoder.state_dict(), **text_half(model.text_encoder)}
    scale = getattr(model.method, "logit_scale", None)
    if scale is not None:
        state["logit_scale"] = scale
    return {name: value.detach().cpu() for name, value in state.items()}


def text_half(encoder) -> dict[str, Tensor]:
    """Weights of a CLIP text tower behind ``encoder``; {} for other towers, whose names are not CLIP's."""
    state = encoder.live.state_dict()
    return state if "text_projection" in state else {}
