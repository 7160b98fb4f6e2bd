"""What the user of tools/benchmark.py has chosen."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import torch


@dataclass(frozen=True)
class Settings:
    """What the user has chosen; goes to every process."""

    repeats: int
    canvases: int
    threads: int
    device: str
    config_file: str
    scale: float
    folder: str  # scratch: synthetic photos, caption cache, logs
    overrides: tuple[str, ...]

    def start(self) -> Callable[[], None]:
        """Limit the threads of this process; returns what waits for the device."""
        torch.set_num_threads(self.threads)
        cv2.setNumThreads(self.threads)
        return torch.cuda.synchronize if self.on_gpu else lambda: None

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def seconds(self) -> str:
        """Which of a run's clocks the rates and ratios are taken from."""
        return "wall" if self.on_gpu else "cpu"
