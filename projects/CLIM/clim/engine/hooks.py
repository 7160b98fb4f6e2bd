"""Comforts of a long run: the average and the best of its weights, a clean stop, images, signs of life."""

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from clim.checkpoints.checkpointer import SafeCheckpointer
from clim.errors import UserError, raise_on_all_ranks

from .resume import BEST

logger = logging.getLogger(__name__)

# ---- weights


class MovingAverage(HookBase):
    """The exponential moving average of all that a training changes: weights, and statistics of batch norms.

    After step t, counted from 1, it is d · average + (1 - d) · weights with d = min(``decay``, (1 + t) / (10 + t)), as
    in TensorFlow. A checkpoint has the average as its weights, and as state of this object the trained weights.
    """

    def __init__(self, model: nn.Module, *, decay: float):
        self.model, self.decay = model, decay
        self.average: dict[str, Tensor] = {}

    def _tensors(self) -> dict[str, Tensor]:
        norms = {f"{name}.": m for name, m in self.model.named_modules() if isinstance(m, _BatchNorm)}
        statistics = {n + key: b for n, m in norms.items() for key, b in m.named_buffers() if b.is_floating_point()}
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad} | statistics

    def start(self) -> None:
        """Let the average be the present weights."""
        self.average = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}

    def after_step(self):
        step = self.trainer.iter + 1
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
            best = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("best", {})
            self.value = best.get(metric, self.value)

    def update(self, results: dict, iteration: int) -> None:
        """Compare with {task: {figure: value}}, which only the main process has. UserError for an unknown metric."""
        with raise_on_all_ranks():
            if self.metric and comm.is_main_process():
                self._keep(flatten_results_dict(results), iteration)

    def _keep(self, figures: dict[str, float], iteration: int) -> None:
        if self.metric not in figures:
            raise UserError(
                f"TEST.BEST_METRIC {self.metric} is not evaluated here: choose one of {', '.join(figures)}."
            )
        value = float(figures[self.metric])
        if value > self.value:  # never for nan
            self.value = value
            logger.info("Best %s so far: %.3f", self.metric, value)
            self.checkpointer.write(BEST, iteration=iteration, best={self.metric: value}, **self.extra)


# ---- a clean stop

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = 128 + signal.SIGTERM  # schedulers read 143 as "ended by SIGTERM", not as an error of the program
REPEATED = 10.0  # s in which a signal counts as the first one again: Slurm, torchrun and mp.spawn all pass it on


class Stopped(SystemExit):
    """Ends a training that has saved its state."""


class StopSignals:
    """SIGTERM and SIGUSR1 ask a training to stop: after its step it saves a checkpoint and exits with EXIT_CODE.

    ``asked`` is the signal that this process has got, or 0; ``agreed`` one that all processes know of. A signal more
    than REPEATED seconds after the first one ends the process at once. SIGINT (Ctrl-C) always does, as everywhere.
    """

    def __init__(self):
        self.asked = self.agreed = self.since = 0
        self.interruptible = False
        self.before: dict = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # no other one can
            self.before = {number: signal.signal(number, self.receive) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def receive(self, number: int, _) -> None:
        if self.asked and time.monotonic() > self.since + REPEATED:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.asked:
            self.asked, self.since = number, time.monotonic()
        if self.interruptible:
            self.interruptible = False
            raise Stopped(EXIT_CODE)

    def agree(self, asked: list[int]) -> None:
        """Take the signals that the processes have got; all processes stop if one of them has to."""
        self.agreed = self.agreed or max(asked)

    @contextmanager
    def at_once(self):
        """A signal raises :class:`Stopped` in the block."""
        self.interruptible = True
        try:
            if self.asked:
                raise Stopped(EXIT_CODE)
            yield
        finally:
            self.interruptible = False


# ---- what people see


class Writers(hooks.PeriodicWriter):
    """Detectron2's hook; the first writer, which prints, also writes after the first iteration of a session."""

    def after_step(self):
        super().after_step()
        number, trainer = self.trainer.iter + 1, self.trainer
        if number % self._period == 0:
            trainer.storage.clear_images()  # only TensorBoard's writer does it itself
        elif trainer.iter == trainer.start_iter < trainer.max_iter - 1:
            self._writers[0].write()
        if trainer.stop.agreed:
            for writer in self._writers:
                writer.close()


class ProgressBar(HookBase):
    """A bar with loss and remaining time below the lines of the log, for a terminal."""

    def before_train(self):
        self.open = ExitStack()
        loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "clim")]
        self.open.enter_context(logging_redirect_tqdm(loggers))  # lines appear above the bar
        start, end = self.trainer.start_iter, self.trainer.max_iter
        self.bar = self.open.enter_context(tqdm(initial=start, total=end, file=sys.stdout, dynamic_ncols=True))

    def after_step(self):
        self.bar.set_postfix(loss=f"{self.trainer.storage.latest()['total_loss'][0]:.4g}", refresh=False)
        self.bar.update()

    def after_train(self):
        self.open.close()


