"""The training loop: Detectron2's hooks around joint batches, global-norm clipping and exact resumption."""

import inspect
import logging
import math
import sys
import time
import zlib
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.engine import HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from clim.checkpoints.checkpointer import ALPHA_KEY, OTHER_CONFIG, SafeCheckpointer, build_model
from clim.checkpoints.reading import DESCRIPTION, require_entries
from clim.data.loader import batch_sizes, build_train_loader
from clim.data.names import vocabulary_names
from clim.errors import UserError, raise_on_all_ranks, sentence
from clim.evaluation import build_evaluators, evaluate
from clim.processes import Stopped, StopSignals
from clim.text import require_width

from .averaging import BestCheckpoint, MovingAverage
from .hooks import ProgressBar, TrainingImages, Writers, build_writers
from .resume import CheckpointHook, load_rank_state, prepare_metrics, random_states_kept, rank_state_path
from .setup import describe
from .solver import build_solver, count_epochs, scale_to_world
from .weight_ensemble import PublishClip, WeightEnsemble

logger = logging.getLogger(__name__)

# The name of DDP's switch changed in torch 2.14.
_KNOWN = inspect.signature(DistributedDataParallel.__init__).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _KNOWN else "broadcast_buffers"
# Each rank has its own queues. A gradient lies in the buffer that is exchanged, so there is no copy of it.
DDP_OPTIONS = {_SYNC_BUFFERS: False, "gradient_as_bucket_view": True}


