"""A script runs with a data root, adds its output to a log, and its failure is told; a finished file stays."""

import fcntl
import threading

import pytest

from clim.errors import UserError
from experiments import scripts


def test_a_script_has_its_arguments_and_data_root_and_a_failure_names_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(scripts, "TOOLS", tmp_path)
    (tmp_path / "say.py").write_text(
        "import os, sys\nprint(sys.argv[1:], os.environ['DETECTRON2_DATASETS'], os.environ['OMP_NUM_THREADS'])\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    log = tmp_path / "say.log"
    file = tmp_path / "made"
    scripts.run_script("say.py", [0, tmp_path], output=file, root=tmp_path / "data", log=log)
    with pytest.raises(UserError, match=f"tools/say.py stopped with exit code 3; its log is {log}"):
        scripts.run_script("say.py", [3], output=file, root=tmp_path, log=log)
    told = [f"['0', '{tmp_path}', '--output', '{file}'] {tmp_path}/data 1", f"['3', '--output', '{file}'] {tmp_path} 1"]
    assert log.read_text().splitlines() == told


@pytest.mark.parametrize("last", [None, "made.json"])
def test_a_finished_file_stays_until_its_arguments_or_inputs_change(tmp_path, monkeypatch, last):
    """Without its last file it is not finished."""
    monkeypatch.setattr(scripts, "TOOLS", tmp_path)
    lines = ["import sys", "from pathlib import Path", "file = Path(sys.argv[-1])", "file.write_text('made')"]
    (tmp_path / "make.py").write_text("\n".join([*lines, "file.with_suffix('.json').touch()", "print('ran')"]))
    weights, file, log = (tmp_path / name for name in ("weights", "made.npy", "log"))
    parts = tmp_path / "made.npy.parts"  # of other inputs: it goes with the file
    more = {"written_last": tmp_path / last} if last else {}
    for boxes, content, runs in ((5, "a", 1), (5, "a", 1), (6, "a", 2), (6, "b", 3), (6, "b", 3)):
        weights.write_text(content)
        parts.mkdir(exist_ok=True)
        before = log.read_text().count("ran") if log.exists() else 0
        scripts.run_script("make.py", [weights, "--boxes", boxes], output=file, root=tmp_path, log=log, **more)
        assert log.read_text().count("ran") == runs and parts.exists() == (before == runs)
    (tmp_path / last if last else file).unlink()
    parts.mkdir(exist_ok=True)
    scripts.run_script("make.py", [weights, "--boxes", 6], output=file, root=tmp_path, log=log, **more)
    assert log.read_text().count("ran") == 4 and file.is_file() and parts.exists()  # from which a killed script goes on


def test_a_script_that_outlived_its_command_is_awaited(tmp_path):
    log, file = tmp_path / "say.log", tmp_path / "made"
    given = {"output": file, "root": tmp_path, "log": log}
    later = threading.Thread(target=scripts.run_script, args=("no_script.py", []), kwargs=given)
    with open(log, "ab") as stream:  # the earlier script has it as its output
        fcntl.flock(stream, fcntl.LOCK_EX)
        later.start()
        later.join(0.2)
        assert later.is_alive()
        file.with_name("made.made_from.json").write_text("[]")
        file.touch()
    later.join(60)
    assert not later.is_alive() and log.read_text() == ""