class TrainingImages(HookBase):
    """Images for TensorBoard: what a batch shows, every ``period`` iterations, and what the model detects.

    ``count`` images of each source and of each evaluation. ``image_format`` is "BGR" or "RGB".
    """

    def __init__(self, *, period: int, names: Sequence[str], image_format: str, count: int = 4, best: int = 10):
        self.period, self.names, self.image_format = period, names, image_format
        self.count, self.best = count, best

    def after_step(self):
        if self.trainer.iter % self.period == 0:
            for source, samples in self.trainer.batch.items():
                for number, sample in enumerate(samples[: self.count]):
                    boxes, labels = contents(sample, self.label)
                    self.put(f"{source}/{number}", sample["image"], boxes, labels)

    @contextmanager
    def of_detections(self, model: nn.Module):
        """In the block, put the first images that the ``model`` detects in, with its best boxes."""
        shown: list[Tensor] = []

        def show(_, inputs, outputs):
            for sample, output in zip(*inputs, outputs, strict=True):
                if "instances" in output and len(shown) < self.count:
                    image, found = sample["image"], output["instances"].to("cpu")
                    found = found[found.scores.argsort(descending=True)[: self.best]]
                    found.pred_boxes.scale(image.shape[2] / sample["width"], image.shape[1] / sample["height"])
                    pairs = zip(found.pred_classes.tolist(), found.scores.tolist(), strict=True)
                    labels = [f"{self.label(label)} {score:.2f}" for label, score in pairs]
                    self.put(f"detections/{len(shown)}", image, found.pred_boxes.tensor, labels)
                    shown.append(image)

        handle = model.register_forward_hook(show)
        try:
            yield
        finally:
            handle.remove()

    def label(self, index: int) -> str:
        return self.names[index] if index < len(self.names) else str(index)

    def put(self, name: str, image: Tensor, boxes: Tensor, labels: list[str]) -> None:
        rgb = np.ascontiguousarray(convert_image_to_rgb(image.permute(1, 2, 0), self.image_format))
        self.trainer.storage.put_image(name, drawn(rgb, boxes.numpy(), labels).transpose(2, 0, 1))


def class_names(cfg) -> Sequence[str]:
    """Names of the classes with boxes, or of those to test on; none if no set has names."""
    sets = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    return next((names for s in sets if (names := MetadataCatalog.get(s).get("thing_classes"))), ())


def contents(sample: dict, name: Callable[[int], str]) -> tuple[Tensor, list[str]]:
    """Boxes (N, 4) of a training sample and their labels: objects and classes, or tiles and captions."""
    if "instances" in sample:
        objects = sample["instances"]
        return objects.gt_boxes.tensor, [name(index) for index in objects.gt_classes.tolist()]
    return sample["tiles"].boxes, [caption[:40] for caption in sample["tiles"].drawn]


def drawn(image: np.ndarray, boxes: np.ndarray, labels: list[str]) -> np.ndarray:
    """``image`` uint8 (H, W, 3) with N boxes (xyxy, px), each in its own colour, and their labels."""
    import supervision as sv  # takes a second

    colours = {"color_lookup": sv.ColorLookup.INDEX}
    found = sv.Detections(xyxy=np.asarray(boxes, float).reshape(-1, 4), class_id=np.arange(len(boxes)))
    image = sv.BoxAnnotator(thickness=2, **colours).annotate(image, found)
    return sv.LabelAnnotator(text_scale=0.35, text_padding=2, **colours).annotate(image, found, labels=labels)
