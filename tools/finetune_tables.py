"""Fine-tune the mini Detic + CLIM model on own boxes of 20 classes, with and without own captions; write the table.

    python tools/finetune_tables.py                       # all rows; can be stopped and started again
    python tools/finetune_tables.py --report docs/mini_results.md   # only write the table of what has been run

A seed has its own images, its own 20 classes (tools/mini/own.py) and its own Detic + CLIM model, from which its rows
start. Settings are those of configs/mini. The figure finetune_mini.png is written beside the table.
"""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml

from clim.errors import run_cleanly
from experiments import tables
from experiments.tables import Section, tables_command
from mini.own import set_up_own
from mini_tables import METHODS, PERMUTED_TEXTS

BEFORE = METHODS["Detic + CLIM"]
ALL_BOXED = ("MODEL.OPEN_VOCAB.BASE_CLASSES", "")  # a user's mistake: unlabelled objects count as background
GROUPS = {"own": "the 20 classes", "other": "28 other base", "novel": "17 novel"}
METRICS = {f"{metric}_{group}": f"{metric} {name}" for metric in ("AP50", "AP") for group, name in GROUPS.items()}


tuned = partial(tables.tuned, start=BEFORE)
ROWS = {
    "before": BEFORE,
    "boxes alone": tuned("finetune_boxes.yaml"),
    "boxes alone, a tenth of the learning rate": tuned("finetune_boxes.yaml", "SOLVER.BASE_LR", 0.0001),
    "boxes alone, all 65 words trained as if they had boxes": tuned("finetune_boxes.yaml", *ALL_BOXED),
    "boxes + captions": tuned("finetune_captions.yaml"),
    "boxes + CLIM": tuned("finetune_clim.yaml"),
    "control: boxes + CLIM, texts permuted within each canvas": tuned("finetune_clim.yaml", *PERMUTED_TEXTS),
}
DRAWN = {"before": "#b8bcc4", "boxes alone": "#d1603d", "boxes + captions": "#5b8fd6", "boxes + CLIM": "#1f4e9c"}


def group_figures(results: dict, root: Path) -> dict[str, float]:
    """{"AP50_own": …, "AP_novel": …}: means over the classes of a group that have objects, in percent."""
    own = yaml.safe_load((root / "mini_own/data.yaml").read_text())["classes"]
    figures = {}
    for group in GROUPS:
        rows = [row for row in results["per_class"] if group == ("own" if row["class"] in own else _split(row))]
        for metric in ("AP50", "AP"):
            figures[f"{metric}_{group}"] = statistics.mean(row[metric] for row in rows if row[metric] is not None)
    return figures


def _split(row: dict) -> str:
    return "novel" if row["split"] == "novel" else "other"


SECTION = Section(ROWS, METRICS, figures=group_figures)
SECTIONS = {"Fine-tuning on own boxes of 20 classes": SECTION}


def draw(output: Path, seeds: Sequence[int], path: Path) -> None:
    """Write bars of AP50 by group: the mean over the finished seeds, with a dot for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(DRAWN)
    for i, (name, colour) in enumerate(DRAWN.items()):
        found = [figures for seed in seeds if (figures := SECTION.found(name, output, seed))]
        for j, group in enumerate(GROUPS):
            values = [figures[f"AP50_{group}"] for figures in found]
            if values:
                x, mean = j + (i - (len(DRAWN) - 1) / 2) * width, statistics.mean(values)
                axes.bar(x, mean, width * 0.92, color=colour, label=None if j else name)
                axes.plot([x] * len(values), values, ".", color="black", markersize=3)
                axes.annotate(f"{mean:.0f}", (x, max(values) + 1), ha="center", fontsize=8)
    axes.set_xticks(range(len(GROUPS)), ["20 classes with own boxes", "28 other classes", "17 novel classes"])
    axes.set_ylabel("AP50")
    axes.set_ylim(0, 104)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(ncols=len(DRAWN), loc="outside upper center", frameon=False, fontsize=8)
    figure.savefig(path)


def main() -> None:
    args = tables_command(SECTIONS, tool="finetune_tables", description=__doc__, set_up=set_up_own)
    draw(args.output, args.seeds, (args.report or args.output / "tables.md").with_name("finetune_mini.png"))


if __name__ == "__main__":
    run_cleanly(main)
