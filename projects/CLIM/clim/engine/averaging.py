"""Which weights a run publishes beside the last ones: their moving average, and the best of its evaluations."""

import logging
import math
from contextlib import contextmanager
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from clim.checkpoints.checkpointer import SafeCheckpointer
from clim.checkpoints.reading import read_content, require_entries
from clim.errors import UserError, raise_on_all_ranks

from .resume import BEST

logger = logging.getLogger(__name__)


class MovingAverage(HookBase):
    """Exponential moving average of weights and of batch norms' statistics; nothing with ``decay`` 0.

    After step t, counted from 1, it is d · average + (1 - d) · weights with d = min(``decay``, (1 + t) / (10 + t)), as
    in TensorFlow. A checkpoint has the average as its weights, and as state of this object the trained weights.
    """

    def __init__(self, model: nn.Module, *, decay: float):
        self.model, self.decay = model, decay
        self.start()

    def _tensors(self) -> dict[str, Tensor]:
        state = self.model.state_dict(keep_vars=True) if self.decay else {}
        return {k: t for k, t in state.items() if t.requires_grad or k.endswith((".running_mean", ".running_var"))}

    def start(self) -> None:
        """Let the average be the present weights."""
        self.average: dict[str, Tensor] = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}

    def after_step(self):
        step = self.trainer.iter + 1
        if self.decay:
            average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
            average(list(self.average.values()), list(self._tensors().values()), None)

    @contextmanager
    def mixed(self):
        """In the block the model has the average, afterwards exactly the trained weights."""
        self._swap()
        try:
            yield self.model
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, tensor in self._tensors().items():
            tensor.data, self.average[name] = self.average[name], tensor.data

    def state_dict(self) -> dict[str, Tensor]:
        return {name: tensor.data for name, tensor in self._tensors().items()}

    def load_state_dict(self, trained: dict[str, Tensor]) -> None:
        """Take the trained weights; the model has the average, from the same checkpoint."""
        self.start()
        for name, tensor in self._tensors().items():
            tensor.data.copy_(trained[name])


class BestCheckpoint:
    """Keeps the weights of the evaluation with the highest ``metric`` in model_best.pth; "": none."""

    def __init__(self, checkpointer: SafeCheckpointer, metric: str, *, resume: bool, extra: dict):
        self.checkpointer, self.metric, self.extra = checkpointer, metric, extra
        self.value, path = -math.inf, Path(checkpointer.save_dir) / f"{BEST}.pth"
        if resume and path.is_file():
            best = require_entries(read_content(path), {"best": dict}, path)["best"]
            self.value = require_entries(best, {metric: float}, path)[metric] if metric in best else self.value

    def update(self, results: dict, iteration: int) -> None:
        """Compare with {task: {figure: value}}, which only the main process has. UserError for an unknown metric."""
        with raise_on_all_ranks():
            if not (self.metric and comm.is_main_process()):
                return
            figures = flatten_results_dict(results)
            if self.metric not in figures:
                raise UserError(f"TEST.BEST_METRIC {self.metric} is not evaluated: choose one of {', '.join(figures)}.")
            value = float(figures[self.metric])
            if value > self.value:  # never for nan
                self.value = value
                logger.info("Best %s so far: %.3f", self.metric, value)
                self.checkpointer.write(BEST, iteration=iteration, best={self.metric: value}, **self.extra)