class Trainer(TrainerBase):
    """Model, data, optimiser and hooks from a config; :meth:`resume_or_load`, then :meth:`train`."""

    def __init__(self, cfg):
        super().__init__()
        self.reference_world_size = cfg.SOLVER.REFERENCE_WORLD_SIZE
        self.batches_per_step = comm.get_world_size() * cfg.SOLVER.ACCUMULATE
        with raise_on_all_ranks():
            self.cfg = cfg = count_epochs(scale_to_world(cfg, comm.get_world_size()), comm.get_world_size())
            self.raw_model = build_model(cfg)
        if cfg.MODEL.CHANNELS_LAST:
            self.raw_model.to(memory_format=torch.channels_last)
        if cfg.MODEL.COMPILE:
            compile_trunk(self.raw_model)
        self.optimizer, self.scheduler = build_solver(cfg, self.raw_model)
        loader, on_gpu = cfg.DATALOADER, self.raw_model.device.type == "cuda"
        self.model = create_ddp_model(  # in one process it returns the model itself
            self.raw_model,
            device_ids=[comm.get_local_rank()] if on_gpu else None,
            find_unused_parameters=bool(loader.ALTERNATE) or self.raw_model.has_unused_parameters(loader),
            **DDP_OPTIONS,
        )
        self.device_type = self.raw_model.device.type
        amp, half = cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE == "float16"
        if amp and half and not on_gpu:
            amp = False
            logger.info("Mixed precision in float16 needs CUDA: training in float32.")
        self.autocast = partial(torch.autocast, self.device_type, getattr(torch, cfg.SOLVER.AMP.DTYPE), enabled=amp)
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=amp and half)
        self.average = MovingAverage(self.raw_model, decay=cfg.SOLVER.EMA)
        stored = {"optimizer": self.optimizer, "scheduler": self.scheduler, "ema": self.average}
        stored |= {"scaler": self.scaler} if amp and half else {}
        self.checkpointer = SafeCheckpointer(self.raw_model, cfg.OUTPUT_DIR, trusted=cfg.MODEL.TRUST_WEIGHTS, **stored)
        self.checkpointer.published = self.average.mixed
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.skipped, self.stop = SkippedImages(cfg.OUTPUT_DIR), StopSignals()

    def resume_or_load(self, *, resume: bool) -> None:
        """Continue from OUTPUT_DIR's last checkpoint, or start from MODEL.WEIGHTS; open the data streams."""
        cfg = self.cfg
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        resuming = resume and self.checkpointer.has_checkpoint()
        with raise_on_all_ranks():
            build_evaluators(cfg)
            if cfg.MODEL.METHOD.NAME:
                require_width(self.raw_model.text_encoder.dim, cfg, what=f"MODEL.TEXT.NAME {cfg.MODEL.TEXT.NAME}")
            state = self._load(resuming)
            self.ensemble = WeightEnsemble(self.raw_model, alpha=cfg.SOLVER.WEIGHT_ENSEMBLE)
            if resuming:
                self.start_iter, seed = state["iteration"] + 1, state["data_seed"]
                before, now = state["world_size"] * state.get("accumulate", 1), self.batches_per_step
                if self.reference_world_size and before != now:
                    raise UserError(
                        f"{before} processes wrote this run's checkpoint (each counts SOLVER.ACCUMULATE times), and "
                        f"the solver depends on them: resume with {before}, not {now}, or start anew from its weights."
                    )
                self.ensemble.load(Path(cfg.OUTPUT_DIR))
            else:
                self.ensemble.save(Path(cfg.OUTPUT_DIR))
                self.average.start()
        self._check_agreement()
        if comm.is_main_process():
            prepare_metrics(cfg.OUTPUT_DIR, resume=resume, start_iter=self.start_iter)
        with raise_on_all_ranks():
            self.loader = build_train_loader(cfg, seed=seed, start_iter=self.start_iter)
        with raise_on_all_ranks(), random_states_kept():
            self.register_hooks(self._build_hooks(seed, resuming))
        if resuming:
            with raise_on_all_ranks():
                fits = load_rank_state(self.raw_model, rank_state_path(cfg.OUTPUT_DIR, self.start_iter - 1))
            lacking = [f"rank{rank}" for rank, known in enumerate(comm.all_gather(fits)) if not known]
            if lacking:
                logger.warning(
                    f"The files {', '.join(lacking)} of rank_states/ are missing or have another number of processes "
                    "or other queues: these random states and queues start anew, so the losses differ slightly from "
                    "those of an uninterrupted run."
                )

    def _load(self, resuming: bool) -> dict:
        state = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resuming)
        if not resuming:
            return state
        file = self.checkpointer.get_checkpoint_file()
        require_entries(state, dict.fromkeys(("iteration", "data_seed", "world_size"), int), file)
        rates = [group["initial_lr"] for group in self.optimizer.param_groups]
        if (self.scheduler.last_epoch, self.scheduler.base_lrs) != (state["iteration"] + 1, rates):
            reason = "iteration, schedule and optimiser contradict each other"
        elif self.checkpointer.lacking:
            reason = f"it lacks this model's {self.checkpointer.lacking[0]}"
        else:
            return state
        raise UserError(f"{file} belongs to another config or is damaged ({reason}): {OTHER_CONFIG}.")

    def _check_agreement(self) -> None:
        weights = 0  # their checksum
        for weight in self.raw_model.parameters() if comm.get_world_size() > 1 else ():
            weights = zlib.crc32(weight.detach().reshape(-1).view(torch.uint8).cpu().numpy(), weights)
        facts = {"iteration to start at": self.start_iter, "number of iterations": self.max_iter}
        of_ranks = comm.all_gather(facts | {"batch sizes": batch_sizes(self.cfg), "weights": weights})
        for what in of_ranks[0]:
            values = [of_rank[what] for of_rank in of_ranks]
            if any(value != values[0] for value in values):
                remedy = f"all machines need the same config, files and folder {self.cfg.OUTPUT_DIR}, or copies of them"
                raise UserError(f"Processes differ in the {what}, {values}: {remedy}.")

    def _build_hooks(self, seed: int, resuming: bool) -> list[HookBase]:
        cfg, period = self.cfg, self.cfg.SOLVER.CHECKPOINT_PERIOD
        extra = {"data_seed": seed, "world_size": comm.get_world_size(), "accumulate": cfg.SOLVER.ACCUMULATE}
        extra |= {ALPHA_KEY: self.ensemble.alpha, DESCRIPTION: describe(cfg)}
        options = {"period": period, "keep": cfg.SOLVER.KEEP_CHECKPOINTS, "start_iter": self.start_iter}
        self.checkpoints = CheckpointHook(self.checkpointer, extra=extra, **options)
        self.best = BestCheckpoint(self.checkpointer, cfg.TEST.BEST_METRIC, resume=resuming, extra=extra)
        found = [hooks.IterationTimer(), hooks.LRScheduler(self.optimizer, self.scheduler), self.skipped, self.average]
        if getattr(self.raw_model, "publishes_clip", False):  # before the checkpoint, after which it is not repeated
            name, epochs = cfg.MODEL.IMAGE_ENCODER.ARCHITECTURE, cfg.SOLVER.EPOCHS
            weights = self.average if cfg.SOLVER.EMA else self.ensemble
            found.append(PublishClip(weights, cfg.OUTPUT_DIR, name=name, period=period, epochs=epochs))
        found += [self.checkpoints, hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self.evaluate_or_stop)]
        if not comm.is_main_process():
            return found
        if cfg.VIS_PERIOD > 0:
            names = vocabulary_names(cfg)
            found.append(TrainingImages(period=cfg.VIS_PERIOD, names=names, image_format=cfg.INPUT.FORMAT))
        writers = build_writers(cfg, resume=resuming, start_iter=self.start_iter)
        found.append(Writers(writers, period=cfg.SOLVER.LOG_PERIOD))
        return [*found, ProgressBar()] if sys.stdout.isatty() else found

    def evaluate(self) -> dict:
        """Scores of DATASETS.TEST, without compiled parts; the random states stay as they were."""
        eager = torch.compiler.set_stance("force_eager") if self.cfg.MODEL.COMPILE else nullcontext()
        with eager, random_states_kept(), self.ensemble.mixed(), self.average.mixed() as model, self.stop.at_once():
            return evaluate(self.cfg, model)

    def evaluate_or_stop(self) -> dict:
        """The same during a training, which keeps the best weights; a signal to stop ends it at once."""
        if self.stop.agreed:
            return {}
        try:
            results = self.evaluate()
        except Stopped:  # the processes do not wait for each other: each may be at another image
            if self.iter < self.max_iter:
                self.checkpoints.save(f"model_{self.iter:07d}", wait=False)
            raise
        self.best.update(results, self.iter)
        return results

    def train(self) -> None:
        """Run all iterations, then evaluate."""
        logger.info("Training from iteration %d to %d", self.start_iter, self.max_iter)
        self.iter = self.start_iter
        with EventStorage(self.start_iter) as self.storage, self.stop:
            try:
                self.before_train()
                while self.iter < self.max_iter:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    if self.stop.agreed:
                        raise Stopped(self.stop.agreed)
                    self.iter += 1
            except Stopped:
                logger.warning("Stopped by a signal after iteration %d: --resume goes on from there.", self.iter)
                for hook in self._hooks:
                    if isinstance(hook, Writers):
                        hook.close()
                raise
            except Exception as error:
                message = sentence(error)
                logger.error("Training stopped at iteration %d: %s", self.iter, message or error, exc_info=not message)
                raise
            finally:
                self.loader = None  # ends its workers at once
            self.after_train()

    def run_step(self):
        """One step of the optimiser: losses and gradients, clipping, the check, the update."""
        self.model.train()
        self.optimizer.zero_grad()
        if self.cfg.DATALOADER.ALTERNATE:
            # A parameter outside this step's graphs has a zero gradient: momentum and weight decay continue, as in
            # official Detic, also in the first step of a process.
            for parameter in filter(lambda p: p.requires_grad, self.raw_model.parameters()):
                parameter.grad = torch.zeros_like(parameter)
        losses, images, data_time = self.accumulate()
        # The host waits for the device here alone, and for other processes below: after backward, in which they also
        # wait. The losses are this process's, the norm is common.
        *values, norm = torch.stack([*losses.values(), self.clip_gradients()]).tolist()
        with raise_on_all_ranks(self.stop.asked, data_time, *values) as of_ranks:
            check_finite(dict(zip(losses, values, strict=True)), images, self.iter)
        # In float16 the scaler skips a step with infinite gradients, and lowers its scale.
        if not (math.isfinite(norm) or self.scaler.is_enabled()):
            of_ranks = {f"process {rank}": ids for rank, ids in enumerate(comm.all_gather(images))}
            raise not_finite(f"gradient norm = {norm}", of_ranks, self.iter)
        asked, times, *values = of_ranks
        self.stop.agreed = self.stop.agreed or int(max(asked))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.cfg.MODEL.METHOD.NAME:
            self.raw_model.method.after_update()
        # The names of Detectron2's SimpleTrainer.write_metrics, which would exchange all numbers again.
        self.storage.put_scalars(grad_norm=norm, rank_data_time=data_time)
        if comm.is_main_process():
            means = dict(zip(losses, map(np.mean, values), strict=True))
            self.storage.put_scalars(data_time=max(times), total_loss=sum(means.values()), **means)
        else:
            self.storage.clear_images()  # only the main process shows them

    def accumulate(self) -> tuple[dict, dict, float]:
        """Gradients of the mean loss over SOLVER.ACCUMULATE joint batches and, with several processes, over these.

        Returns this process's mean losses, the image ids and the seconds of loading. A loss that a batch lacks is 0.
        """
        number, losses, images, data_time = self.cfg.SOLVER.ACCUMULATE, {}, {}, 0.0
        for index in range(number):
            start = time.perf_counter()
            with raise_on_all_ranks():
                batch = next(self.loader)
            data_time += time.perf_counter() - start
            self.skipped.add(batch.pop("skipped"))
            self.batch = batch  # for hooks
            for source, ids in image_ids(batch).items():
                images[source] = images.get(source, []) + ids
            # Processes exchange gradients once, in the last backward pass.
            apart = comm.get_world_size() > 1 and index < number - 1
            with self.model.no_sync() if apart else nullcontext():
                try:
                    with self.autocast():
                        found = self.model(batch)
                except FloatingPointError as error:  # Detectron2's RPN checks its predictions
                    raise not_finite(str(error), {f"process {comm.get_rank()}": images}, self.iter) from error
                self.scaler.scale(sum(found.values()) / number).backward()
            for name, loss in found.items():
                losses[name] = losses.get(name, 0.0) + loss.detach() / number
        return losses, images, data_time

    def clip_gradients(self) -> Tensor:
        """Clip gradients to the common L2 norm SOLVER.CLIP_GLOBAL_NORM, 0: off. Returns the norm before, a scalar."""
        limit = self.cfg.SOLVER.CLIP_GLOBAL_NORM
        self.scaler.unscale_(self.optimizer)
        return clip_grad_norm_(self.raw_model.parameters(), limit if limit > 0 else math.inf)


