"""The training loop: Detectron2's pieces around joint batches, global-norm clipping and exact resumption."""

import logging
import os
import time
from pathlib import Path

import torch
from detectron2.engine import DefaultTrainer, SimpleTrainer, TrainerBase, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.modeling import build_model
from detectron2.data import build_detection_test_loader
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from torch.nn.parallel import DistributedDataParallel

from clim.data.loader import build_train_loader
from clim.errors import UserError
from clim.evaluation import OVCOCOEvaluator
from .checkpoint import SafeCheckpointer, load_rank_state, rank_state_path
from .hooks import CheckpointHook, SkippedImages

logger = logging.getLogger(__name__)


class Trainer(TrainerBase):
    """Model, data, optimiser and hooks from a config; :meth:`resume_or_load`, then ``train()``."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.raw_model = build_model(cfg)
        self.optimizer = build_optimizer(cfg, self.raw_model)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        self.model = self._distributed(self.raw_model)
        self.device_type = self.raw_model.device.type
        amp = cfg.SOLVER.AMP.ENABLED and self.device_type == "cuda"
        if cfg.SOLVER.AMP.ENABLED and not amp:
            logger.info("Mixed precision needs CUDA: training in float32.")
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=amp)
        self.checkpointer = SafeCheckpointer(
            self.raw_model, cfg.OUTPUT_DIR, optimizer=self.optimizer, scheduler=self.scheduler, scaler=self.scaler
        )
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.skipped = SkippedImages(cfg.OUTPUT_DIR)

    def _distributed(self, model):
        if comm.get_world_size() == 1:
            return model
        # Only where an iteration leaves whole parts out do parameters go without gradient.
        loader = self.cfg.DATALOADER
        return DistributedDataParallel(
            model,
            device_ids=[comm.get_local_rank()] if model.device.type == "cuda" else None,
            broadcast_buffers=False,  # queues are each rank's own
            find_unused_parameters=bool(loader.ALTERNATE) or loader.DETECTION_PER_GPU == 0,
        )

    def resume_or_load(self, *, resume: bool) -> None:
        """Continue from OUTPUT_DIR's last checkpoint, or start from MODEL.WEIGHTS; then open the data streams."""
        seed = self.cfg.SEED if self.cfg.SEED >= 0 else comm.shared_random_seed()
        resuming = resume and self.checkpointer.has_checkpoint()
        if not resuming:
            check_weights(self.cfg.MODEL.WEIGHTS)
        state = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resuming:
            self.start_iter = state["iteration"] + 1
            seed = state["data_seed"]
        self.loader = build_train_loader(self.cfg, seed=seed, start_iter=self.start_iter)
        self._register_hooks(seed)
        if resuming:
            name = Path(self.checkpointer.get_checkpoint_file()).stem
            if not load_rank_state(self.raw_model, rank_state_path(self.cfg.OUTPUT_DIR, name)):
                logger.warning(
                    "Resuming with another number of processes (or without rank_states/): random states and "
                    "queues start afresh, so losses will differ slightly from an uninterrupted run."
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
                    extra={"data_seed": seed},
                ),
                hooks.EvalHook(cfg.TEST.EVAL_PERIOD, lambda: evaluate(cfg, self.raw_model)),
            ]
        )
        if comm.is_main_process():
            self.register_hooks([hooks.PeriodicWriter(self._writers(), period=cfg.SOLVER.LOG_PERIOD)])

    def _writers(self):
        folder = self.cfg.OUTPUT_DIR
        return [
            CommonMetricPrinter(self.max_iter),
            # window 1: the exact loss of the iteration, which resumed runs are compared by
            JSONWriter(os.path.join(folder, "metrics.json"), window_size=1),
            TensorboardXWriter(folder),
        ]

    def train(self):
        super().train(self.start_iter, self.max_iter)

    def run_step(self):
        self.model.train()
        start = time.perf_counter()
        batch = next(self.loader)
        data_time = time.perf_counter() - start
        self.skipped.add(batch.pop("skipped"))

        with torch.autocast(self.device_type, enabled=self.scaler.is_enabled()):
            losses = self.model(batch)
        total = sum(losses.values())
        check_finite(losses, batch, self.iter)

        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        if self.cfg.SOLVER.CLIP_GLOBAL_NORM > 0:
            self.scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.raw_model.parameters(), self.cfg.SOLVER.CLIP_GLOBAL_NORM)
            self.storage.put_scalar("grad_norm", norm.item())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        SimpleTrainer.write_metrics(losses, data_time, self.iter)

    def state_dict(self):
        raise NotImplementedError("the checkpointer holds what is stored, see __init__")


def check_finite(losses: dict, batch: dict, iteration: int) -> None:
    """Stop at the first loss that is not a number, before it reaches the weights."""
    bad = [name for name, loss in losses.items() if not torch.isfinite(loss)]
    if bad:
        ids = {
            source: [s["image_id"] if "image_id" in s else s["tiles"].image_ids.tolist() for s in samples]
            for source, samples in batch.items()
            if samples
        }
        raise UserError(
            f"Iteration {iteration}: {', '.join(f'{n} = {losses[n].item()}' for n in bad)}. Training stopped; "
            f"image ids of the batch: {ids}. Lower SOLVER.BASE_LR or look at these pictures, then --resume."
        )


def check_weights(weights: str) -> None:
    """One clear sentence where the starting point is missing."""
    if not weights or "://" in weights or Path(weights).is_file():
        return
    if Path(weights).name == "model_final.pth":
        raise UserError(
            f"MODEL.WEIGHTS: {weights} does not exist. Fine-tuning starts from the base stage: train it with its "
            f"config (python train_net.py --config-file configs/{Path(weights).parent.name}.yaml), or point "
            "MODEL.WEIGHTS at a published one (Detic's BoxSup_OVCOCO_CLIP_R50_1x.pth serves OV-COCO)."
        )
    raise UserError(f"MODEL.WEIGHTS: {weights} does not exist.")


@torch.no_grad()
def evaluate(cfg, model) -> dict:
    """Detections and AP50 novel / base / all on every set of DATASETS.TEST; leaves random states alone."""
    results = {}
    with torch.random.fork_rng():  # the loader draws a seed, which training must not notice
        for name in cfg.DATASETS.TEST:
            loader = build_detection_test_loader(cfg, name)
            evaluator = OVCOCOEvaluator(
                name, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference", name), protocol=cfg.TEST.PROTOCOL
            )
            results[name] = inference_on_dataset(model, loader, evaluator)
            if comm.is_main_process():
                logger.info("Results on %s:", name)
                print_csv_format(results[name])
    return results[cfg.DATASETS.TEST[0]] if len(results) == 1 else results
