"""Run a script of tools/ before a training, in its own process."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from clim.errors import UserError
from clim.files import write_json
from clim_commands.outputs import read_note

from .launch import ROOT
from .training import digest

TOOLS = ROOT / "tools"


def run_script(
    name: str, arguments: Sequence, *, output: Path, root: Path, log: Path, written_last: Path | None = None
) -> None:
    """``python tools/NAME ARGUMENTS --output OUTPUT`` with the data root ``root``, on one thread.

    A finished file stays, if it was made from the same arguments and files. ``written_last`` is the script's last file,
    if it writes more than ``output``. What the script prints is appended to ``log``. Raises UserError if it fails.
    """
    written_last = written_last or output
    note = output.with_name(f"{output.name}.made_from.json")
    command = [sys.executable, str(TOOLS / name), *map(str, arguments), "--output", str(output)]
    with open(log, "ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # until the script ends, too, if it outlives a killed command
        inputs = list(map(_text_or_digest, arguments))
        if read_note(note, kind=list[str], remedy="remove it") != inputs:
            written_last.unlink(missing_ok=True)
            shutil.rmtree(f"{output}.parts", ignore_errors=True)  # finished images of tools/pseudo_label.py
            write_json(note, inputs)
        if written_last.is_file():
            return
        environment = os.environ | {"DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=stream, stderr=stream, env=environment).returncode
    if code != 0:
        raise UserError(f"tools/{name} stopped with exit code {code}; its log is {log}.")


def _text_or_digest(argument: object) -> str:
    """The SHA-256 of a file, else the argument's text."""
    path = Path(str(argument))
    return digest(path) if path.is_file() else str(argument)
