"""A clean stop: SIGTERM and SIGUSR1 let a training save its state, so that a scheduler can start it again."""

import os
import signal
import threading
import time
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = 128 + signal.SIGTERM  # 143: schedulers read it as "ended by SIGTERM", not as an error of the program
REPEATED = 10.0  # s in which another signal is the same one: Slurm, torchrun and mp.spawn all pass it on


class Stopped(SystemExit):
    """Ends a training that has saved its state."""


class StopSignals:
    """In the block, the signals ask a training to stop after its step; Ctrl-C (SIGINT) still ends it at once.

    ``asked`` is the signal that this process has got, ``agreed`` the one that all processes know of, or 0. A signal
    more than REPEATED s after the first one ends the process at once.
    """

    def __init__(self):
        self.asked = self.agreed = 0
        self.since, self.interruptible = 0.0, False

    def __enter__(self):
        able = threading.current_thread() is threading.main_thread()  # Python's rule
        self.before = {number: signal.signal(number, self.receive) for number in STOP_SIGNALS if able}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def receive(self, number: int, _) -> None:
        if self.asked and time.monotonic() > self.since + REPEATED:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.asked:
            self.asked, self.since = number, time.monotonic()
        if self.interruptible:
            self.interruptible = False
            raise Stopped(EXIT_CODE)

    @contextmanager
    def at_once(self):
        """A signal, also an earlier one, raises :class:`Stopped` in the block."""
        self.interruptible = True
        try:
            if self.asked:
                raise Stopped(EXIT_CODE)
            yield
        finally:
            self.interruptible = False
