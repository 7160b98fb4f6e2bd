"""Stages that never overlap, rounds in turn (ABAB), medians, peak memory; independent of what is measured."""

import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import wraps
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from tqdm import tqdm

REST = "rest"


class Stages:
    """Seconds by stage. Stages may nest; every moment counts for the innermost one, else for ``rest``.

    Args:
        clock: what is read at each border, e.g. ``time.process_time``: CPU seconds of all threads, which
            other programs on the machine hardly disturb. For a GPU, a clock that synchronises first.
    """

    def __init__(self, clock: Callable[[], float] = time.process_time):
        self._clock = clock
        self._open = [REST]
        self._seconds: dict[str, float] = {}
        self._since = clock()

    @contextmanager
    def stage(self, name: str):
        self._credit()
        self._open.append(name)
        try:
            yield
        finally:
            self._credit()
            self._open.pop()

    def timed(self, name: str, function: Callable) -> Callable:
        """``function``, its calls counted for the stage ``name``."""

        @wraps(function)
        def call(*args, **kwargs):
            with self.stage(name):
                return function(*args, **kwargs)

        return call

    def take(self) -> dict[str, float]:
        """{stage: seconds} since the last call (or the start); their sum is all the time that passed."""
        self._credit()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _credit(self) -> None:
        now, name = self._clock(), self._open[-1]
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now


class Run(NamedTuple):
    """One measured call: wall and CPU seconds, and the stages where they were taken."""

    wall: float
    cpu: float
    stages: dict[str, float]


def measure(function: Callable[[], object], *, stages: Stages | None = None, synchronise=lambda: None) -> Run:
    """Call ``function`` once; ``synchronise`` waits for a device before each clock is read."""
    synchronise()
    if stages is not None:
        stages.take()
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    synchronise()
    return Run(time.perf_counter() - wall, time.process_time() - cpu, stages.take() if stages is not None else {})


def interleaved(arms: Mapping[str, Callable[[], Run]], *, repeats: int, title: str) -> dict[str, list[Run]]:
    """One warm-up of every arm, then ``repeats`` rounds of all arms in turn: {arm: runs, one a round}.

    What slows the machine down for a while then slows all arms.
    """
    runs: dict[str, list[Run]] = {name: [] for name in arms}
    with tqdm(total=(repeats + 1) * len(arms), desc=title, unit="run") as bar:
        for round_ in range(repeats + 1):
            for name, arm in arms.items():
                run = arm()
                if round_ > 0:
                    runs[name].append(run)
                bar.update()
    return runs


class Spread(NamedTuple):
    """Median, minimum and maximum of several runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)}–{_short(self.high)})"


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def paired_ratio(values: Sequence[float], reference: Sequence[float]) -> Spread:
    """Spread of values[i] / reference[i], each pair from one round."""
    return Spread.of([value / other for value, other in zip(values, reference, strict=True)])


def shares(runs: Sequence[Run], stages: Sequence[str]) -> dict[str, float]:
    """{"stage %": percent of all seconds, median over runs}."""
    return {
        f"{stage} %": statistics.median([100 * run.stages.get(stage, 0.0) / sum(run.stages.values()) for run in runs])
        for stage in stages
    }


def fresh(function: Callable, *args):
    """``function(*args)`` in a new interpreter, which inherits neither memory nor warm caches."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def peak_resident_bytes() -> int:
    """Largest resident memory that this process has had."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux, ru_maxrss keeps the parent's peak over fork and exec
        return int(re.search(r"^VmHWM:\s*(\d+)", status.read_text(), re.MULTILINE)[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def machine(modules: Sequence[ModuleType]) -> dict[str, str]:
    """What a reader needs beside the numbers: processor, cores, load, versions of ``modules``."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)", info.read_text() if info.is_file() else "", re.MULTILINE)
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f} (mean of the last minute)",
        "Python": platform.python_version(),
    } | {module.__name__: module.__version__ for module in modules}
