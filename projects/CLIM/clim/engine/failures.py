"""A user's mistake is one sentence, told once, whichever process met it; none waits for one that stopped."""

import sys
from contextlib import contextmanager

from detectron2.utils import comm
from torch.multiprocessing import ProcessRaisedException

from clim.errors import UserError

_MARK = f"{UserError.__module__}.{UserError.__qualname__}: "  # before the sentence in a traceback's last line
_TRACEBACK = "Traceback (most recent call last)"


def sentence(error: Exception) -> str | None:
    """What a :class:`UserError` says, also where it crossed processes as a traceback; None for other errors.

    DataLoader workers wrap the traceback in a UserError, spawned processes in a ProcessRaisedException.
    """
    before, mark, told = str(error).rpartition(_MARK)
    if mark and _TRACEBACK in before and _TRACEBACK not in told:
        return told.strip()
    return str(error) if isinstance(error, UserError) else None


@contextmanager
def together():
    """A :class:`UserError` inside is raised on all processes at the end of the block: the lowest rank's.

    Every process must come here, and none may talk to the others inside the block.
    """
    told, cause = "", None
    try:
        yield
    except UserError as error:
        told, cause = sentence(error), error
    first = next(filter(None, comm.all_gather(told)), None)
    if first:
        raise UserError(first) from cause


def run_cleanly(function, *args, **kwargs):
    """Call; a :class:`UserError`, here or in a spawned process, becomes a line on stderr and exit code 2."""
    try:
        return function(*args, **kwargs)
    except (UserError, ProcessRaisedException) as error:
        told = sentence(error)
        if told is None:
            raise
    print(f"error: {told}", file=sys.stderr)
    sys.exit(2)
