"""Figure and tables of docs/mosaics_win.md: which rows of :mod:`reproduce.factor` win, at what cost, and why.

What is measured on a trained row stays in its folder, in ``explained.json``; the seconds of steps stay in
``step_seconds.json`` of the output folder. Without these files they are measured anew.
"""

import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from tqdm import tqdm

from clim.data.captions import read_captions
from clim.files import read_json, write_json
from clim_commands.outputs import read_note
from experiments import rows
from experiments.rows import datasets_of, finished
from experiments.tables import differences, paired_spread, report, spread
from mini.factor import FACTORS, set_name
from reproduce.factor import CONTROLLED, ROWS, entry

from .scale_and_company import THIRDS, ap50_by_size, company, shown_sides, sides_at_test, step_seconds

COLOURS = dict(zip(ROWS, ("#b8bcc4", "#d1603d", "#1f4e9c", "#e0a33e", "#5b8fd6"), strict=True))
# What two rows differ in: (what, row, the row that it is compared with).
DIFFERENCES = (
    ("mosaics in place of as many single images", "CLIM", "21 captions, stacked"),
    ("scale alone: smaller single images", "21 captions, scaled down as tiles", "21 captions, stacked"),
    ("company alone: tiles in place of images as small", "CLIM", "21 captions, scaled down as tiles"),
    ("company alone, 4 captions", "CLIM, 4 captions", "4 captions"),
    ("more texts: single images", "21 captions, stacked", "4 captions"),
    ("more and smaller tiles", "CLIM", "CLIM, 4 captions"),
)
AGAIN = "remove mini_factor, and it is drawn again"
NOVEL, TEST = "AP50_novel", "test scenes"
STEPS, REPEATS = 40, 20  # batches whose objects are measured; steps behind a mean of seconds


def explain(output: Path, seeds: Sequence[int], path: Path) -> None:
    """Write tables of all that has been run into the page ``path``."""
    tables = {
        "AP50 novel by factor, and differences of two rows by seed": curve_table(output, seeds),
        "Longer side of objects in px, as the network sees them: median (10 % to 90 %)": side_table(output, seeds[0]),
        "AP50 novel of the smallest, middle and largest third of the test objects": third_table(output, seeds),
        "Tiles of held-out mosaics that the row CLIM names right, in percent": company_table(output, seeds),
        "Training steps": step_table(output, seeds),
    }
    report(path, tables)


def results_of(output: Path, name: str, factor: float, seeds: Sequence[int]) -> list[dict | None]:
    """Figures of a row by seed, None where it is not finished."""
    records = [finished(entry(name, factor).mini, output, seed) for seed in seeds]
    return [record and record["results"] for record in records]


def by_factor(named: Mapping[str, object], cell: Callable[[object, float], str], *, what: str) -> list[str]:
    """Lines of a table of {name: argument of ``cell``}, with a column for each factor."""
    lines = [f"| | {' | '.join(f'factor {f:g}' for f in FACTORS)} |", "|---" * (len(FACTORS) + 1) + "|"]
    for name, row in tqdm(named.items(), desc=what, unit="row"):
        lines.append(f"| {name} | {' | '.join(cell(row, factor) for factor in FACTORS)} |")
    return lines


def curve_table(output: Path, seeds: Sequence[int]) -> list[str]:
    def mean(name: str, factor: float) -> str:
        return spread(results_of(output, name, factor, seeds), NOVEL)

    def gain(names: tuple[str, str], factor: float) -> str:
        one, other = (results_of(output, name, factor, seeds) for name in names)
        return paired_spread(differences(other, one, NOVEL))

    gains = {f"{what}: {one} − {other}": (one, other) for what, one, other in DIFFERENCES}
    return by_factor({name: name for name in ROWS}, mean, what="means") + by_factor(gains, gain, what="gains")[2:]


def side_table(output: Path, seed: int) -> list[str]:
    """Of one seed: sizes of objects hardly differ between seeds."""

    def middle(name: str, factor: float) -> str:
        if name == TEST:
            sides = sides_at_test("mini_ov_val")
        else:
            pairs = read_json(pairs_file(root, "captions", factor), remedy=AGAIN)
            sides = shown_sides(config_of(name, factor, seed), pairs, steps=STEPS)
        low, median, high = np.quantile(sides, (0.1, 0.5, 0.9))
        return f"{median:.0f} ({low:.0f}–{high:.0f})"

    with data_of(output, seed) as root:
        return by_factor({name: name for name in (TEST, *ROWS)}, middle, what="sides of objects")


def third_table(output: Path, seeds: Sequence[int]) -> list[str]:
    def means(name: str, factor: float) -> str:
        found = [e["by_size"] for seed in seeds if (e := explained(output, name, factor, seed))]
        values = ([one[third] for one in found if one[third] is not None] for third in THIRDS)
        return " / ".join(f"{statistics.mean(of_third):.1f}" if of_third else "–" for of_third in values)

    return by_factor({name: name for name in ROWS}, means, what="AP50 by size, and tiles in company")


