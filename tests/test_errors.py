"""A user's mistake ends in one sentence and exit code 2, whichever process raises it."""

import errno
import os
import subprocess
import sys
import traceback

import numpy as np
import pytest
import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from clim.checkpoints.checkpointer import atomic_save
from clim.errors import UserError, raise_on_all_ranks, run_cleanly, sentence
from clim.files import write_json

SPAWNED = "\n\n-- Process 1 terminated with the following error:\n"


def mistake():
    try:
        {}["key"]
    except KeyError as error:
        raise UserError("no such key: give another.") from error


def bug_after_a_mistake(bug):
    try:
        mistake()
    except UserError:
        raise bug  # noqa: B904


def traceback_of(function, *args):
    try:
        function(*args)
    except Exception:
        return traceback.format_exc()


def launched():
    raise ProcessRaisedException(SPAWNED + traceback_of(mistake), 1, 4711)


@pytest.mark.parametrize("function", [mistake, launched])
def test_user_errors_become_one_line_and_exit_code_2(function, capsys):
    with pytest.raises(SystemExit) as caught:
        run_cleanly(function)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no such key: give another.\n"


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_cleanly(lambda: 1 / 0)
    assert run_cleanly(lambda x: x + 1, 1) == 2
    for bug in (ValueError("a bug"), ZeroDivisionError()):
        assert sentence(ProcessRaisedException(traceback_of(bug_after_a_mistake, bug), 0, 1)) is None
    assert sentence(ValueError("x")) is None


def test_the_sentence_of_a_loader_worker():
    wrapped = "Caught UserError in DataLoader worker process 0.\nOriginal " + traceback_of(mistake)
    assert sentence(UserError(wrapped)) == "no such key: give another."
    nested = "-- Process 0 terminated:\nTraceback (most recent call last):\nclim.errors.UserError: " + wrapped
    assert sentence(ProcessRaisedException(nested, 0, 1)) == "no such key: give another."


def circle(path):
    if not path.is_symlink():
        path.symlink_to(path)
    return path


def raising(error):
    raise error


SYSTEM = {
    "missing": (lambda d: open(d / "a"), "{d}/a: no such file or directory: correct the path"),
    "newline": (lambda d: open(d / "a\nb"), "{d}/a\\nb: no such"),
    "folder": (open, "{d}: is a directory: name a file"),
    "file": (lambda d: open(__file__ + "/a"), "test_errors.py/a: not a directory: a part of this path"),
    "circle": (lambda d: open(circle(d / "c")), "{d}/c: too many levels of symbolic links: name another"),
    "long": (lambda d: open(d / ("n" * 300)), "nnn: file name too long: name another path"),
    "rename": (lambda d: os.rename(d / "a", d / "b"), "{d}/a -> {d}/b: no such file"),
    "read-only": (lambda d: raising(OSError(errno.EROFS, "Read-only file system", "/a")), "/a: read-only file system"),
    "permission": (
        lambda d: raising(PermissionError(errno.EACCES, "Permission denied", "/a")),
        "/a: permission denied",
    ),
    "full": (lambda d: open("/dev/full", "wb", buffering=0).write(b"a"), "No space left on device: free space"),
    "numpy": (lambda d: np.zeros(9000).tofile("/dev/full"), "No space left on the device: free space"),
    "torch": (lambda d: torch.save({"a": torch.zeros(9999)}, "/dev/full"), "No space left on the device: free space"),
    "memory": (lambda d: np.zeros((10**6, 10**6, 10)), "not enough memory (Unable to allocate"),
    "name": (lambda d: "a\udcff.jpg".encode(), "'utf-8' codec can't encode character '\\udcff'"),
    "killed": (lambda d: raising(ProcessExitedException("process 1 ended", 1, 9, -9)), "process 1 ended"),
    "worker": (lambda d: raising(RuntimeError("DataLoader worker (pid 7) exited unexpectedly")), "NUM_WORKERS lower"),
    "gloo": (lambda d: raising(RuntimeError("[gloo/pair.cc:5] Connection closed")), "its own last lines say why"),
    "slow": (lambda d: raising(RuntimeError("[gloo/b.cc:7] Timed out waiting 10ms")), "DISTRIBUTED.TIMEOUT"),
}


@pytest.mark.parametrize("function, expected", SYSTEM.values(), ids=SYSTEM)
def test_what_disk_memory_and_processes_deny_is_told_in_any_process(tmp_path, function, expected):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function(tmp_path)
    told, elsewhere = caught.value, ProcessRaisedException(SPAWNED + traceback_of(function, tmp_path), 1, 2)
    for error in (told, elsewhere):
        assert expected.replace("{d}", str(tmp_path)) in sentence(error) and "\n" not in sentence(error)


def test_a_write_to_a_full_disk_names_its_file(tmp_path, monkeypatch):
    opened = open
    monkeypatch.setattr("builtins.open", lambda path, mode: opened("/dev/full", mode, buffering=0))
    with pytest.raises(OSError, match="No space") as caught:
        atomic_save({"a": torch.zeros(9999)}, tmp_path / "a.pth")
    assert sentence(caught.value).startswith(f"{tmp_path}/a.pth: no space left on device: ")
    monkeypatch.setattr("pathlib.Path.write_text", lambda *_: raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space") as caught:
        write_json(tmp_path / "a.json", [])
    assert sentence(caught.value).startswith(f"{tmp_path}/a.json: no space")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "No such file or directory"), OSError(errno.EBADF, "Bad")])
def test_a_mistake_of_the_program_is_no_users_error(error):
    assert sentence(error) is None


ENDS = {
    "interrupted": ("raise KeyboardInterrupt", 130, "interrupted"),
    "reader left": ("os.close(writer)\nos.close(reader)\nfor _ in range(9999): print('a line')", 141, ""),
    "reader left before the end": ("os.close(writer)\nos.close(reader)\nprint('a line')", 141, ""),
    "full": ("os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\nprint('a')", 2, "error: No space left on device: "),
    "bug": ("raise BrokenPipeError(32, 'Broken pipe')", 1, "BrokenPipeError"),
}


@pytest.mark.parametrize("code, status, expected", ENDS.values(), ids=ENDS)
def test_how_a_command_ends(code, status, expected):
    begin = "import os\nfrom clim.errors import run_cleanly\nreader, writer = os.pipe()\nos.dup2(writer, 1)\n"
    code = begin + f"run_cleanly(exec, {code!r}, globals())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    last = (done.stderr.splitlines() or [""])[-1]
    assert last.startswith(expected) and ("Traceback" in done.stderr) == (status == 1)


def test_raise_on_all_ranks_in_one_process():  # in two: engine/test_distributed.py
    with raise_on_all_ranks():
        pass
    with pytest.raises(UserError, match="^mine$") as caught, raise_on_all_ranks():
        raise UserError("mine")
    assert isinstance(caught.value.__cause__, UserError)
    with pytest.raises(KeyError), raise_on_all_ranks():
        raise KeyError("a bug")
    with pytest.raises(UserError, match="^/nowhere/a: no such file"), raise_on_all_ranks():
        open("/nowhere/a")
    with raise_on_all_ranks(2, 0.1) as of_ranks:
        assert of_ranks == []
    assert of_ranks == [(2.0,), (0.1,)]
    with pytest.raises(UserError, match="^mine$"), raise_on_all_ranks(7) as of_ranks:
        raise UserError("mine")
    assert of_ranks == [(7.0,)]
