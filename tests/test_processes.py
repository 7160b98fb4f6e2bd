"""Signals to stop, processes that end with their parent, one training in a folder."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from filelock import UnixFileLock

from clim import processes
from clim.errors import UserError
from clim.processes import LOCK, STOP_SIGNALS, Stopped, StopSignals, hold_folder

CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_noted_and_raised_only_in_an_evaluation(number):
    before = [signal.getsignal(n) for n in STOP_SIGNALS]
    with StopSignals() as stop:
        with stop.at_once():
            pass
        send(number)
        send(number)  # launchers repeat it
        assert stop.asked == number and stop.agreed == 0
        with pytest.raises(Stopped) as ended, stop.at_once():
            raise AssertionError("not reached")
        assert ended.value.code == CODES[number]
    with StopSignals() as stop, pytest.raises(Stopped), stop.at_once():
        send(number)
    assert [signal.getsignal(n) for n in STOP_SIGNALS] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_late_second_signal_ends_the_process_at_once(monkeypatch, number):
    monkeypatch.setattr(processes, "STOP_SIGNALS", dict.fromkeys(STOP_SIGNALS, 0.0))
    child = os.fork()
    if child == 0:
        with StopSignals() as stop:
            send(signal.SIGUSR1)
            if stop.asked == signal.SIGUSR1:
                send(number)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number


FAMILY = """
import multiprocessing, os, signal, sys, time
from clim.processes import die_with_parent

def rank(early):
    if early:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(0.5)
    die_with_parent()
    multiprocessing.get_context("fork").Process(target=worker).start()
    os.write(1, b"x")
    time.sleep(60)

def worker():
    die_with_parent()
    os.write(1, b"x")
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=rank, args=(sys.argv[1] == "early",)).start()
    time.sleep(60)
"""


@pytest.mark.parametrize("when", ["early", "late"])
def test_ranks_and_their_workers_die_with_a_killed_launcher(tmp_path, when):
    script = tmp_path / "family.py"
    script.write_text(FAMILY)
    launcher = subprocess.Popen([sys.executable, script, when], stdout=subprocess.PIPE)
    if when == "late":
        assert launcher.stdout.read(2) == b"xx"
        launcher.kill()
    assert launcher.wait(30) == -signal.SIGKILL
    start = time.monotonic()
    assert launcher.stdout.read() == b"" and time.monotonic() < start + 40  # to its end: no process holds the pipe


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path."""
    code = f"import time; from clim.processes import hold_folder; hold_folder({str(tmp_path)!r}, wait=0)"
    process = subprocess.Popen([sys.executable, "-c", code + "; print(); time.sleep(60)"], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_one_training_in_a_folder(tmp_path, holder, monkeypatch, caplog):
    monkeypatch.setattr(processes, "_held", {})
    expected = rf"writes to {tmp_path} \(process {holder.pid} on .*, since 20\d\d-.* choose another OUTPUT_DIR"
    with pytest.raises(UserError, match=expected):
        hold_folder(tmp_path, wait=0)
    threading.Timer(0.3, holder.kill).start()  # the one before ends while this one waits
    hold_folder(tmp_path, wait=30)
    assert "waiting for it" in caplog.text
    assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    hold_folder(tmp_path, wait=0)  # again, in the same process


def test_a_file_system_without_locks_is_no_error(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(processes, "_held", {})
    number = errno.ENOLCK

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(UnixFileLock, "_acquire", refuse)
    hold_folder(tmp_path, wait=0)
    hold_folder(tmp_path, wait=0)
    assert caplog.text.count("has no locks") == 1
    number = errno.ENOSPC
    with pytest.raises(OSError, match="No space"):
        hold_folder(tmp_path / "other", wait=0)
