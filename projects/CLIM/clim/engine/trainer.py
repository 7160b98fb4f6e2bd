"""The training loop: Detectron2's pieces around joint batches, global-norm clipping and exact resumption."""

import inspect
import logging
import math
import os
import time
from pathlib import Path

import torch
from detectron2.engine import SimpleTrainer, TrainerBase, hooks
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventStorage, JSONWriter, TensorboardXWriter
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from clim.data.loader import build_train_loader
from clim.errors import UserError, raise_on_all_ranks
from clim.evaluation import build_evaluators, evaluate

from .checkpoint import SafeCheckpointer
from .checks import check_text_width
from .divergence import check_finite, diverged
from .history import cut_metrics, put_earlier_run_aside
from .hooks import CheckpointHook, SkippedImages
from .loading import build
from .optimizer import build_optimizer
from .rank_state import load_rank_state, random_states_kept, rank_state_path
from .schedule import count_epochs, scale_to_world
from .weight_ensemble import CHECKPOINT_KEY, PublishClip, WeightEnsemble

logger = logging.getLogger(__name__)

# The name of DDP's switch changed in torch 2.14.
_DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers"


class Trainer(TrainerBase):
    """Model, data, optimiser and hooks from a config; :meth:`resume_or_load`, then :meth:`train`."""

    def __init__(self, cfg):
        super().__init__()
        self.reference_world_size = cfg.SOLVER.REFERENCE_WORLD_SIZE
        with raise_on_all_ranks():
            self.cfg = cfg = count_epochs(scale_to_world(cfg, comm.get_world_size()), comm.get_world_size())
            self.raw_model = build(cfg)
            self.optimizer, self.scheduler = build_solver(cfg, self.raw_model)
        self.model = self._distributed(self.raw_model)
        self.device_type = self.raw_model.device.type
        amp = cfg.SOLVER.AMP.ENABLED and self.device_type == "cuda"
        if cfg.SOLVER.AMP.ENABLED and not amp:
            logger.info("Mixed precision needs CUDA: training in float32.")
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=amp)
        self.checkpointer = SafeCheckpointer(
            self.raw_model,
            cfg.OUTPUT_DIR,
            trusted=cfg.MODEL.TRUST_WEIGHTS,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            **({"scaler": self.scaler} if amp else {}),
        )
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.skipped = SkippedImages(cfg.OUTPUT_DIR)

    def _distributed(self, model):
        if comm.get_world_size() == 1:
            return model
        loader = self.cfg.DATALOADER
        return DistributedDataParallel(
            model,
            device_ids=[comm.get_local_rank()] if model.device.type == "cuda" else None,
            find_unused_parameters=bool(loader.ALTERNATE) or model.has_unused_parameters(loader),
            **{_SYNC_BUFFERS: False},  # queues are each rank's own
        )

    def resume_or_load(self, *, resume: bool) -> None:
        """Continue from OUTPUT_DIR's last checkpoint, or start from MODEL.WEIGHTS; open the data streams."""
        cfg = self.cfg
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        resuming = resume and self.checkpointer.has_checkpoint()
        with raise_on_all_ranks():
            build_evaluators(cfg)
            if cfg.MODEL.METHOD.NAME:
                check_text_width(cfg, self.raw_model.text_encoder)
            state = self._load(resuming)
            self.ensemble = WeightEnsemble(self.raw_model, alpha=cfg.SOLVER.WEIGHT_ENSEMBLE)
            if resuming:
                self.start_iter, seed = state["iteration"] + 1, state["data_seed"]
                self._check_world(state["world_size"])
                self.ensemble.load(Path(cfg.OUTPUT_DIR))
            else:
                self.ensemble.save(Path(cfg.OUTPUT_DIR))
        self._check_agreement()
        if comm.is_main_process():
            if resume:
                cut_metrics(cfg.OUTPUT_DIR, start_iter=self.start_iter)
            else:
                put_earlier_run_aside(cfg.OUTPUT_DIR)
        with raise_on_all_ranks():
            self.loader = build_train_loader(cfg, seed=seed, start_iter=self.start_iter)
        self._register_hooks(seed)
        if resuming and not load_rank_state(self.raw_model, rank_state_path(cfg.OUTPUT_DIR, self.start_iter - 1)):
            logger.warning(
                "Resuming with another number of processes, other queues or without rank_states/: random "
                "states and queues start afresh, so losses will differ slightly from an uninterrupted run."
            )

    def _load(self, resuming: bool) -> dict:
        """MODEL.WEIGHTS or the last checkpoint; UserError where the latter is of another model than the config's."""
        try:
            state = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resuming)
        except ValueError as error:  # parameter groups of the optimiser
            if not resuming:
                raise
            raise self._of_another_config(f"{error}".rstrip(".")) from error
        if resuming and self.checkpointer.lacking:
            raise self._of_another_config(f"it has no {self.checkpointer.lacking[0]} of this model's")
        return state

    def _of_another_config(self, difference: str) -> UserError:
        return UserError(
            f"The checkpoint in {self.cfg.OUTPUT_DIR} is of another config ({difference}): resume with the one "
            "that it was trained with, or choose another OUTPUT_DIR."
        )

    def _check_world(self, before: int) -> None:
        now = comm.get_world_size()
        if self.reference_world_size and now != before:
            raise UserError(
                f"This run's checkpoint was written by {before} processes, and learning rate and iterations "
                f"are counted for them (SOLVER.REFERENCE_WORLD_SIZE): resume with {before}, not {now}, or "
                "start anew from its weights."
            )

    def _check_agreement(self) -> None:
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:
            raise UserError(
                f"The processes found different checkpoints in {self.cfg.OUTPUT_DIR} (they would start at "
                f"iterations {starts}): all machines must see the same folder, or have a copy of it."
            )

    def _register_hooks(self, seed: int) -> None:
        cfg = self.cfg
        self.register_hooks(
            [
                hooks.IterationTimer(),
                hooks.LRScheduler(self.optimizer, self.scheduler),
                self.skipped,
                CheckpointHook(
                    self.checkpointer,
                    period=cfg.SOLVER.CHECKPOINT_PERIOD,
                    keep=cfg.SOLVER.KEEP_CHECKPOINTS,
                    start_iter=self.start_iter,
                    extra={"data_seed": seed, "world_size": comm.get_world_size(), CHECKPOINT_KEY: self.ensemble.alpha},
                ),
                hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self.evaluate),
            ]
        )
        if getattr(self.raw_model, "publishes_clip", False):
            name = cfg.MODEL.IMAGE_ENCODER.ARCHITECTURE
            period, epochs = cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.EPOCHS
            self.register_hooks([PublishClip(self.ensemble, cfg.OUTPUT_DIR, name=name, period=period, epochs=epochs)])
        if comm.is_main_process():
            self.register_hooks([hooks.PeriodicWriter(self._writers(), period=cfg.SOLVER.LOG_PERIOD)])

    def evaluate(self) -> dict:
        """Scores of DATASETS.TEST; the training draws the same random numbers as without an evaluation."""
        with random_states_kept(), self.ensemble.mixed() as model:
            return evaluate(self.cfg, model)

    def _writers(self):
        folder = self.cfg.OUTPUT_DIR
        return [
            CommonMetricPrinter(self.max_iter),
            # window 1: the exact loss of the iteration, which resumed runs are compared by
            JSONWriter(os.path.join(folder, "metrics.json"), window_size=1),
            # purge: what a killed run logged after its last checkpoint is not shown
            TensorboardXWriter(folder, purge_step=self.start_iter),
        ]

    def train(self) -> None:
        """From the first iteration to the last, then evaluation; nothing is evaluated after a failure."""
        logger.info("Training from iteration %d to %d", self.start_iter, self.max_iter)
        self.iter = self.start_iter
        with EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                while self.iter < self.max_iter:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
            except UserError as error:
                logger.error("%s", error)
                raise
            except Exception:
                logger.exception("Training failed at iteration %d", self.iter)
                raise
            finally:
                self.loader = None  # ends its workers now; left to the garbage collector that takes seconds
            self.after_train()

    def run_step(self):
        """One joint batch: losses, their check, gradients, clipping, the optimiser's step."""
        self.model.train()
        start = time.perf_counter()
        with raise_on_all_ranks():
            batch = next(self.loader)
        data_time = time.perf_counter() - start
        self.skipped.add(batch.pop("skipped"))

        try:
            with torch.autocast(self.device_type, enabled=self.scaler.is_enabled()):
                losses = self.model(batch)
        except FloatingPointError as error:  # Detectron2's RPN looks at its predictions
            raise diverged(str(error), batch, self.iter) from error

        # Where sources alternate, a parameter outside this one's graph has gradient zero, not none: momentum
        # and weight decay go on, as in official Detic.
        self.optimizer.zero_grad(set_to_none=not self.cfg.DATALOADER.ALTERNATE)
        self.scaler.scale(sum(losses.values())).backward()
        norm = self.clip_gradients()
        with raise_on_all_ranks():  # after backward: processes wait for each other there
            check_finite(losses, norm, batch, self.iter)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.cfg.MODEL.METHOD.NAME:
            self.raw_model.method.after_update()
        SimpleTrainer.write_metrics(losses, data_time, self.iter)

    def clip_gradients(self) -> float:
        """Scale all gradients so that their common L2 norm is at most SOLVER.CLIP_GLOBAL_NORM; 0 leaves them.

        Returns the norm before, 0 in float16 training. Gradients are the mean over processes by now, and in
        float16 training free of the loss scale.
        """
        limit = self.cfg.SOLVER.CLIP_GLOBAL_NORM
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(self.raw_model.parameters(), limit if limit > 0 else math.inf).item()
        self.storage.put_scalar("grad_norm", norm)
        # The loss scaler meets infinite gradients now and then, skips the step and lowers its scale.
        return 0.0 if self.scaler.is_enabled() else norm


def build_solver(cfg, model: torch.nn.Module):
    """Optimiser and learning-rate schedule; a value that they refuse is a :class:`UserError`."""
    if cfg.SOLVER.WARMUP_ITERS >= cfg.SOLVER.MAX_ITER:  # all is warm-up: nothing is left to be rescaled
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.RESCALE_INTERVAL = False
    try:
        optimizer = build_optimizer(cfg, model)
        return optimizer, build_lr_scheduler(cfg, optimizer)
    except ValueError as error:
        raise UserError(f"A SOLVER key of the config has a wrong value: {error}.") from error
