"""The processes of a training: signals, their end together with the process that started them, one run in a folder."""

import errno
import gc
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.utils import comm
from filelock import FileLock, Timeout

from clim.errors import UserError

# {signal that asks to stop: s in which another is a copy}: Slurm, torchrun, mp.spawn and terminals repeat it
STOP_SIGNALS = {signal.SIGTERM: 10.0, signal.SIGUSR1: 10.0, signal.SIGINT: 1.0}
LOCK = "training.lock"  # file in OUTPUT_DIR: who trains there
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_held: dict[Path, FileLock] = {}
logger = logging.getLogger(__name__)


class Stopped(SystemExit):
    """Ends a training that has saved its state: 130 after Ctrl-C, else 143, which schedulers read as SIGTERM."""

    def __init__(self, number: int):
        super().__init__(128 + (number if number == signal.SIGINT else signal.SIGTERM))


class StopSignals:
    """In the block, the signals ask a training to stop after its step.

    ``asked`` is the signal that this process has got, ``agreed`` the one that all processes know of, or 0. Another
    signal, which is no copy of the first one, ends the process at once.
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
        if self.asked and time.monotonic() > self.since + STOP_SIGNALS[number]:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.asked:
            self.asked, self.since = number, time.monotonic()
        if self.interruptible:
            self.interruptible = False
            raise Stopped(self.asked)

    @contextmanager
    def at_once(self):
        """A signal, also an earlier one, raises :class:`Stopped` in the block."""
        self.interruptible = True
        try:
            if self.asked:
                raise Stopped(self.asked)
            yield
        finally:
            self.interruptible = False


def die_with_parent() -> None:
    """End this process, which multiprocessing has started, together with the one that started it (on Linux)."""
    from torch.multiprocessing import _prctl_pr_set_pdeathsig

    if parent := multiprocessing.parent_process():
        _prctl_pr_set_pdeathsig(signal.SIGKILL)
        if not parent.is_alive():  # it died before
            os._exit(1)


def gather_numbers(*numbers: float) -> list[list[float]]:
    """The ``numbers`` of each process, in rank order; all have as many. One small tensor of the host, in float64."""
    mine = torch.tensor(numbers, dtype=torch.float64)
    of_ranks = mine.repeat(comm.get_world_size(), 1)
    if len(of_ranks) > 1:
        torch.distributed.all_gather(list(of_ranks), mine, group=comm._get_global_gloo_group())
    return of_ranks.tolist()


def leave_group() -> None:
    """End the threads of this process's groups, after its last exchange.

    A thread of Gloo that frees a tensor while Python ends aborts the process ("terminate called without …").
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        comm._LOCAL_PROCESS_GROUP = None  # these hold groups too
        comm._get_global_gloo_group.cache_clear()
        comm.create_local_process_group.cache_clear()
        gc.collect()  # models hold the last references


def hold_folder(folder: str | os.PathLike, *, wait: float) -> None:
    """Let no other training write to ``folder`` until this process ends. UserError if one does after ``wait`` s."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder).resolve() / LOCK
    if path in _held:
        return
    lock = FileLock(path, fallback_to_soft=False, thread_local=False)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if wait:
                logger.warning("Another training still writes to %s: waiting for it, at most %g s.", folder, wait)
            lock.acquire(timeout=wait)
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    except Timeout as error:
        holder = path.read_text(errors="replace") or "it has just begun"
        remedy = "wait until it ends, or choose another OUTPUT_DIR"
        raise UserError(f"Another training writes to {folder} ({holder}): {remedy}.") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("The file system of %s has no locks: see that no other training writes there.", folder)
    _held[path] = lock
