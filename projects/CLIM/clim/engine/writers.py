"""Where the figures of a training go: the log, metrics.json, and the services of SOLVER.WRITERS."""

import math
import os
import re
from collections import defaultdict
from pathlib import Path

import yaml
from detectron2.utils import events

from clim.files import read_json, write_json

RUN_IDS = "run_ids.json"  # in OUTPUT_DIR: {service: its id of this run}


def build_writers(cfg, *, resume: bool, start_iter: int) -> list[events.EventWriter]:
    """The writers of the main process, first the log. A run that resumes goes on in its runs of W&B and MLflow."""
    folder = Path(cfg.OUTPUT_DIR)
    writers = [events.CommonMetricPrinter(cfg.SOLVER.MAX_ITER)]
    writers.append(events.JSONWriter(str(folder / "metrics.json"), window_size=1))  # 1: the iteration's own loss
    known = resume and (folder / RUN_IDS).is_file()
    ids = read_json(folder / RUN_IDS, remedy="delete it") if known else {}
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
