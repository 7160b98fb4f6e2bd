"""Time in stages, rounds in turn (ABAB), medians and peak memory, whatever is measured."""

import gc
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import wraps
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeVar

from tqdm import tqdm

REST = "rest"
T = TypeVar("T")


class Stages:
    """Seconds by stage. Stages may nest: every moment counts for the innermost one, or else for ``rest``.

    ``clock`` is read at each border. The default counts CPU seconds of all threads, which other programs hardly
    disturb. For a GPU, give a clock that synchronises first.
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
        """``function``, whose calls count for the stage ``name``."""

        @wraps(function)
        def call(*args, **kwargs):
            with self.stage(name):
                return function(*args, **kwargs)

        return call

    def take(self) -> dict[str, float]:
        """{stage: seconds} since the last call or the start. The sum is all the time that passed."""
        self._credit()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _credit(self) -> None:
        now, name = self._clock(), self._open[-1]
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now


class Run(NamedTuple):
    """One measured call: wall and CPU seconds, and seconds by stage ({} without stages)."""

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


def interleaved(
    arms: Mapping[str, Callable[[], T]], *, repeats: int, title: str, warm_up: int = 1
) -> dict[str, list[T]]:
    """{arm: its runs}: ``warm_up`` rounds that do not count, then ``repeats`` rounds of all arms in turn.

    So a slow phase of the machine slows all arms.
    """
    runs = {name: [] for name in arms}
    with tqdm(total=(repeats + warm_up) * len(arms), desc=title, unit="run") as bar:
        for _ in range(repeats + warm_up):
            for name, arm in arms.items():
                runs[name].append(arm())
                bar.update()
    return {name: taken[warm_up:] for name, taken in runs.items()}


def compared(
    ways: Mapping[str, Callable[[], object]], *, repeats: int, title: str, clock: str = "cpu", synchronise=lambda: None
) -> tuple[dict[str, list[float]], dict[str, object]]:
    """({way: seconds of its runs}, {way: its last result}) of functions that take turns."""
    results = {}

    def arm(way, function):
        return lambda: measure(lambda: results.update({way: function()}), synchronise=synchronise)

    arms = {way: arm(way, function) for way, function in ways.items()}
    runs = interleaved(arms, repeats=repeats, title=title)
    return {way: [getattr(run, clock) for run in taken] for way, taken in runs.items()}, results


class Spread(NamedTuple):
    """Median, minimum and maximum of several runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.low)}–{short(self.high)})"


def short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def paired_ratio(values: Sequence[float], reference: Sequence[float]) -> Spread:
    """Spread of values[i] / reference[i]; each pair is of one round."""
    return Spread.of([value / other for value, other in zip(values, reference, strict=True)])


def shares(runs: Sequence[Run], stages: Sequence[str]) -> dict[str, float]:
    """{"stage %": percent of all seconds, median over runs}."""
    return {
        f"{stage} %": statistics.median([100 * run.stages.get(stage, 0.0) / sum(run.stages.values()) for run in runs])
        for stage in stages
    }


def fresh(function: Callable, *args):
    """``function(*args)`` in a new interpreter, without this one's memory and caches."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def peak_resident_bytes() -> int:
    """The largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux, ru_maxrss keeps the parent's peak over fork and exec
        return int(re.search(r"^VmHWM:\s*(\d+)", status.read_text(), re.MULTILINE)[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak() -> int:
    """The bytes of this process now, from which a new peak is counted where the system can do that (Linux)."""
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_resident_bytes()


def machine(modules: Sequence[ModuleType]) -> dict[str, str]:
    """Processor, cores, load, and versions of Python and ``modules``."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)", info.read_text() if info.is_file() else "", re.MULTILINE)
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f} (mean of the last minute)",
        "Python": platform.python_version(),
    } | {module.__name__: module.__version__ for module in modules}
