"""Errors that a user can correct: the program shows one sentence, whichever process raises it."""

import difflib
import importlib.util
import sys
from collections.abc import Iterable
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in a config, a path or a file; the program shows its sentence without a traceback."""


_MARK = f"{UserError.__module__}.{UserError.__qualname__}: "  # before the sentence in a traceback's last line
_TRACEBACK = "Traceback (most recent call last)"


def sentence(error: Exception) -> str | None:
    """The sentence of a :class:`UserError`; None for other errors.

    In a worker of a DataLoader or another process, torch puts the traceback into the message of a new error.
    """
    before, mark, message = str(error).rpartition(_MARK)
    if mark and _TRACEBACK in before and _TRACEBACK not in message:
        return message.strip()
    return str(error) if isinstance(error, UserError) else None


@contextmanager
def raise_on_all_ranks(value=None):
    """At the end of the block, raise the :class:`UserError` of the lowest rank that has one, on all ranks.

    Every process must enter the block, and no process may wait for another one in it. Gives a list, which holds the
    ``value`` of each rank after the block: the same exchange carries it.
    """
    from detectron2.utils import comm

    message, cause, values = "", None, []
    try:
        yield values
    except UserError as error:
        message, cause = sentence(error), error
    messages, values[:] = zip(*comm.all_gather((message, value)), strict=True)
    first = next(filter(None, messages), None)
    if first:
        raise UserError(first) from cause


def run_cleanly(function, *args, **kwargs):
    """Call ``function``; a :class:`UserError`, also of another process, becomes a line on stderr and exit code 2."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        message = sentence(error)
        if message is None:
            raise
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


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


def registered(registry, name: str, *, key: str, otherwise: str = ""):
    """Entry ``name`` of a Registry or dict. UserError with the config's ``key`` and ``otherwise`` for unknown names."""
    if name not in registry:
        hint, known = near(name, dict(registry)), ", ".join(sorted(dict(registry)))
        raise UserError(f"{key} {name!r} is unknown{hint or ':'} choose one of {known}{otherwise}.")
    return registry.get(name)
