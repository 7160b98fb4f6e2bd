"""Run a script of tools/ before a training, in its own process."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from clim.errors import UserError

from .launch import ROOT

TOOLS = ROOT / "tools"


def run_script(name: str, arguments: Sequence, *, makes: Path, root: Path, log: Path) -> None:
    """``python tools/NAME ARGUMENTS`` with the data root ``root``, on one thread, unless the file ``makes`` is there.

    Its output is appended to ``log``. Raises UserError if it fails.
    """
    with open(log, "ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # until the script ends, too, if it outlives a killed command
        if makes.is_file():
            return
        code = subprocess.run(
            [sys.executable, str(TOOLS / name), *map(str, arguments)], stdout=stream, stderr=stream,
            env=os.environ | {"DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1"},
        ).returncode  # fmt: skip
    if code != 0:
        raise UserError(f"tools/{name} stopped with exit code {code}; its log is {log}.")
