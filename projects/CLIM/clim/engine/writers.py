"""Where the figures of a training go: the log, metrics.json, and the services of SOLVER.WRITERS."""

import math
import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import yaml
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

from clim.errors import UserError
from clim.files import read_json, write_json

RUN_IDS = "run_ids.json"  # in OUTPUT_DIR: {writer: its id of this run}


def build_writers(cfg, *, resume: bool, start_iter: int) -> list[EventWriter]:
    """The writers of the main process, first the log. A run that resumes goes on in its runs of W&B and MLflow."""
    folder = Path(cfg.OUTPUT_DIR)
    writers: list[EventWriter] = [
        CommonMetricPrinter(cfg.SOLVER.MAX_ITER),
        JSONWriter(str(folder / "metrics.json"), window_size=1),  # 1: the iteration's own loss
    ]
    ids = read_json(folder / RUN_IDS, remedy="delete it") if resume and (folder / RUN_IDS).is_file() else {}
    for name in cfg.SOLVER.WRITERS:
        if name == "tensorboard":  # first of those that show images: it clears them
            writers.append(TensorboardXWriter(str(folder), purge_step=start_iter))  # hides what a killed run did later
            continue
        try:
            service = SERVICES[name](cfg, ids.get(name))
        except Exception as error:  # no login or connection: the service says which
            raise UserError(f"SOLVER.WRITERS {name}: {' '.join(str(error).split())}") from error
        writers.insert(-1, service)
        ids[name] = service.run_id
    if ids:
        write_json(folder / RUN_IDS, ids)
    return writers


class ServiceWriter(EventWriter):
    """Sends what is new since the last call: finite scalars, noisy ones as medians of 20 iterations, and images."""

    run_id: str  # with which the run goes on
    last = -1  # iteration

    def write(self):
        storage, new = get_event_storage(), defaultdict(dict)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(20).items():
            if iteration > self.last and math.isfinite(value):
                new[iteration][re.sub(r"[^\w\-. :/]", "_", name)] = value
        for iteration, scalars in sorted(new.items()):
            self.log(scalars, iteration)
            self.last = iteration
        for name, image, iteration in storage._vis_data:  # as Detectron2's writer reads them
            self.log_image(name, np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0)), iteration)

    def log(self, scalars: dict[str, float], iteration: int) -> None:
        raise NotImplementedError

    def log_image(self, name: str, image: np.ndarray, iteration: int) -> None:
        """``image`` is RGB (H, W, 3)."""
        raise NotImplementedError


class WandbWriter(ServiceWriter):
    """Weights & Biases; its own environment variables (WANDB_PROJECT, WANDB_MODE, …) choose where."""

    def __init__(self, cfg, run_id: str | None):
        import wandb

        named = {"project": os.environ.get("WANDB_PROJECT", "clim"), "dir": cfg.OUTPUT_DIR}
        config, name = yaml.safe_load(cfg.dump()), os.environ.get("WANDB_NAME", Path(cfg.OUTPUT_DIR).name)
        self.run = wandb.init(id=run_id, resume="allow" if run_id else None, config=config, name=name, **named)
        self.run.define_metric("*", step_metric="iteration")
        self.image, self.run_id = wandb.Image, self.run.id

    def log(self, scalars, iteration):
        self.run.log({**scalars, "iteration": iteration})

    def log_image(self, name, image, iteration):
        self.run.log({name: self.image(image), "iteration": iteration})

    def close(self):
        self.run.finish()


class MlflowWriter(ServiceWriter):
    """MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME choose where, by default the folder mlruns."""

    def __init__(self, cfg, run_id: str | None):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # the folder
        import mlflow

        self.mlflow = mlflow
        self.run_id = mlflow.start_run(run_id=run_id, run_name=Path(cfg.OUTPUT_DIR).name).info.run_id
        mlflow.log_text(cfg.dump(), "config.yaml")

    def log(self, scalars, iteration):
        self.mlflow.log_metrics(scalars, step=iteration)

    def log_image(self, name, image, iteration):
        self.mlflow.log_image(image, key=name, step=iteration)

    def close(self):
        self.mlflow.end_run()


SERVICES = {"wandb": WandbWriter, "mlflow": MlflowWriter}
