"""Resumable tables of trainings on the mini benchmark, over several seeds; a row may start from another row.

A seed has its own images, under ``output/seed{N}/datasets``. Its rows share the runs that they start from.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypedDict

from arguments import new_parser
from clim.errors import UserError
from clim.files import read_text, replacing
from clim_commands.inputs import count, output_file, output_folder, whole
from clim_commands.outputs import read_note

from .training import RECORD, run_training

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "mini"
AP50 = {"AP50_novel": "AP50 novel", "AP50_base": "AP50 base", "AP50_all": "AP50 all"}  # metrics of a section


class Row(NamedTuple):
    """One training for each seed. Rows of the same settings share it.

    starts_from: (config key, row, file in its folder), e.g. ("MODEL.WEIGHTS", base, "model_final.pth").
    needs: more rows that must finish first.
    prepare: called with (output, seed) before the training.
    """

    config: str
    overrides: tuple = ()
    starts_from: tuple[tuple[str, "Row", str], ...] = ()
    needs: tuple["Row", ...] = ()
    prepare: Callable[[Path, int], None] | None = None

    @property
    def origins(self) -> list["Row"]:
        return [*(row for _, row, _ in self.starts_from), *self.needs]

    @property
    def depth(self) -> int:
        """The number of trainings that must finish one after another before this one."""
        return max((origin.depth + 1 for origin in self.origins), default=0)

    def folder(self, output: Path, seed: int) -> Path:
        """The run's folder, named after the config, the overrides, and those of the rows that it starts from."""
        words = [Path(self.config).stem, *self.overrides]
        for key, row, _ in self.starts_from:
            words += ([] if key == "MODEL.WEIGHTS" else [row.config]) + list(row.overrides)
        return output / f"seed{seed}" / "".join(c if c.isalnum() else "_" for c in "_".join(map(str, words)))


def tuned(
    config: str, *overrides, start: Row, key: str = "MODEL.WEIGHTS", file: str = "model_final.pth", **others
) -> Row:
    """A row that takes ``file`` of the row ``start`` as its ``key``: by default it is fine-tuned from it."""
    return Row(config, overrides, starts_from=((key, start, file),), **others)


class Section(NamedTuple):
    """A table: its rows by name, {key of a run's results: heading}, and the largest number of seeds.

    figures: {key: figure} of (a run's results, its data root), more keys for ``metrics``.
    """

    rows: Mapping[str, Row]
    metrics: Mapping[str, str]
    most_seeds: int | None = None
    figures: Callable[[dict, Path], dict] = lambda results, root: {}

    def found(self, name: str, output: Path, seed: int) -> dict | None:
        """All figures of the row ``name``, or None if it is not finished."""
        folder = self.rows[name].folder(output, seed)
        if not (results := finished(folder)):
            return None
        results = results | self.figures(results, datasets_of(output, seed))
        if missing := [key for key in self.metrics if not isinstance(results.get(key), float | int | None)]:
            raise UserError(f"{folder / RECORD}: {missing[0]} is no number: remove {folder} to train this row anew.")
        return results


def tables_command(
    sections: Mapping[str, Section], *, tool: str, description: str, set_up: Callable[..., object]
) -> argparse.Namespace:
    """The command that trains all rows of ``sections`` ({title: section}) and writes their tables.

    ``set_up`` is called with (data root, seed=…) and makes the files of a seed. Returns the command's arguments.
    """
    parser = new_parser(description)
    parser.add_argument("--output", type=output_folder, default=f"output/{tool}")
    parser.add_argument("--seeds", type=whole, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=count, default=2, help="trainings side by side, one thread each")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only sections with a word in their title")
    parser.add_argument("--report", type=output_file, help="only write the tables of what has been run")
    args = parser.parse_args()
    sections = {title: s for title, s in sections.items() if any(word in title for word in args.only or [""])}
    if args.report is None:
        rows = [(row, args.seeds[: s.most_seeds]) for s in sections.values() for row in s.rows.values()]
        run_rows(rows, output=args.output, jobs=args.jobs, set_up=set_up)
    tables = {
        title: markdown(s, output=args.output, seeds=args.seeds[: s.most_seeds])
        for title, s in sections.items()
        if any(finished(row.folder(args.output, seed)) for row in s.rows.values() for seed in args.seeds)
    }
    print(report(args.report or args.output / "tables.md", tables))
    return args


