"""Peak memory of training steps, each figure from a process of its own."""

from collections.abc import Sequence

import torch
from detectron2.utils.events import EventStorage
from tqdm import tqdm

from clim.data.loader import build_train_loader

from .settings import Settings
from .steps import STEPS, new_trainer, register, step_config
from .stopwatch import Spread, fresh, paired_ratio, peak_resident_bytes

MEMORY_STEPS = 2  # the optimiser's momenta are there from the second on


def peak_of_steps(settings: Settings, records: Sequence[dict], batch: tuple[int, int, int]) -> dict[str, int]:
    """Bytes before the first step (libraries and model) and at the worst moment of some steps."""
    settings.start()
    peak = torch.cuda.max_memory_allocated if settings.on_gpu else peak_resident_bytes
    register(records)
    cfg = step_config(settings, batch)
    trainer = new_trainer(cfg)
    trainer.loader = build_train_loader(cfg, seed=0)
    before = peak()
    with EventStorage() as trainer.storage:
        for _ in range(MEMORY_STEPS):
            trainer.run_step()
    return {"before": before, "peak": peak()}


def measure_memory(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """Every figure from a process of its own."""
    measured: dict[str, list[dict[str, int]]] = {name: [] for name in STEPS}
    with tqdm(total=settings.repeats * len(STEPS), desc="memory", unit="process") as bar:
        for _ in range(settings.repeats):
            for name, batch in STEPS.items():
                measured[name].append(fresh(peak_of_steps, settings, records, batch))
                bar.update()
    reference = [m["peak"] for m in measured["baseline 2+4"]]
    return [
        {
            "step": name,
            "peak MiB": Spread.of([m["peak"] / 2**20 for m in values]),
            "ratio": paired_ratio([m["peak"] for m in values], reference),
            "before the first step MiB": Spread.of([m["before"] / 2**20 for m in values]),
        }
        for name, values in measured.items()
    ]
