"""A script runs with a data root, adds its output to a log, and its failure is told."""

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
    scripts.run_script("say.py", [0, tmp_path], makes=file, root=tmp_path / "data", log=log)
    with pytest.raises(UserError, match=f"tools/say.py stopped with exit code 3; its log is {log}"):
        scripts.run_script("say.py", [3], makes=file, root=tmp_path, log=log)
    assert log.read_text() == f"['0', '{tmp_path}'] {tmp_path}/data 1\n['3'] {tmp_path} 1\n"


def test_a_finished_file_stays_and_a_script_that_outlived_its_command_is_awaited(tmp_path):
    log, file = tmp_path / "say.log", tmp_path / "made"
    given = {"makes": file, "root": tmp_path, "log": log}
    later = threading.Thread(target=scripts.run_script, args=("no_script.py", []), kwargs=given)
    with open(log, "ab") as stream:  # the earlier script has it as its output
        fcntl.flock(stream, fcntl.LOCK_EX)
        later.start()
        later.join(0.2)
        assert later.is_alive()
        file.touch()
    later.join(60)
    assert not later.is_alive() and log.read_text() == ""
