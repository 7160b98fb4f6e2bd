"""What commands show on a terminal while they work and at their end: progress on stderr, tables on stdout, by rich."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

T = TypeVar("T")


def progress_bars() -> Progress:
    """Bars with count, elapsed and remaining time. In a file, which is no terminal, the last state alone."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True))


def track(items: Iterable[T], description: str, *, total: int | None = None) -> Iterator[T]:
    """``items`` one by one, with a progress bar; ``total``: their number, by default their length if they have one."""
    with progress_bars() as bars:
        yield from bars.track(items, total=total, description=description)


@contextmanager
def evaluation_progress() -> Iterator[None]:
    """In the block, Detectron2's ``inference_on_dataset`` shows a progress bar in place of lines in a log."""
    logger = logging.getLogger("detectron2.evaluation.evaluator")
    level = logger.level
    with progress_bars() as bars:
        handler = _InferenceBars(bars)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = True


class _InferenceBars(logging.Handler):
    """A bar for each data set, from Detectron2's lines "Start inference on 250 batches", "Inference done 11/250"."""

    def __init__(self, bars: Progress):
        super().__init__()
        self.bars, self.task, self.sets = bars, None, 0

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if started := re.match(r"Start inference on (\d+)", message):
            self.sets += 1
            self.task = self.bars.add_task(f"evaluating, set {self.sets}", total=int(started[1]))
        elif done := re.match(r"Inference done (\d+)/(\d+)", message):
            self.bars.update(self.task, completed=int(done[1]))
        elif message.startswith("Total inference time"):
            self.bars.update(self.task, completed=self.bars.tasks[self.task].total)


def print_table(head: Sequence[str], rows: Iterable[Sequence], *, title: str = "") -> None:
    """Print a table: text on the left, numbers (None: a dash) on the right with one decimal, integers as they are."""
    table = Table(title=Text(title, "bold") if title else None, title_justify="left")
    rows = [list(row) for row in rows]
    for i, name in enumerate(head):
        is_text = any(isinstance(row[i], str) for row in rows)
        table.add_column(name, justify="left" if is_text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    Console().print(table)


def _cell(value) -> str:
    if value is None or value != value:  # nan
        return "–"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
