"""Errors that a user can correct: the program shows one sentence, whichever process raises it."""

import difflib
import errno
import importlib.util
import os
import re
import select
import signal
import sys
from collections.abc import Iterable
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in a config, a path or a file; the program shows its sentence without a traceback."""


_TRACEBACK = "Traceback (most recent call last):\n"
_SPACE = "free space there, or name another folder; a training then goes on with --resume"
_SOURCE = "look after the disk or network of this folder, then try again; a training goes on with --resume"
# What no program can mend, with or without the name of a file.
_OF_THE_SYSTEM = {
    errno.ENOSPC: _SPACE, errno.EDQUOT: _SPACE, errno.EROFS: "name a folder that can be written to",
    errno.EIO: _SOURCE, errno.ESTALE: _SOURCE, errno.EMFILE: "raise the limit (ulimit -n 65536), or use fewer workers",
}  # fmt: skip
# What the user can mend where a file has a name. Without a name it is a mistake of the program.
_OF_A_FILE = {
    errno.ENOENT: "correct the path, or make this file or folder",
    errno.ENOTDIR: "a part of this path is a file: rename that file, or name another path",
    errno.EISDIR: "name a file, or remove the folder that is in its place",
}
_OTHERWISE = "name another path, or correct this one: its permissions, its links or what is in the way"
# (pattern of an error's class and text, sentence): libraries report these in words alone
_IN_WORDS = (
    # NumPy's, torch's and SQLite's words for a write that came to no end
    (r"\d+ requested and \d+ written|inline_container.*unexpected pos|PytorchStreamWriter failed|iostream error"
     r"|disk is full", f"No space left on the device: {_SPACE}."),
    (r"^[\w.]*MemoryError|can't allocate memory|out of memory|Insufficient memory",
     "There is not enough memory ({0}): use smaller batches or images, or see whether a file claims a wrong size."),
    (r"DataLoader worker .*(killed by signal|exited unexpectedly)",
     "A worker of the data loader ended ({0}), perhaps for lack of memory: set DATALOADER.NUM_WORKERS lower."),
    (r"^[\w.]*ProcessExitedException",
     "One of the processes ended: {0}. Its last lines say why, or memory was short. A training goes on with --resume."),
    (r"^[\w.]*ModuleNotFoundError: No module named '(?!clim)", "{0}: install this package."),  # Detectron2 has options
    (r"EADDRINUSE|address already in use", "--dist-url: its port is taken: use another one."),
    (r"trying to connect to|network addresses of .* cannot be retrieved",
     "--dist-url: the first process cannot be reached ({0}): correct its address, and start its machine too."),
    (r"(^[\w.]*Dist\w*Error|(?i:gloo/|nccl)).*(?i:timed? ?out)",
     "Another process did not answer within DISTRIBUTED.TIMEOUT s: see whether its machine still runs, then go on with "
     "--resume; raise the key if a step may take longer."),
    (r"^[\w.]*Dist\w*Error|(?i:gloo/|nccl error)",
     "Another process of this program ended or cannot be reached: its own last lines say why."),
)  # fmt: skip


def sentence(error: BaseException) -> str | None:
    """What to tell about a :class:`UserError`, and about what a disk, a network or the memory denies; else None.

    In a worker of a DataLoader or another process, torch puts the traceback into the message of a new error.
    """
    text, kind = str(error), type(error)
    name, message = f"{kind.__module__}.{kind.__qualname__}", text.strip()
    if _TRACEBACK in text:  # its last lines, which are not indented
        last = re.search(r"^\S.*", text.rpartition(_TRACEBACK)[2], re.MULTILINE | re.DOTALL)
        name, _, message = last[0].strip().partition(": ") if last else (name, "", message)
    if isinstance(error, UserError) or name == f"{UserError.__module__}.{UserError.__qualname__}":
        return message
    if found := re.match(r"\[Errno (\d+)\] [^:]*(?:: (b?['\"].*))?$", message, re.DOTALL):
        number, path = int(found[1]), found[2]
        remedy = _OF_THE_SYSTEM.get(number) or (_OF_A_FILE.get(number, _OTHERWISE) if path else None)
        reason = os.strerror(number)
        # the names as Python writes them, so that a newline in one stays visible, but without quotes
        path = re.sub(r"'([^']+)'", r"\1", path or "")
        return remedy and (f"{path}: {reason[0].lower()}{reason[1:]}: {remedy}." if path else f"{reason}: {remedy}.")
    for number, remedy in _OF_THE_SYSTEM.items():
        if os.strerror(number) in message:
            return f"{' '.join(message.split())}: {remedy}."
    if name.endswith("UnicodeEncodeError"):
        known = isinstance(error, UnicodeEncodeError)
        place = f" of {ascii(error.object[max(0, error.start - 80) : error.end + 80])}" if known else ""
        return f"{message}{place}: rename this file, or correct this text, so that it is UTF-8."
    line = " ".join(message.split())
    told = (words for pattern, words in _IN_WORDS if re.search(pattern, f"{name}: {line}"))
    return next(told, "").format(line.partition(" Exception raised from ")[0] or name) or None


@contextmanager
def raise_on_all_ranks(*numbers: float):
    """At the end of the block, raise the error of the lowest rank that has one with a :func:`sentence`, on all ranks.

    Every process must enter the block with as many ``numbers``, and no process may wait for another one in it. Gives a
    list, which after the block holds a tuple for each number: its values on all ranks. The same exchange carries them.
    """
    from detectron2.utils import comm

    from clim.processes import gather_numbers

    message, cause, of_ranks = None, None, []
    try:
        yield of_ranks
    except Exception as error:
        message, cause = sentence(error), error
        if message is None:
            raise
    failed, *of_ranks[:] = zip(*gather_numbers(message is not None, *numbers), strict=True)
    if any(failed):
        raise UserError(next(filter(None, comm.all_gather(message)))) from cause


def run_cleanly(function, *args, **kwargs):
    """Call ``function``. An error with a :func:`sentence` becomes a line on stderr and exit code 2, Ctrl-C code 130.

    A pipe that closes early, as of ``| head``, ends the program without a word, with code 141. What the terminal
    cannot show, such as a file name that is no UTF-8, becomes an escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        result = function(*args, **kwargs)
        sys.stdout.flush()
        return result
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # another one ends the program at once
        message, code = "\ninterrupted\n", 128 + signal.SIGINT
    except Exception as error:
        message, code = sentence(error), 2
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            message, code = "", 128 + signal.SIGPIPE
        elif message is None:
            raise
        else:
            message = f"error: {message}\n"
    sys.stderr.write(message)
    try:
        sys.stdout.flush()
    except OSError:  # otherwise Python tries again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _nobody_reads() -> bool:
    """Whether stdout is a pipe without a reader."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextmanager
def telling(what: str, *, remedy: str):
    """Any error of the block becomes the UserError "``what`` (reason): ``remedy``."; a UserError stays as it is.

    For readers that may raise anything at a damaged file.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".replace("`", "").partition("\n")[0]
        reason = reason.partition(". ")[0][:160].rstrip(": .")
        raise UserError(f"{what} ({reason}): {remedy}.") from error


def require_packages(what: str, packages: Iterable[str]) -> None:
    """UserError if one of the extra ``packages``, which ``what`` needs, is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{what} needs {package}: pip install -r requirements-extras.txt")


def near(word: str, known: Iterable[str]) -> str:
    """ ": do you mean …?" with the name of ``known`` that is like ``word``; "" where none is."""
    same = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), same, n=1, cutoff=0.7)
    return f": do you mean {same[found[0]]}?" if found else ""
