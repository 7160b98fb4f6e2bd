"""What a training writes into its folder: where it is, its log, its metrics and its evaluation."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from clim.errors import UserError
from clim.files import decode_json
from clim_commands.outputs import Report, read_note, tasks_of

REPORTS = ("ov_coco_results.json", "lvis_results.json", "region_results.json")  # written by the evaluators
TAIL_LINES = 15


class Progress(NamedTuple):
    """Where a run is. ``phase``: "waiting", "kept", "starting", "resuming", "training", "evaluating" or "finished"."""

    phase: str
    done: int = 0  # iterations, or images while evaluating
    total: int = 0
    eta: float | None = None  # seconds of training that are left
    loss: float | None = None


def last_iteration(log: Path, *, start: int) -> int | None:
    """The iteration at which a training ends, from its ``log`` after ``start`` bytes; None before its first step.

    The config's MAX_ITER is another number unless the run has the reference number of GPUs and counts no epochs.
    """
    with open(log, "rb") as file:
        file.seek(start)
        found = re.search(r"Training from iteration \d+ to (\d+)", file.read(1 << 20).decode(errors="replace"))
    return found and int(found[1])


def where(output: Path, log: Path, *, start: int) -> Progress | None:
    """The progress, from the end of metrics.json and the log after ``start`` bytes; None before the first step."""
    if (end := last_iteration(log, start=start)) is None:
        return None
    lines = [entry for entry in _metrics(_end_of(output / "metrics.json")) if entry.get("total_loss") is not None]
    for last in lines[-1:]:  # the evaluation's lines have no loss
        if (done := last["iteration"] + 1) < end:
            return Progress("training", done, end, last.get("eta_seconds"), last["total_loss"])
        counts = re.findall(r"Inference done (\d+)/(\d+)", _end_of(log)) or [(0, 0)]
        return Progress("evaluating", *map(int, counts[-1]))
    return None


def _end_of(path: Path, size: int = 8192) -> str:
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        file.seek(max(path.stat().st_size - size, 0))
        return file.read().decode(errors="replace")


def evaluation(output: Path, datasets: Sequence[str]) -> dict:
    """The figures of the first data set, its rows as "per_class", and figures of the others as "DATASET/…"."""
    first, *others = datasets
    found = _report(output / "inference" / first)
    for name in others:
        figures = _report(output / "inference" / name)
        found |= {f"{name}/{key}": figure for key, figure in figures.items() if key != "per_class"}
    return found


def _report(folder: Path) -> dict:
    remedy = "remove it and call this again: the evaluation writes it anew"
    reports = (read_note(folder / name, kind=Report, remedy=remedy) for name in REPORTS)
    report = next(filter(None, reports), None)
    if report is None:
        raise UserError(f"{folder} holds none of {', '.join(REPORTS)}: the training ended without an evaluation.")
    figures = {f"{t}/{name}": figure for t, found in tasks_of(report).items() for name, figure in found.items()}
    return {name.removeprefix("/"): figure for name, figure in figures.items()} | {"per_class": report["per_class"]}


def read_metrics(output: str | os.PathLike) -> list[dict]:
    """Lines of a run's metrics.json by ascending iteration. Of lines that a resumed run repeats, the last counts."""
    path = Path(output) / "metrics.json"
    by_iteration: dict[int, dict] = {}
    for entry in _metrics(path.read_text(errors="replace") if path.is_file() else ""):
        by_iteration[entry["iteration"]] = by_iteration.get(entry["iteration"], {}) | entry
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]


def _metrics(text: str) -> Iterator[dict[str, int | float | None]]:
    """The whole lines of a metrics.json: a kill cuts off the last one, and a resumed run goes on in the same line."""
    for line in text.splitlines():
        with suppress(UserError):
            entry = decode_json(line.encode(), source="", remedy="", kind=dict[str, int | float | None])
            if isinstance(entry.get("iteration"), int):
                yield entry


def log_tail(log: str | os.PathLike, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, without colours, indented. If an "error: " line is among them, from there on."""
    text = Path(log).read_text(errors="replace") if Path(log).is_file() else ""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()[-lines:]
    named = next((i for i, line in enumerate(plain) if line.startswith("error: ")), 0)
    return "\n".join(f"    {line}" for line in plain[named:])
