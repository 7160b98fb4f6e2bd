"""Signals of a process: asked once, repeated, in an evaluation; handlers come back."""

import os
import signal

import pytest

from clim.engine import stopping
from clim.engine.stopping import EXIT_CODE, STOP_SIGNALS, Stopped, StopSignals


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
        assert ended.value.code == EXIT_CODE == 143
    with StopSignals() as stop, pytest.raises(Stopped), stop.at_once():
        send(number)
    assert [signal.getsignal(n) for n in STOP_SIGNALS] == before


def test_a_late_second_signal_ends_the_process_at_once(monkeypatch):
    monkeypatch.setattr(stopping, "REPEATED", 0.0)
    child = os.fork()
    if child == 0:
        with StopSignals() as stop:
            send(signal.SIGUSR1)
            if stop.asked == signal.SIGUSR1:
                send(signal.SIGTERM)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
