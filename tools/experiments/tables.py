"""Tables of rows: what they show, and how they become Markdown."""

import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clim.errors import UserError
from clim.files import data_root, read_text, replacing

from .rows import Row, SetUp, datasets_of, finished
from .training import RECORD

AP50 = {"AP50_novel": "AP50 novel", "AP50_base": "AP50 base", "AP50_all": "AP50 all"}  # metrics of a table


class Entry(NamedTuple):
    """A line of a table: its trainings on the mini benchmark and at full size, and what the paper gives.

    published: {heading of a metric: figure}. The paper quotes an entry without trainings from another paper; if it has
    no figure either, we have not found one.
    """

    name: str
    mini: Row | None = None
    full: Row | None = None
    published: Mapping[str, float] = {}

    @property
    def quoted(self) -> bool:
        return not (self.mini or self.full)


class Table(NamedTuple):
    """A table of trainings.

    name: the word of ``clim reproduce --table``, which several tables may share.
    metrics: {key of a run's results: heading}, on the mini benchmark, and at full size unless ``full_metrics`` differ.
    set_up: makes the mini benchmark's files of a seed; None for a table at full size alone.
    seeds: on the mini benchmark.
    figures: {key: figure} of (a run's results, its data root), more keys for ``metrics``.
    drawings: {file name: called with (output, seeds, path) to draw it} from the mini benchmark's runs.
    pairs: two entries each, by name: a line shows what the second one adds to the first, seed by seed.
    """

    name: str
    title: str
    entries: Sequence[Entry]
    metrics: Mapping[str, str]
    set_up: SetUp | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    figures: Callable[[dict, Path], dict] = lambda results, root: {}
    drawings: Mapping[str, Callable[[Path, Sequence[int], Path], None]] = {}
    pairs: Sequence[tuple[str, str]] = ()
    full_metrics: Mapping[str, str] | None = None

    def heading(self, scale: str) -> str:
        if self.name[0].isdigit():
            return f"{'Mini ' if scale == 'mini' else ''}Table {self.name}: {self.title}"
        return self.title[0].upper() + self.title[1:] + (", full size" if scale == "full" else "")

    def headings(self, scale: str) -> Mapping[str, str]:
        """{key of a run's results: heading}."""
        return self.full_metrics or self.metrics if scale == "full" else self.metrics

    def rows(self, scale: str) -> list[Row]:
        return [row for entry in self.entries if (row := getattr(entry, scale))]

    def found(self, entry: Entry, output: Path, seed: int, *, scale: str = "mini") -> dict | None:
        """All figures of an entry, or None if it is not finished."""
        row = getattr(entry, scale)
        if not (record := finished(row, output, seed)):
            return None
        results = record["results"]
        results = results | self.figures(results, datasets_of(output, seed) if scale == "mini" else data_root())
        keys = self.headings(scale)
        if missing := [key for key in keys if not isinstance(results.get(key), float | int | None)]:
            folder = row.folder(output, seed)
            raise UserError(f"{folder / RECORD}: {missing[0]} is no number: remove {folder} to train this row anew.")
        return results


def markdown(table: Table, *, output: Path, seeds: Sequence[int], scale: str = "mini") -> list[str]:
    """Lines of a table: mean ± standard deviation (number of seeds), the paper's figure, the first metric by seed.

    Below it are the command, and the commits and machines of the runs.
    """
    headings = table.headings(scale)
    first = next(iter(headings))
    entries = [entry for entry in table.entries if getattr(entry, scale) or (scale == "full" and entry.quoted)]
    papers = {heading for entry in entries for heading in entry.published}
    head = [word for h in headings.values() for word in ([h, f"{h}, paper"] if h in papers else [h])]
    head.append(f"{headings[first]}, by seed")
    lines = [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    all_found = {}
    for entry in entries:
        found = [None if entry.quoted else table.found(entry, output, seed, scale=scale) for seed in seeds]
        all_found[entry.name] = found
        cells = []
        for key, heading in headings.items():
            cells.append("" if entry.quoted else spread(found, key))
            if heading in papers:
                cells.append(f"{entry.published[heading]:.1f}" if heading in entry.published else "")
        known = "quoted" if entry.published else "quoted; figure not verified here"
        name = f"{entry.name} ({known})" if entry.quoted else entry.name
        by_seed = "" if entry.quoted else each(result and result.get(first) for result in found)
        lines.append(f"| {name} | {' | '.join([*cells, by_seed])} |")
    for before, after in (pair for pair in table.pairs if all_found.keys() >= set(pair)):  # not of the other scale
        gains = {key: differences(all_found[before], all_found[after], key) for key in headings}
        cells = []
        for key, heading in headings.items():
            cells += [paired_spread(gains[key])] + ([""] if heading in papers else [])
        lines.append(f"| {after} − {before} | {' | '.join([*cells, each(gains[first], sign='+')])} |")
    return [*lines, "", provenance(table, output=output, seeds=seeds, scale=scale)]


def each(figures: Iterable[float | None], *, sign: str = "") -> str:
    """A cell: the figure of each seed."""
    return ", ".join("–" if figure is None else f"{figure:{sign}.1f}" for figure in figures)


def provenance(table: Table, *, output: Path, seeds: Sequence[int], scale: str) -> str:
    """A sentence: the command, and commits, seeds and machines of the table's finished runs."""
    runs = ((seed, finished(row, output, seed)) for row in table.rows(scale) for seed in seeds)
    done = [(seed, record) for seed, record in runs if record]
    parts = [f"`clim reproduce --scale {scale} --table {table.name}`"]
    for name, values in (
        ("commit", {record.get("commit") for _, record in done}),
        ("seed", {str(seed) for seed, _ in done}),
        ("on", {record.get("machine") for _, record in done}),
    ):
        if known := sorted(filter(None, values)):
            parts.append(f"{name}{'s' if len(known) > 1 and name != 'on' else ''} {', '.join(known)}")
    return "; ".join(parts) + "."


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
    """A cell: mean ± standard deviation (number of seeds) over the finished seeds."""
    if not any(found):
        return "not run"
    values = [result[metric] for result in found if result and result.get(metric) is not None]
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.1f} ({len(values)})" if len(values) > 1 else ""
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
