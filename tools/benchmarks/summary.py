"""All sections in one table, the growth curves, and the results of earlier runs."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
from matplotlib.figure import Figure

from clim.errors import UserError
from clim.files import read_json
from experiments.tables import report

from . import SECTIONS
from .sections import as_table, title_of
from .stopwatch import Spread, short

Results = Mapping[str, Sequence[dict]]


class Line(NamedTuple):
    """A row of the summary. A figure is ``column`` of the first row of its section that has all of ``values``.

    ``ours``, ``anchor`` and ``limit`` are values, too. ``work`` is completed by the columns of our row. ``quoted`` is
    the figure of an official code, and in brackets ours, of one run on another machine.
    """

    work: str
    section: str
    values: frozenset
    ours: str
    anchor: str = ""
    limit: str = ""
    quoted: str = ""
    column: str = "cpu s"


def line(work: str, section: str, *values: str, ours: str = "CLIM", **others) -> Line:
    return Line(work, section, frozenset(values), ours, **others)


_search = partial(line, "candidates + NMS, {names} names", "shortlist", anchor="Detectron2")
_coco = partial(line, "OV-COCO evaluation, {images} images", "evaluation", limit="faster-coco-eval")
_dense = partial(line, "ViT-B/16, {image}, {pass}", "dense", anchor="open_clip")
_mosaics = partial(line, "mosaics, all tiles fresh", "mosaics", "2, 3, 4", ours="CLIM, decoded afresh",
                   column="mosaics / s and core")  # fmt: skip
LINES = (
    _search("400"),
    _search("1,203", quoted="official Detic 9.6 s (9.9 s, by Detectron2's search)"),
    _search("2,400"),
    _search("20,000"),
    _coco(anchor="pycocotools", quoted="pycocotools 91 s for 5,000 images (14.6 s, with collecting)"),
    _coco("5,000"),
    line("LVIS masks, {images} images", "lvis", "segm", anchor="lvis", column="CPU s"),
    line("detection, {names} names, {image}", "detection", ours=80, quoted="official Detic 37.4 s at 800 px (35.5 s)"),
    _dense("forward", quoted="open_clip 44.1 s at 1,024 px (25.1 s)"),
    _dense("forward, backward", quoted="open_clip 63.0 s at 1,024 px (49.9 s)"),
    _dense("forward, backward", column="peak MiB", quoted="(1,769 MiB at 1,024 px)"),
    _dense("forward, backward", column="peak MiB", ours="CLIM, checkpointing", quoted="(895 MiB at 1,024 px)"),
    _mosaics(anchor="released order, decoded afresh", quoted="CLIM release 13.2 / s (25.8 / s)"),
    _mosaics(anchor="released order, partners in memory", quoted="CLIM release 31.9 / s (25.8 / s)"),
    line("JPEG files", "decode", anchor="Detectron2 (PIL)", limit="OpenCV", column="images / s"),
    *(
        line(f"{{captions}} captions, {what}", "records", "1,000,000", anchor="list of dicts",
             limit="Detectron2, serialised", column=column, quoted=quoted)
        for what, column, quoted in (
            ("opened", "cpu s", ""), ("in the process", "process MB", "(1,155 MiB, lists of dicts)"),
            ("in a worker", "worker MB", "Detectron2, serialised 2 MiB (882 MiB, lists of dicts)"),
        )
    ),
    line("clim --help", "startup", ours="clim --help", limit="Python"),
    line("a Detector is ready", "startup", ours="Detector ready", limit="import torch"),
    line("step of 2 + 2 + 2 images", "steps", ours="CLIM 2+2+2", anchor="baseline 2+4"),
    line("step of 4 captions", "steps", ours="4 captions", quoted="official Detic 26.5 s at 400 px (9.5 s)"),
    line("step of 2 box images", "steps", ours="2 box images",
         quoted="official Detic 34.4 s at 400 px, 128 RoIs an image (35.9 s)"),
)  # fmt: skip

# A panel each: section, x, y, column of the lines, label of x, label of y.
CURVES = (
    ("shortlist", "names", "cpu s", "search", "names", "CPU seconds an image, candidates and NMS"),
    ("sides", "px", "cpu s", "work", "side of the canvas, px", "CPU seconds"),
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
    """A row for each of LINES whose section was measured; "times better" compares with the anchor of the same run."""
    rows = []
    for of in LINES:
        found = {
            name: next((r for r in results.get(of.section, ()) if of.values | {name} <= set(r.values())), None)
            for name in (of.ours, of.anchor, of.limit)
        }
        if (own := found[of.ours]) is None:
            continue
        medians = {name: row[of.column].median for name, row in found.items() if name and row}
        ours, anchor = medians.pop(of.ours), medians.get(of.anchor)
        ratio = None if not (ours and anchor) else ours / anchor if "/" in of.column else anchor / ours
        cells = {name: f"{short(figure)}, {name}" for name, figure in medians.items()}
        rows.append(
            {
                "work": of.work.format(**own), "--only": of.section, "figure": of.column, "CLIM": short(ours),
                "anchor": cells.get(of.anchor, ""), "limit": cells.get(of.limit, ""),
                "times better": short(ratio) if ratio else "", "quoted, another machine": of.quoted,
            }
        )  # fmt: skip
    return rows


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
            at = [int(str(row[x]).replace(",", "")) for row in rows]
            panel.errorbar(at, median, [median - low, high - median], marker="o", capsize=3, label=name)
        panel.set(xlabel=x_label, ylabel=y_label, xscale="log", yscale="symlog" if "MB" in y else "log")
        panel.grid(visible=True, alpha=0.3)
        panel.legend()
    return figure
