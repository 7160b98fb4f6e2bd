"""What people see of a training: lines, a bar, images."""

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import supervision as sv
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase, hooks
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from clim.results import draw


class Writers(hooks.PeriodicWriter):
    """Detectron2's hook; the first writer, which prints, also writes after the first iteration of a session."""

    def after_step(self):
        super().after_step()
        trainer = self.trainer
        if (trainer.iter + 1) % self._period == 0:
            trainer.storage.clear_images()  # of the writers, only TensorBoard's does it
        elif trainer.iter == trainer.start_iter < trainer.max_iter - 1:
            self._writers[0].write()

    def close(self):
        """Write what is new, but no line of the log, where a training stops before its end."""
        for writer in self._writers[1:]:
            writer.write()
            writer.close()


class ProgressBar(HookBase):
    """A bar with loss and remaining time below the lines of the log, for a terminal."""

    def before_train(self):
        self.open, trainer = ExitStack(), self.trainer
        loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "clim")]
        self.open.enter_context(logging_redirect_tqdm(loggers))
        sizes = {"initial": trainer.start_iter, "total": trainer.max_iter, "dynamic_ncols": True}
        self.bar = self.open.enter_context(tqdm(file=sys.stdout, **sizes))

    def after_step(self):
        self.bar.set_postfix(loss=f"{self.trainer.storage.latest()['total_loss'][0]:.4g}", refresh=False)
        self.bar.update()

    def after_train(self):
        self.open.close()


class TrainingImages(HookBase):
    """Images for TensorBoard: ``count`` of each source, every ``period`` iterations, and of each evaluation.

    ``names`` are the classes; ``image_format`` is "BGR" or "RGB". Of an image's detections, the 10 best are drawn.
    """

    def __init__(self, *, period: int, names: Sequence[str], image_format: str, count: int = 4):
        self.period, self.names, self.image_format, self.count = period, names, image_format, count

    def before_train(self):
        self.left = self.count
        self.trainer.raw_model.register_forward_hook(self.show_detections)

    def after_step(self):
        self.left = self.count
        for source, samples in self.trainer.batch.items() if self.trainer.iter % self.period == 0 else ():
            for number, sample in enumerate(samples[: self.count]):
                if "instances" in sample:
                    boxes, labels = sample["instances"].gt_boxes.tensor, self.named(sample["instances"].gt_classes)
                else:
                    boxes, labels = sample["tiles"].boxes, [caption[:40] for caption in sample["tiles"].drawn]
                self.put(f"{source}/{number}", sample["image"], boxes, labels)

    def show_detections(self, model, inputs, outputs):
        """A forward hook of the model."""
        for sample, output in zip(*inputs, outputs, strict=True) if not model.training else ():
            if "instances" in output and self.left > 0:
                image, found = sample["image"], output["instances"].to("cpu")
                best = found[found.scores.argsort(descending=True)[:10]]
                best.pred_boxes.scale(image.shape[2] / sample["width"], image.shape[1] / sample["height"])
                pairs = zip(self.named(best.pred_classes), best.scores.tolist(), strict=True)
                labels = [f"{name} {score:.2f}" for name, score in pairs]
                self.put(f"detections/{self.count - self.left}", image, best.pred_boxes.tensor, labels)
                self.left -= 1

    def named(self, classes: Tensor) -> list[str]:
        return [self.names[i] if i < len(self.names) else str(i) for i in classes.tolist()]

    def put(self, name: str, image: Tensor, boxes: Tensor, labels: list[str]) -> None:
        """Store ``image`` (3, H, W) with its boxes (N, 4), each in its own colour, and their labels."""
        page = np.array(convert_image_to_rgb(image.permute(1, 2, 0), self.image_format), order="C")
        found = sv.Detections(xyxy=boxes.numpy().astype(float), class_id=np.arange(len(boxes)))
        page = draw(page, found, labels, side=max(page.shape), letters=13)
        self.trainer.storage.put_image(name, page.transpose(2, 0, 1))