def datasets_of(output: Path, seed: int) -> Path:
    """Data root of a seed."""
    return output / f"seed{seed}" / "datasets"


def run_rows(
    rows: Iterable[tuple[Row, Sequence[int]]], *, output: Path, jobs: int, set_up: Callable[..., object]
) -> None:
    """Train every (row, its seeds), ``jobs`` at a time with one thread each; finished runs are kept.

    What others start from is begun before them, for all seeds, so that no worker waits for a run not yet begun; else
    rows are begun in order, so that a run that is cut short leaves whole rows.
    """
    rows = list(rows)
    for seed in sorted({seed for _, seeds in rows for seed in seeds}):
        set_up(datasets_of(output, seed), seed=seed)
    started: dict[Path, Future] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for row, seeds in sorted(with_origins(rows), key=lambda r: r[0].depth):
            for seed in seeds:
                if (folder := row.folder(output, seed)) not in started:
                    needed = [started[origin.folder(output, seed)] for origin in row.origins]
                    started[folder] = pool.submit(run_row, row, seed, output=output, needed=needed)
        for done, job in enumerate(started.values(), 1):
            job.result()
            print(f"{done} of {len(started)} trainings done, {time.strftime('%H:%M:%S')}", flush=True)


def with_origins(rows: Iterable[tuple[Row, Sequence[int]]]) -> Iterator[tuple[Row, Sequence[int]]]:
    """The rows, each after all rows that it starts from."""
    for row, seeds in rows:
        yield from with_origins((origin, seeds) for origin in row.origins)
        yield row, seeds


def run_row(row: Row, seed: int, *, output: Path, needed: Sequence[Future]) -> dict:
    """Wait for ``needed``, then train one row of one seed. Returns the result of :func:`run_training`."""
    for job in needed:
        job.result()
    if row.prepare is not None:
        row.prepare(output, seed)
    origins = [word for key, origin, file in row.starts_from for word in (key, str(origin.folder(output, seed) / file))]
    return run_training(
        CONFIGS / row.config,
        output=row.folder(output, seed),
        overrides=["SEED", seed, *origins, *row.overrides],
        datasets_root=datasets_of(output, seed),
    )


def markdown(section: Section, *, output: Path, seeds: Sequence[int]) -> list[str]:
    """Lines of a table: mean ± standard deviation over the finished seeds, and the first metric by seed."""
    metrics = section.metrics
    first = next(iter(metrics))
    lines = [f"| | {' | '.join(metrics.values())} | {metrics[first]}, by seed |", "|---" * (len(metrics) + 2) + "|"]
    for name in section.rows:
        found = [section.found(name, output, seed) for seed in seeds]
        first_figures = [result and result.get(first) for result in found]
        by_seed = ", ".join("–" if figure is None else f"{figure:.1f}" for figure in first_figures)
        cells = [*(spread(found, metric) for metric in metrics), by_seed]
        lines.append(f"| {name} | {' | '.join(cells)} |")
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


class Finished(TypedDict):
    """The part of a run's record that tables show."""

    results: dict[str, object] | None


def finished(folder: Path) -> dict | None:
    """Figures of the run in ``folder``, or None."""
    record = read_note(folder / RECORD, kind=Finished, remedy=f"remove {folder} to train this row anew")
    return record and record["results"]


def spread(found: Sequence[dict | None], metric: str) -> str:
    """A cell: mean ± standard deviation over the finished seeds."""
    values = [result[metric] for result in found if result and result.get(metric) is not None]
    if not values:
        return "not run"
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"
