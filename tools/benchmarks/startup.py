"""CPU seconds of a new process until it is ready."""

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from clim import Detector

from .inputs import Settings
from .sides import MINI
from .steps import STEPS, register, step_config
from .stopwatch import Spread, fresh, interleaved

WORKS = {  # {work: Python code}; MODEL is a model's file
    "Python": "",
    "clim --help": "from clim_commands.main import main; main(['--help'])",
    "import clim": "import clim",
    "import torch": "import torch",
    "Detector ready": "from clim import Detector; Detector(MODEL, device='cpu')",
}


def measure_startup(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """Start-up of a process."""
    model = fresh(save_model, settings, records)
    arms = {work: partial(cpu_of, f"MODEL = {model!r}; {code}") for work, code in WORKS.items()}
    seconds = interleaved(arms, repeats=settings.repeats, title="start-up")
    return [{"work": work, "cpu s": Spread.of(taken)} for work, taken in seconds.items()]


def save_model(settings: Settings, records: Sequence[dict]) -> str:
    """Path of a frozen model of the mini benchmark with random weights and two classes."""
    register(records)
    path = os.path.join(settings.folder, "frozen.pth")
    options = ("MODEL.VOCABULARY.NAMES", ["dog", "umbrella"], "DATASETS.TEST", ())
    mini = replace(settings, config_file=MINI, scale=1.0, device="cpu", overrides=options)
    Detector(step_config(mini, STEPS["CLIM 2+2+2"])).freeze(path)
    return path


def cpu_of(code: str) -> float:
    """CPU seconds of a new Python that runs ``code``."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
