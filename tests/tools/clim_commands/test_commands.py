"""The console script ``clim`` and the scripts that are the same commands: arguments are answered without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import clim_commands.eval
from clim_commands.main import main

ROOT = Path(__file__).parents[3]
LAZY = """
import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))  # as Python does for a script
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
UNFIT = ["predict", "--input", "a.jpg", "--config-file", "x.yaml", "--top", "-1"]


@pytest.mark.parametrize(
    "command, code",
    [
        (["clim", "eval", "--weights", "gone.pth"], 2),
        (["clim", "predict", "--input", "gone.jpg", "--config-file", "x.yaml"], 2),
        (["clim", *UNFIT], 2),
        (["clim", "inspect", "gone.yaml"], 2),
        (["clim", "serve", "--weights", "gone.pth"], 2),
        (["train_net.py", "--num-gpus", "two"], 2),
        (["clim", "predict", "--input", "gone.jpg"], 2),
    ],
)
def test_wrong_arguments_are_answered_without_torch(command, code, tmp_path):
    (tmp_path / "clim").write_text("from clim_commands.main import main\nmain()\n")
    command = [str(tmp_path / "clim") if command[0] == "clim" else command[0], *command[1:]]
    done = subprocess.run([sys.executable, "-c", LAZY, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"{code} False", done.stderr


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def interrupted(args):
        """Score."""
        raise KeyboardInterrupt

    monkeypatch.setattr(clim_commands.eval, "eval", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["eval"])
    assert stopped.value.code == 130 and capsys.readouterr().err == "\ninterrupted\n"


def test_reproduce_finds_the_packages_that_are_not_installed(tmp_path):
    """An installed clim has its own packages alone: not those beside it in tools/."""
    for package in ("projects/CLIM/clim", "tools/clim_commands", "train_net.py"):
        (tmp_path / Path(package).name).symlink_to(ROOT / package)
    program = "from clim_commands.main import main; main()"
    words = ["reproduce", "--scale", "mini", "--table", "2b", "--report", "tables.md"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=tmp_path, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (2, b"error: output/reproduce/mini holds no finished run of --table 2b.\n")
    assert not (tmp_path / "tables.md").exists()
