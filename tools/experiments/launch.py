"""What a training runs on: processes, machine, and the commit of the code."""

import os
import platform
import re
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Launch(NamedTuple):
    """Processes of a training, in the words of train_net.py. Every machine has its own ``machine_rank``."""

    num_gpus: int = 1
    num_machines: int = 1
    machine_rank: int = 0
    dist_url: str = ""

    def words(self) -> list[str]:
        words = ["--num-gpus", str(self.num_gpus)] if self.num_gpus != 1 or self.num_machines > 1 else []
        if self.num_machines > 1:
            words += ["--num-machines", str(self.num_machines), "--machine-rank", str(self.machine_rank)]
        alone = self.num_machines == 1 and self.num_gpus > 1  # another training may run on the same machine
        address = self.dist_url or ("auto" if alone else "")
        return words + (["--dist-url", address] if address else [])


ONE_PROCESS = Launch()


def commit_of_code() -> str:
    """The commit of this code, with a "+" if tracked files have been changed since; "" outside a git repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--dirty=+"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return ""


def describe_machine(launch: Launch, *, device: str) -> str:
    """ "8 x NVIDIA A100, torch 2.14.1", or where ``device`` is "cpu" the number and model of its cores."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        device = f"{launch.num_gpus * launch.num_machines} x {torch.cuda.get_device_name()}"
    else:
        info = Path("/proc/cpuinfo")
        models = re.findall(r"(?m)^model name\s*: (.+)$", info.read_text() if info.is_file() else "")
        device = f"{os.cpu_count()} cores of {models[0] if models else platform.machine()}"
    return f"{device}, torch {torch.__version__}"
