"""Fine-tuning the mini Detic + CLIM model on own boxes of 20 classes, with and without own captions.

A seed has its own images, its own 20 classes (tools/mini/own.py) and its own Detic + CLIM model, from which its rows
start. The figure finetune_mini.png is drawn beside the tables.
"""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml

from experiments import rows
from experiments.tables import Entry, Table
from mini.own import set_up_own

from .ov_coco import DETIC_CLIM as BEFORE
from .ov_coco import PERMUTED_TEXTS

ALL_BOXED = ("MODEL.OPEN_VOCAB.BASE_CLASSES", "")  # a user's mistake: unlabelled objects count as background
PERMUTED = "texts permuted within each canvas"
GROUPS = {"own": "the 20 classes", "other": "28 other base", "novel": "17 novel"}
METRICS = {f"{metric}_{group}": f"{metric} {name}" for metric in ("AP50", "AP") for group, name in GROUPS.items()}

tuned = partial(rows.tuned, start=BEFORE)
ROWS = (
    Entry("before", BEFORE),
    Entry("boxes alone", tuned("mini/finetune_boxes.yaml")),
    Entry("boxes alone, a tenth of the learning rate", tuned("mini/finetune_boxes.yaml", "SOLVER.BASE_LR", 0.0001)),
    Entry("boxes alone, all 65 words trained as if they had boxes", tuned("mini/finetune_boxes.yaml", *ALL_BOXED)),
    Entry("boxes + captions", tuned("mini/finetune_captions.yaml")),
    Entry("boxes + CLIM", tuned("mini/finetune_clim.yaml")),
    Entry(
        "control: boxes + CLIM, texts permuted within each canvas", tuned("mini/finetune_clim.yaml", *PERMUTED_TEXTS)
    ),
)
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


def draw(output: Path, seeds: Sequence[int], path: Path) -> None:
    """Write bars of AP50 by group: the mean over the finished seeds, with a dot for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(DRAWN)
    drawn = [entry for entry in ROWS if entry.name in DRAWN]
    for i, entry in enumerate(drawn):
        name, colour = entry.name, DRAWN[entry.name]
        found = [figures for seed in seeds if (figures := TABLE.found(entry, output, seed))]
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


TABLE = Table(
    "own", "fine-tuning on own boxes of 20 classes", ROWS, metrics=METRICS, set_up=set_up_own, figures=group_figures,
    drawings={"finetune_mini.png": draw},
    pairs=[("before", "boxes alone"), ("before", "boxes + CLIM"), ("boxes + captions", "boxes + CLIM")],
)  # fmt: skip
TABLES = (TABLE,)
