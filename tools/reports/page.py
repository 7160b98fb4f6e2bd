"""One HTML file about a few runs, which contains its tables, curves and images, and loads nothing."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from clim_commands.page import Example, bar, linked, page, panels, table

from .curves import line_chart, smooth

GROUPS = {"AP50_novel": "novel", "AP50_base": "base", "AP50_all": "all"}
LOSS_TITLES = {
    "total_loss": "All losses",
    "loss_cls": "Boxes: classes",
    "loss_box_reg": "Boxes: regression",
    "loss_rpn_cls": "Proposals: objectness",
    "loss_rpn_loc": "Proposals: regression",
    "loss_caption": "Captions, single images",
    "loss_tag": "Tags, single images",
    "loss_caption_mosaic": "Captions, mosaics",
    "loss_tag_mosaic": "Tags, mosaics",
}
SMOOTHING = 9  # values of the log that a point of a curve averages


@dataclass
class Run:
    """One training. ``results`` as of :func:`experiments.training.run_training`; ``metrics``: lines of metrics.json."""

    name: str
    title: str
    seed: int
    results: dict
    metrics: list[dict] = field(default_factory=list)


@dataclass
class Part:
    """A section: a note, a table, charts {title: {run: (xs, ys)}} and images. In a row, floats are percentages."""

    title: str
    note: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence] = ()
    charts: dict[str, dict] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)


@dataclass
class Report:
    """The parts of :func:`render_report`, in order, in plain text. Empty parts are left out."""

    title: str
    intro: list[str]
    runs: list[Run]
    parts: list[Part] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    commands: list[tuple[str, str]] = field(default_factory=list)  # (purpose, command)


def render_report(report: Report) -> str:
    """The whole page. Texts are escaped, and addresses become links."""
    sections = {
        "Results": _results_table(report.runs),
        "Novel classes, one by one": _class_table(report.runs),
        **{part.title: _part(part, report.runs) for part in report.parts},
        "Curves": _curves(report.runs),
        "Time": _seconds_table(report.seconds),
        "What is synthetic": "".join(f"<p>{linked(note)}</p>" for note in report.notes),
        "What to do next": _commands(report.commands),
    }
    return page(report.title, report.intro, sections)


def _results_table(runs: Sequence[Run]) -> str:
    rows = [
        [_swatch(i) + escape(run.title), *(_bar(run.results.get(key), i) for key in GROUPS)]
        for i, run in enumerate(runs)
    ]
    return table(["run", *(f"AP50 {group}" for group in GROUPS.values())], rows) if rows else ""


def _class_table(runs: Sequence[Run]) -> str:
    """AP50 of every novel class, the last run's best ones first."""
    scores = [
        {row["class"]: row for row in run.results.get("per_class", []) if row["split"] == "novel"} for run in runs
    ]
    names = {name: row["num_gt"] for by_class in scores for name, row in by_class.items()}

    def last_score(name):
        value = scores[-1].get(name, {}).get("AP50")
        return -1.0 if value is None else value

    rows = [
        [escape(name), str(names[name])]
        + [_bar(by_class.get(name, {}).get("AP50"), i) for i, by_class in enumerate(scores)]
        for name in sorted(names, key=lambda name: (-last_score(name), name))
    ]
    return table(["class", "objects", *(escape(run.title) for run in runs)], rows) if rows else ""


def _part(part: Part, runs: Sequence[Run]) -> str:
    """Columns and lines of runs have their colours."""
    index = {run.title: i for i, run in enumerate(runs)}
    colours = {title: f"var(--run{i % 6})" for title, i in index.items()}
    rows = [
        [_bar(value, index.get(name, 0)) if value is None or isinstance(value, float) else escape(str(value))
         for name, value in zip(part.head, row, strict=True)]
        for row in part.rows
    ]  # fmt: skip
    charts = "".join(
        f"<figure>{line_chart(lines, title=title, x_label='recall', colours=colours)}"
        f"<figcaption>{escape(title)}</figcaption></figure>"
        for title, lines in part.charts.items()
    )
    charts = f'{_legend(runs)}<div class="charts">{charts}</div>' if charts else ""
    content = (table(list(map(escape, part.head)), rows) if rows else "") + charts + panels(part.examples)
    return (f"<p>{linked(part.note)}</p>" if part.note else "") + content if content else ""


def _legend(runs: Sequence[Run]) -> str:
    entries = "".join(f"<span>{_swatch(i)}{escape(run.title)}</span>" for i, run in enumerate(runs))
    return f'<p class="legend">{entries}</p>'


def _curves(runs: Sequence[Run]) -> str:
    present = {key for run in runs for entry in run.metrics for key in entry}
    known = [key for key in LOSS_TITLES if key in present]
    others = sorted(key for key in present if key.startswith("loss_") and key not in LOSS_TITLES)
    scored = [
        key for key in ("bbox/AP50_novel", "bbox/AP50_base")
        if any(sum(key in entry for entry in run.metrics) > 1 for run in runs)
    ]  # fmt: skip
    charts = [_chart(runs, key, LOSS_TITLES.get(key, key), SMOOTHING) for key in known + others]
    charts += [_chart(runs, key, key.removeprefix("bbox/").replace("_", " "), 1) for key in scored]
    if not charts:
        return ""
    note = "<p>Thin: as logged. Thick: moving average. Each training counts its own iterations.</p>"
    return f'{note}{_legend(runs)}<div class="charts">{"".join(charts)}</div>'


def _chart(runs: Sequence[Run], key: str, title: str, window: int) -> str:
    raw, smoothed, colours = {}, {}, {}
    for i, run in enumerate(runs):
        entries = [entry for entry in run.metrics if key in entry]
        if entries:
            xs, ys = [entry["iteration"] for entry in entries], [float(entry[key]) for entry in entries]
            raw[run.title], smoothed[run.title] = (xs, ys), (xs, smooth(ys, window=window))
            colours[run.title] = f"var(--run{i % 6})"
    faint = raw if window > 1 else {}
    svg = line_chart(smoothed, title=title, x_label="iteration", colours=colours, faint=faint)
    return f"<figure>{svg}<figcaption>{escape(title)}</figcaption></figure>"


def _seconds_table(seconds: dict[str, float]) -> str:
    rows = [[escape(step), f"{value:,.0f} s"] for step, value in seconds.items()]
    return table(["step", "time"], rows) if rows else ""


def _commands(commands: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<p>{linked(what)}</p><pre><code>{escape(command)}</code></pre>" for what, command in commands)


def _bar(value: float | None, index: int) -> str:
    """A percentage with a bar behind it, or a dash."""
    return "–" if value is None or math.isnan(value) else bar(f"{value:.1f}", value, colour=index)


def _swatch(index: int) -> str:
    return f'<i class="swatch" style="background:var(--run{index % 6})"></i>'
