"""Show the progress of runs: one live line on a terminal, or a line now and then in a file."""

import shutil
import sys
import threading
import time

from .run_files import Progress

PLAIN_PERIOD = 30.0  # seconds between two lines of a run in a file


class Board:
    """Progress of one or more runs: ``run_training(…, progress=board.of("detic"))``."""

    def __init__(self, stream=None, *, period: float = PLAIN_PERIOD):
        self.stream = sys.stdout if stream is None else stream
        self.period = period
        self.live = self.stream.isatty()
        self._lock = threading.Lock()
        self._now: dict[str, Progress] = {}
        self._written: dict[str, tuple[str, float]] = {}

    def of(self, name: str):
        """The callback for the run ``name``."""

        def update(progress: Progress) -> None:
            with self._lock:
                self._now[name] = progress
                if self.live:
                    self._redraw()
                else:
                    self._write_line(name, progress)

        return update

    def say(self, text: str) -> None:
        """Write a line that stays."""
        with self._lock:
            if self.live:
                self.stream.write("\r\x1b[K")
            self.stream.write(text + "\n")
            self.stream.flush()

    def done(self, name: str, text: str) -> None:
        """Take the run ``name`` off the live line, and write a line about it."""
        with self._lock:
            self._now.pop(name, None)
        self.say(f"  {name}: {text}")

    def _redraw(self) -> None:
        line = "   ".join(f"{name}: {describe(progress)}" for name, progress in self._now.items())
        width = shutil.get_terminal_size().columns - 1
        self.stream.write("\r\x1b[K" + line[:width])
        self.stream.flush()

    def _write_line(self, name: str, progress: Progress) -> None:
        phase, when = self._written.get(name, ("", float("-inf")))
        if progress.phase != phase or time.monotonic() - when >= self.period:
            self._written[name] = (progress.phase, time.monotonic())
            self.stream.write(f"  {name}: {describe(progress)}\n")
            self.stream.flush()


def describe(progress: Progress) -> str:
    """One phrase: "iteration 120 of 300, loss 2.31, 1:23 left"."""
    if progress.phase == "training":
        words = [f"iteration {progress.done} of {progress.total}"]
        words += [f"loss {progress.loss:.2f}"] if progress.loss is not None else []
        return ", ".join(words + ([f"{clock(progress.eta)} left"] if progress.eta else []))
    if progress.phase == "evaluating":
        return f"evaluating, image {progress.done} of {progress.total}" if progress.total else "evaluating"
    return progress.phase


def clock(seconds: float) -> str:
    """ "1:23", "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
