"""Hooks that Detectron2 does not have: whole-world checkpoints, and the report of unreadable pictures."""

import logging
import re
from collections import Counter
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm

from .checkpoint import SafeCheckpointer
from .rank_state import rank_state_path, save_rank_state

logger = logging.getLogger(__name__)


class CheckpointHook(HookBase):
    """Every ``period`` iterations: each process its own state, then the main one weights and pointer.

    In that order, so that whatever ``last_checkpoint`` names is complete. At the end: model_final.

    Args:
        period: iterations between two checkpoints; 0: model_final only.
        keep: this many of the newest stay, with model_final; 0: all.
        start_iter: the run's first iteration; older checkpoints in the folder are this run's own.
        extra: stored beside weights, optimiser, schedule and iteration.
    """

    def __init__(self, checkpointer: SafeCheckpointer, *, period: int, keep: int, start_iter: int, extra: dict):
        self.checkpointer, self.period, self.keep, self.extra = checkpointer, period, keep, extra
        self.folder = Path(checkpointer.save_dir)
        self.kept = sorted(i for i in map(_iteration_of, self.folder.glob("model_*.pth")) if 0 <= i < start_iter)

    def after_step(self):
        done = self.trainer.iter + 1
        if done >= self.trainer.max_iter:
            self.save("model_final")
        elif self.period > 0 and done % self.period == 0:
            self.save(f"model_{self.trainer.iter:07d}")
            self.kept.append(self.trainer.iter)
            self.drop_old()

    def save(self, name: str) -> None:
        iteration = self.trainer.iter
        save_rank_state(self.checkpointer.model, rank_state_path(self.folder, iteration))
        comm.synchronize()
        if comm.is_main_process():
            self.checkpointer.save(name, iteration=iteration, **self.extra)
        comm.synchronize()

    def drop_old(self) -> None:
        while len(self.kept) > self.keep > 0:
            old = self.kept.pop(0)
            rank_state_path(self.folder, old).unlink(missing_ok=True)
            if comm.is_main_process():
                (self.folder / f"model_{old:07d}.pth").unlink(missing_ok=True)


def _iteration_of(path: Path) -> int:
    match = re.fullmatch(r"model_(\d{7})\.pth", path.name)
    return int(match[1]) if match else -1


class SkippedImages(HookBase):
    """Counts pictures that could not be read, and says which at the end (skipped_images.rank0.txt)."""

    def __init__(self, output_dir: str):
        self.path = Path(output_dir) / f"skipped_images.rank{comm.get_rank()}.txt"
        self.count: Counter = Counter()

    def add(self, skipped: list[tuple[str, str]]) -> None:
        """Count (file name, reason) of replaced pictures; each is logged once."""
        for item in skipped:
            if item not in self.count:
                logger.warning("Picture replaced by another one: %s (%s)", *item)
            self.count[item] += 1

    def after_step(self):
        self.trainer.storage.put_scalar("skipped_images", sum(self.count.values()), smoothing_hint=False)

    def after_train(self):
        if self.count:
            lines = [f"{name}\t{reason}\t{times}" for (name, reason), times in sorted(self.count.items())]
            self.path.write_text("\n".join(lines) + "\n")
            logger.warning("%d pictures could not be read and were replaced: %s", len(self.count), self.path)