def company_table(output: Path, seeds: Sequence[int]) -> list[str]:
    """Sums over the seeds. Wrong answers that are another tile's concept, in percent of the wrong ones."""
    columns = ("tiles", "right in company", "right alone", "wrong: another tile", "wrong alone: another tile")
    lines = [f"| factor, grid | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for factor in FACTORS:
        total: dict[str, Counter] = {}
        for seed in seeds:
            for grid, counts in (explained(output, "CLIM", factor, seed) or {"company": {}})["company"].items():
                total.setdefault(grid, Counter()).update(counts)
        for grid, counts in total.items():
            cells = [str(counts["tiles"])]
            cells += [percent(counts[f"right{where}"], counts["tiles"]) for where in ("", " alone")]
            for where in ("", " alone"):
                cells.append(percent(counts[f"another{where}"], counts["tiles"] - counts[f"right{where}"]))
            lines.append(f"| {factor:g}, {grid} | {' | '.join(cells)} |")
    return lines


def step_table(output: Path, seeds: Sequence[int]) -> list[str]:
    found = seconds(output, seeds)
    lines = ["| | CPU seconds | ratio to 4 captions |", "|---|---|---|"]
    return lines + [f"| {name} | {found[name]:.2f} | {found[name] / found['4 captions']:.2f} |" for name in found]


def explained(output: Path, name: str, factor: float, seed: int) -> dict | None:
    """AP50 by size of the row, and for CLIM the answers in company; None if the row is not finished."""
    row = entry(name, factor).mini
    if not finished(row, output, seed):
        return None
    folder = row.folder(output, seed)
    path = folder / "explained.json"
    if (found := read_note(path, kind=dict, remedy=f"remove {path}, and it is measured anew")) is None:
        with data_of(output, seed) as root:
            found = {"by_size": ap50_by_size(folder, "mini_ov_val"), "company": {}}
            if name == "CLIM":
                cfg = config_of(name, factor, seed, "MODEL.WEIGHTS", folder / "model_final.pth")
                found["company"] = company(cfg, held_out(root, factor))
        write_json(path, found)
    return found


def seconds(output: Path, seeds: Sequence[int]) -> dict[str, float]:
    """{row: mean CPU seconds of a training step}, with random weights as in tools/benchmark.py."""
    path = output / "step_seconds.json"
    kept = read_note(path, kind=dict[str, float], remedy=f"remove {path}, and it is measured anew")
    if kept is not None:
        return kept
    with data_of(output, seeds[0]), tempfile.TemporaryDirectory() as folder:
        more = ("MODEL.WEIGHTS", "", "OUTPUT_DIR", folder)
        configs = {name: config_of(name, CONTROLLED, seeds[0], *more) for name in ROWS}
        found = step_seconds(configs, repeats=REPEATS, folder=Path(folder))
    write_json(path, found)
    return found


def config_of(name: str, factor: float, seed: int, *more):
    return rows.config_of(entry(name, factor).mini, "SEED", seed, *more)


@contextmanager
def data_of(output: Path, seed: int) -> Iterator[Path]:
    """In this block, the data root is that of a seed."""
    root = datasets_of(output, seed)
    with mock.patch.dict(os.environ, DETECTRON2_DATASETS=str(root)):
        yield root


def pairs_file(root: Path, part: str, factor: float) -> Path:
    return root / f"mini_factor/annotations/{part}_{set_name(factor)}.json"


def held_out(root: Path, factor: float) -> Sequence[Mapping]:
    """Records of the held-out pairs of a factor."""
    images = root / "mini_factor" / set_name(factor)
    return read_captions(str(pairs_file(root, "held_out", factor)), str(images), remedy=AGAIN)


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "–"


def draw(output: Path, seeds: Sequence[int], path: Path) -> None:
    """Write AP50 novel against the factor, the mean with a dot for each seed, and CPU seconds of a step beside it."""
    figure = Figure(figsize=(8.6, 3.6), dpi=150, layout="constrained")
    curves, bars = figure.subplots(1, 2, width_ratios=(1.7, 1))
    for name, colour in COLOURS.items():
        found = {f: [r[NOVEL] for r in results_of(output, name, f, seeds) if r] for f in FACTORS}
        found = {factor: values for factor, values in found.items() if values}
        curves.plot(list(found), list(map(statistics.mean, found.values())), color=colour, label=name)
        for factor, values in found.items():
            curves.plot([factor] * len(values), values, ".", color=colour, markersize=5)
    curves.set_xscale("log")
    curves.set_xticks(FACTORS, [f"{factor:g}" for factor in FACTORS])
    curves.xaxis.set_minor_locator(NullLocator())
    curves.set_ylim(bottom=0)
    curves.set(xlabel="size of objects in pairs ÷ size in scenes", ylabel="AP50 novel")
    steps = seconds(output, seeds)
    bars.barh(list(steps), list(steps.values()), color=[COLOURS[name] for name in steps])
    bars.invert_yaxis()
    bars.set_yticks([])
    bars.set_xlabel("CPU seconds of a training step")
    for axes in (curves, bars):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(ncols=3, loc="outside upper center", frameon=False, fontsize=8)
    figure.savefig(path)