def compile_trunk(model: torch.nn.Module) -> None:
    """Let torch.compile translate the backbone or image encoder at its first call, for all sizes. Names stay."""
    if hasattr(model, "backbone"):
        model.backbone.compile(dynamic=True)
        return
    for name in ("embed_images", "features", "feature_map"):
        if method := getattr(model.image_encoder, name, None):
            setattr(model.image_encoder, name, torch.compile(method, dynamic=True))


class SkippedImages(HookBase):
    """Counts images that cannot be read, and lists them at the end in skipped_images.rank0.txt."""

    def __init__(self, output_dir: str):
        self.path = Path(output_dir) / f"skipped_images.rank{comm.get_rank()}.txt"
        self.count: Counter = Counter()

    def add(self, skipped: list[tuple[str, str]]) -> None:
        """Count the (file name, reason) of images; log each once."""
        for item in skipped:
            if item not in self.count:
                logger.warning("Image replaced by another one: %s (%s)", *item)
            self.count[item] += 1

    def after_step(self):
        self.trainer.storage.put_scalar("skipped_images", sum(self.count.values()), smoothing_hint=False)

    def after_train(self):
        if self.count:
            lines = [f"{name}\t{reason}\t{times}" for (name, reason), times in sorted(self.count.items())]
            self.path.write_text("\n".join(lines) + "\n")
            logger.warning("%d images could not be read and were replaced: %s", len(self.count), self.path)


def image_ids(batch: dict) -> dict[str, list]:
    """{source: the image ids of its samples}; a canvas has a list of them."""
    return {
        source: [s["image_id"] if "image_id" in s else s["tiles"].image_ids.tolist() for s in samples]
        for source, samples in batch.items()
        if samples
    }


def check_finite(losses: dict[str, float], images: dict[str, list], iteration: int) -> None:
    """Stop on a non-finite loss of this process, before it changes the weights, and name its :func:`image_ids`."""
    bad = [f"{name} = {value}" for name, value in losses.items() if not math.isfinite(value)]
    if bad:
        raise not_finite(", ".join(bad), {f"process {comm.get_rank()}": images}, iteration)


def not_finite(what: str, images: dict[str, dict], iteration: int) -> UserError:
    """The error for ``what``; ``images`` are the :func:`image_ids` of each process."""
    images = images if comm.get_world_size() > 1 else images["process 0"]
    return UserError(
        f"Iteration {iteration}: {what.rstrip('.')}; image ids of the batch: {images}. Training stopped: look at "
        "these images, or start anew with a lower SOLVER.BASE_LR."
    )
