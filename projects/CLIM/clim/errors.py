"""Errors that a user can correct: one sentence, shown once, whichever process raises them.

This module imports Detectron2 only when it is used, so that a command can report a mistake without it.
"""

import sys
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in a config, a path or a file: one sentence, shown without a traceback."""


_MARK = f"{UserError.__module__}.{UserError.__qualname__}: "  # before the sentence in a traceback's last line
_TRACEBACK = "Traceback (most recent call last)"


def sentence(error: Exception) -> str | None:
    """The sentence of a :class:`UserError`, also of another process; None for other errors.

    DataLoader workers wrap the traceback in a UserError, spawned processes in a ProcessRaisedException.
    """
    before, mark, message = str(error).rpartition(_MARK)
    if mark and _TRACEBACK in before and _TRACEBACK not in message:
        return message.strip()
    return str(error) if isinstance(error, UserError) else None


@contextmanager
def raise_on_all_ranks():
    """At the end of the block, raise a :class:`UserError` of any process on all: that of the lowest rank.

    Every process must enter the block, and none may wait for another one in it.
    """
    from detectron2.utils import comm

    message, cause = "", None
    try:
        yield
    except UserError as error:
        message, cause = sentence(error), error
    first = next(filter(None, comm.all_gather(message)), None)
    if first:
        raise UserError(first) from cause


def run_cleanly(function, *args, **kwargs):
    """Call; a :class:`UserError`, also of a spawned process, becomes a line on stderr and exit code 2."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        message = sentence(error)
        if message is None:
            raise
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def registered(registry, name: str, *, key: str, otherwise: str = ""):
    """The class or function called ``name``, or a UserError with the known names.

    Args:
        registry: a Registry of fvcore.
        key: the config's, for the message; ``otherwise``: what else it may be.
    """
    if name not in registry:
        known = ", ".join(sorted(n for n, _ in registry))
        raise UserError(f"{key} {name!r} is unknown: choose one of {known}{otherwise}.")
    return registry.get(name)
