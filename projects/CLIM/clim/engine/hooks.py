"""What people see of a training: lines, a bar, images, metrics.json and the services of SOLVER.WRITERS."""

import logging
import math
import os
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import yaml
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase, hooks
from detectron2.utils import events
from torch import Tensor
from tqdm.contrib.logging import tqdm_logging_redirect

from clim.files import read_json, write_json
from clim.results import draw

RUN_IDS = "run_ids.json"  # in OUTPUT_DIR: {service: its id of this run}


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
        options = {"initial": trainer.start_iter, "total": trainer.max_iter, "dynamic_ncols": True, "file": sys.stdout}
        options["loggers"] = [logging.getLogger(name) for name in ("detectron2", "fvcore", "clim")]
        self.bar = self.open.enter_context(tqdm_logging_redirect(**options))

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
        import supervision as sv  # takes a second

        page = np.array(convert_image_to_rgb(image.permute(1, 2, 0), self.image_format), order="C")
        found = sv.Detections(xyxy=boxes.numpy().astype(float), class_id=np.arange(len(boxes)))
        page = draw(page, found, labels, side=max(page.shape), letters=13)
        self.trainer.storage.put_image(name, page.transpose(2, 0, 1))


def build_writers(cfg, *, resume: bool, start_iter: int) -> list[events.EventWriter]:
    """The writers of the main process, first the log. A run that resumes goes on in its runs of W&B and MLflow."""
    folder = Path(cfg.OUTPUT_DIR)
    writers = [events.CommonMetricPrinter(cfg.SOLVER.MAX_ITER)]
    writers.append(events.JSONWriter(str(folder / "metrics.json"), window_size=1))  # 1: the iteration's own loss
    known = resume and (folder / RUN_IDS).is_file()
    ids = read_json(folder / RUN_IDS, remedy="delete it to start new ones", kind=dict[str, str]) if known else {}
    for name in cfg.SOLVER.WRITERS:
        if name == "tensorboard":
            # purge: hide the log of a killed run after its last checkpoint
            writers.append(events.TensorboardXWriter(cfg.OUTPUT_DIR, purge_step=start_iter))
        else:
            writers.append(SERVICES[name](cfg, ids.get(name)))
            ids[name] = writers[-1].run_id
    if ids:
        write_json(folder / RUN_IDS, ids)
    return writers


class ServiceWriter(events.EventWriter):
    """Sends the finite scalars that are new since the last call; noisy ones are medians of 20 iterations.

    Subclasses define ``log(scalars, iteration)``, and ``run_id``, with which a run goes on.
    """

    last = -1  # iteration

    def write(self):
        new = defaultdict(dict)
        for name, (value, iteration) in events.get_event_storage().latest_with_smoothing_hint(20).items():
            if iteration > self.last and math.isfinite(value):
                new[iteration][re.sub(r"[^\w\-. :/]", "_", name)] = value  # MLflow takes no other characters
        for iteration, scalars in sorted(new.items()):
            self.log(scalars, iteration)
            self.last = iteration


class WandbWriter(ServiceWriter):
    """Weights & Biases; its own environment variables (WANDB_PROJECT, WANDB_MODE, …) choose where."""

    def __init__(self, cfg, run_id: str | None):
        import wandb

        place = {"project": os.environ.get("WANDB_PROJECT", "clim"), "dir": cfg.OUTPUT_DIR}
        options = {"config": yaml.safe_load(cfg.dump()), "name": Path(cfg.OUTPUT_DIR).name}
        self.run = wandb.init(id=run_id, resume="allow" if run_id else None, **place, **options)
        self.run.define_metric("*", step_metric="iteration")
        self.run_id, self.close = self.run.id, self.run.finish

    def log(self, scalars, iteration):
        self.run.log({**scalars, "iteration": iteration})


class MlflowWriter(ServiceWriter):
    """MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME choose where, by default the folder mlruns."""

    def __init__(self, cfg, run_id: str | None):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # the folder
        import mlflow

        self.run_id = mlflow.start_run(run_id=run_id, run_name=Path(cfg.OUTPUT_DIR).name).info.run_id
        mlflow.log_text(cfg.dump(), "config.yaml")
        self.log, self.close = mlflow.log_metrics, mlflow.end_run


SERVICES = {"wandb": WandbWriter, "mlflow": MlflowWriter}
