"""Hooks that Detectron2 does not have: whole-world checkpoints, and the report of unreadable pictures."""

import logging
from collections import Counter
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm

from .checkpoint import SafeCheckpointer, rank_state_path, save_rank_state

logger = logging.getLogger(__name__)


class CheckpointHook(HookBase):
    """Every ``period`` iterations: each rank its own state, then rank 0 the weights and the pointer to them.

    In that order, so that whatever ``last_checkpoint`` names is complete.
    """

    def __init__(self, checkpointer: SafeCheckpointer, *, period: int, keep: int, extra: dict):
        self.checkpointer, self.period, self.keep, self.extra = checkpointer, period, keep, extra
        self.written: list[str] = []

    def after_step(self):
        done = self.trainer.iter + 1
        if done >= self.trainer.max_iter:
            self.save("model_final")
        elif self.period > 0 and done % self.period == 0:
            self.save(f"model_{self.trainer.iter:07d}")

    def save(self, name: str) -> None:
        folder = self.checkpointer.save_dir
        save_rank_state(self.checkpointer.model, rank_state_path(folder, name))
        comm.synchronize()
        if comm.is_main_process():
            self.checkpointer.save(name, iteration=self.trainer.iter, **self.extra)
            if name != "model_final":
                self.written.append(name)
            while len(self.written) > self.keep > 0:
                old = self.written.pop(0)
                for path in [Path(folder) / f"{old}.pth", *(Path(folder) / "rank_states").glob(f"{old}.rank*.pth")]:
                    path.unlink(missing_ok=True)
        comm.synchronize()


class SkippedImages(HookBase):
    """Counts pictures that could not be read, and says which at the end (skipped_images.txt)."""

    def __init__(self, output_dir: str):
        self.path = Path(output_dir) / f"skipped_images.rank{comm.get_rank()}.txt"
        self.count: Counter = Counter()

    def add(self, skipped: list[tuple[str, str]]) -> None:
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
            logger.warning(
                "%d pictures could not be read and were replaced: %s", len(self.count), self.path
            )
