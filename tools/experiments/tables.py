"""Tables of rows: what they show, and how they become Markdown."""

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clim.errors import UserError
from clim.files import read_text, replacing

from .rows import Row, SetUp, datasets_of, finished
from .training import RECORD

AP50 = {"AP50_novel": "AP50 novel", "AP50_base": "AP50 base", "AP50_all": "AP50 all"}  # metrics of a table


class Entry(NamedTuple):
    """A line of a table: the training on the mini benchmark that it shows."""

    name: str
    mini: Row


class Table(NamedTuple):
    """A table of trainings.

    name: the word of ``clim reproduce --table``, which several tables may share.
    metrics: {key of a run's results: heading}.
    figures: {key: figure} of (a run's results, its data root), more keys for ``metrics``.
    drawings: {file name: called with (output, seeds, path) to draw it}.
    pairs: two entries each, by name: a line shows what the second one adds to the first, seed by seed.
    """

    name: str
    title: str
    entries: Sequence[Entry]
    metrics: Mapping[str, str]
    set_up: SetUp
    seeds: tuple[int, ...] = (0, 1, 2)
    figures: Callable[[dict, Path], dict] = lambda results, root: {}
    drawings: Mapping[str, Callable[[Path, Sequence[int], Path], None]] = {}
    pairs: Sequence[tuple[str, str]] = ()

    @property
    def heading(self) -> str:
        return (
            f"Mini Table {self.name}: {self.title}"
            if self.name[0].isdigit()
            else self.title[0].upper() + self.title[1:]
        )

    def found(self, entry: Entry, output: Path, seed: int) -> dict | None:
        """All figures of an entry, or None if it is not finished."""
        folder = entry.mini.folder(output, seed)
        if not (results := finished(folder)):
            return None
        results = results | self.figures(results, datasets_of(output, seed))
        if missing := [key for key in self.metrics if not isinstance(results.get(key), float | int | None)]:
            raise UserError(f"{folder / RECORD}: {missing[0]} is no number: remove {folder} to train this row anew.")
        return results


def markdown(table: Table, *, output: Path, seeds: Sequence[int]) -> list[str]:
    """Lines of a table: mean ± standard deviation over the finished seeds, and the first metric by seed."""
    metrics = table.metrics
    first = next(iter(metrics))
    lines = [f"| | {' | '.join(metrics.values())} | {metrics[first]}, by seed |", "|---" * (len(metrics) + 2) + "|"]
    all_found = {entry.name: [table.found(entry, output, seed) for seed in seeds] for entry in table.entries}
    for name, found in all_found.items():
        first_figures = [result and result.get(first) for result in found]
        by_seed = ", ".join("–" if figure is None else f"{figure:.1f}" for figure in first_figures)
        cells = [*(spread(found, metric) for metric in metrics), by_seed]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for before, after in table.pairs:
        gains = {metric: differences(all_found[before], all_found[after], metric) for metric in metrics}
        by_seed = ", ".join("–" if gain is None else f"{gain:+.1f}" for gain in gains[first])
        cells = [*map(paired_spread, gains.values()), by_seed]
        lines.append(f"| {after} − {before} | {' | '.join(cells)} |")
    return lines


def report(path: Path, tables: Mapping[str, Sequence[str]]) -> str:
    """Write {title: lines of a table} into ``path``, and return the new text.

    In an existing file, a table replaces the table of the same title, which stands between two marks. New tables come
    last. Text around the marks stays.
    """
    text = read_text(path, remedy="name another --report") if os.path.lexists(path) else ""
    written = []
    for title, lines in tables.items():
        begin, end = f"<!-- table: {title} -->", f"<!-- end: {title} -->"
        if begin in text and end not in text.partition(begin)[2]:
            raise UserError(f"{path} has the line {begin} without {end} below it: add that line where the table ends.")
        block = "\n".join([begin, f"### {title}", "", *lines, "", end])
        before, marked, rest = text.partition(begin)
        after = rest.partition(end)[2] if marked else "\n"
        text = f"{before}{block}{after}" if marked or not before else f"{before.rstrip()}\n\n{block}{after}"
        written += [f"### {title}", "", *lines, ""]
    with replacing(path) as partial:
        partial.write_text(text, "utf-8")
    return "\n".join(written)


def spread(found: Sequence[dict | None], metric: str) -> str:
    """A cell: mean ± standard deviation over the finished seeds."""
    values = [result[metric] for result in found if result and result.get(metric) is not None]
    if not values:
        return "not run"
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def differences(before: Sequence[dict | None], after: Sequence[dict | None], metric: str) -> list[float | None]:
    """What ``after`` adds to ``before`` in each seed; None where one of them is not finished or has no figure."""
    figures = ([result and result.get(metric) for result in found] for found in (before, after))
    return [None if None in pair else pair[1] - pair[0] for pair in zip(*figures, strict=True)]


def paired_spread(gains: Sequence[float | None]) -> str:
    """A cell: mean ± standard deviation of the differences, and the 95 % interval of their mean (Student's t)."""
    found = [gain for gain in gains if gain is not None]
    if len(found) < 2:
        return f"{found[0]:+.1f}" if found else "not run"
    from scipy.stats import t  # takes a second

    mean, deviation = statistics.mean(found), statistics.stdev(found)
    half = t.ppf(0.975, len(found) - 1) * deviation / len(found) ** 0.5
    return f"{mean:+.1f} ± {deviation:.1f} (95 %: {mean - half:+.1f} to {mean + half:+.1f})"
