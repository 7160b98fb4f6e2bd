"""All sections in one table, the growth curves, and the results of earlier runs."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from matplotlib.figure import Figure

from clim.errors import UserError
from clim.files import read_json
from experiments.tables import report

from . import SECTIONS
from .sections import as_table, title_of
from .stopwatch import Spread, short

SUMMARY = Path(__file__).with_name("summary.csv")
Results = Mapping[str, Sequence[dict]]


# A panel each: section, x, y, column of the lines, label of x, label of y.
CURVES = (
    ("shortlist", "names", "cpu s", "search", "names", "CPU seconds an image, candidates + NMS"),
    ("sides", "px", "cpu s", "work", "side of the canvas, px", "CPU seconds, mosaic of photos and mini step"),
    ("records", "captions", "cpu s", "way", "captions", "CPU seconds to open"),
    ("records", "captions", "worker MB", "way", "captions", "MB that each worker adds"),
)


class Written(TypedDict):
    """What --json writes."""

    machine: dict[str, str]
    results: dict[str, list[dict]]


def read_results(paths: Sequence[Path]) -> tuple[dict[str, str], dict[str, list[dict]]]:
    """Facts about the machines and {section: rows} of files that --json wrote; the last file with a section counts."""
    results, found = {}, {}
    for path in paths:
        content = read_json(path, kind=Written, remedy="name a file that --json wrote")
        results |= content["results"]
        for name, fact in content["machine"].items():
            found.setdefault(name, {}).setdefault(fact, []).extend(content["results"])
    facts = {
        name: "; ".join(fact if len(of) == 1 else f"{fact} ({', '.join(parts)})" for fact, parts in of.items())
        for name, of in found.items()
    }
    restored = {
        name: [{k: Spread(**v) if isinstance(v, dict) else v for k, v in row.items()} for row in rows]
        for name, rows in results.items()
    }
    return facts, {name: restored[name] for name in SECTIONS if name in restored}


def report_results(facts: Mapping[str, str], results: Results, *, markdown: Path | None, plot: Path | None) -> None:
    """Print the summary; write all tables into ``markdown`` and draw the curves into ``plot``, if given."""
    tables = {"Machine": [{"": name, "value": fact} for name, fact in facts.items()], "All sections": summary(results)}
    tables = {title: as_table(rows) for title, rows in tables.items() if rows}
    print(f"\nAll sections\n\n{tables.get('All sections', 'none')}")
    if markdown:
        report(markdown, {t: table.splitlines() for t, table in tables.items()} | {
            title_of(name): as_table(rows).splitlines() for name, rows in results.items()
        })  # fmt: skip
    if plot:
        plot.parent.mkdir(parents=True, exist_ok=True)
        curves(results).savefig(plot, dpi=100)


def summary(results: Results) -> list[dict]:
    """A row for each line of summary.csv whose section was measured.

    A figure is that of the first row of its section that has all of ``rows`` (divided by semicolons) and, for CLIM's,
    ``ours``; so for the anchor and the limit. ``quoted`` is the figure of an official code, and in brackets ours of the
    time, of one run on another machine.
    """
    table = []
    with SUMMARY.open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file, delimiter="|") if results.get(line["section"])]
    for line in lines:
        found = {}
        for role in ("ours", "anchor", "limit"):
            values = {line[role], *filter(None, line["rows"].split(";"))}
            rows = (row for row in results[line["section"]] if line[role] and values <= set(map(str, row.values())))
            if row := next(rows, None):
                found[role] = row, row[line["figure"]].median
        if "ours" not in found:
            continue
        own, ours = found["ours"]
        anchor = found.get("anchor", (None, 0))[1]
        ratio = anchor and ours and (ours / anchor if "/" in line["figure"] else anchor / ours)
        cells = {role: f"{short(figure)}, {line[role]}" for role, (_, figure) in found.items()}
        table.append(
            {
                "work": line["work"].format(**own), "--only": line["section"], "figure": line["figure"],
                "CLIM": short(ours), "anchor": cells.get("anchor", ""), "limit": cells.get("limit", ""),
                "times better": short(ratio) if ratio else "", "quoted, another machine": line["quoted"],
            }
        )  # fmt: skip
    return table


def curves(results: Results) -> Figure:
    """A panel for each of CURVES that was measured; bars reach from the lowest to the highest run."""
    chosen = [curve for curve in CURVES if curve[0] in results]
    if not chosen:
        raise UserError("--plot draws shortlist, sides and records: measure one of these sections.")
    figure = Figure(figsize=(10, 4 * -(-len(chosen) // 2)), layout="constrained")
    panels = figure.subplots(-(-len(chosen) // 2), 2, squeeze=False).flatten()
    for unused in panels[len(chosen) :]:
        unused.remove()
    for panel, (section, x, y, by, x_label, y_label) in zip(panels, chosen, strict=False):
        for name in dict.fromkeys(row[by] for row in results[section]):
            rows = [row for row in results[section] if row[by] == name]
            median, low, high = np.array([row[y] for row in rows]).T
            at, bars = [number(row[x]) for row in rows], [median - low, high - median]
            panel.errorbar(at, median, bars, marker="o", capsize=3, label=name)
        panel.set(xlabel=x_label, ylabel=y_label, xscale="log", yscale="symlog" if "MB" in y else "log")
        if "MB" in y:
            panel.set_ylim(bottom=0)
        ticks = sorted({number(row[x]) for row in results[section]})
        panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        panel.minorticks_off()
        panel.yaxis.set_major_formatter("{x:g}")
        panel.grid(visible=True, alpha=0.3)
        panel.legend()
    return figure


def number(cell: int | str) -> int:
    return int(str(cell).replace(",", ""))
