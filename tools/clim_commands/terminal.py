"""What commands show on a terminal: the progress of an evaluation on stderr, tables on stdout, both by rich."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


@contextmanager
def evaluation_progress() -> Iterator[None]:
    """In the block, Detectron2's ``inference_on_dataset`` shows a progress bar for each set in place of its log."""
    logger, handler = logging.getLogger("detectron2.evaluation.evaluator"), logging.Handler()
    before = logger.level, logger.propagate
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        handler.emit = lambda record: _advance(bars, record.getMessage())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.level, logger.propagate = before


def _advance(bars: Progress, message: str) -> None:
    """Follow the lines "Start inference on 250 batches", "Inference done 11/250 …", "Total inference time: …"."""
    if started := re.match(r"Start inference on (\d+)", message):
        bars.add_task(f"evaluating, set {len(bars.tasks) + 1}", total=int(started[1]))
    elif done := re.match(r"Inference done (\d+)", message):
        bars.update(bars.task_ids[-1], completed=int(done[1]))
    elif message.startswith("Total inference time"):
        bars.update(bars.task_ids[-1], completed=bars.tasks[-1].total)


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
