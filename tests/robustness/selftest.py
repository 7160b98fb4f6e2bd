"""One case of each verdict, whose name is the verdict."""

import time
from pathlib import Path

from clim.errors import UserError

from .damage import put
from .runner import MARKER, Case, Entry, same


def build(folder: Path) -> Path:
    """A world of one file."""
    put(folder / "words/words.txt", "dog")
    return folder


def tell(world: Path):
    raise UserError("words.txt is empty: write words.")


def call(function) -> Entry:
    return Entry(function.__name__, function, seconds=1)


def nothing(world: Path):
    pass


def fine(world: Path) -> int:
    return 1


def other(world: Path) -> int:
    return 2


CASES = [
    Case("self-test", "told", call(tell), nothing, ("words.txt", "empty|broken")),
    Case("self-test", "handled", call(fine), nothing, None, same),
    Case("self-test", "code", call(lambda world: Path(MARKER).touch()), nothing),
    Case("self-test", "lost", call(lambda world: Path("words/words.txt").unlink()), nothing),
    Case("self-test", "hang", call(lambda world: time.sleep(60)), nothing),
    Case("self-test", "traceback", call(lambda world: 1 / 0), nothing),
    Case("self-test", "wrong", call(fine), nothing, None, same, changed=call(other)),
    Case("self-test", "vague", call(tell), nothing, ("words.csv",)),
    Case("self-test", "refused", call(fine), nothing, None, same, changed=call(tell)),
    Case("self-test", "silent", call(fine), nothing, None, same, ("1 left out",)),
]
