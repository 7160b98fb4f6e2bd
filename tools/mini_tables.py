"""The paper's ablations on the mini benchmark: every row, three seeds, one table.

    python tools/mini_tables.py                       # all rows; can be stopped and started again
    python tools/mini_tables.py --report docs/mini_results.md   # only write tables of what has been run

A seed has its own pictures and its own base stage, which all its rows start from. Settings are fixed in
configs/mini; nothing here is tuned.
"""

import argparse
from pathlib import Path

from clim.engine import run_cleanly
from clim.experiment_table import Row, markdown, report, run_rows

BASE, BARON_BASE = Row("base_stage.yaml"), Row("baron_base_stage.yaml")
NO_TAGS = ("MODEL.METHOD.DETIC.TAG_WEIGHT", 0.0)
STACKED = ("DATALOADER.CAPTIONS_PER_GPU", 21)  # CLIM's 2 + 2 x (4 + 9 + 16) / 3 pictures
CLUTTERED = ("DATASETS.CAPTIONS", "('mini_ov_captions_cluttered',)")


def tuned(config: str, *overrides, start: Row = BASE) -> Row:
    """A row that is fine-tuned from the base stage, or from ``start``."""
    return Row(config, overrides, starts_from=(("MODEL.WEIGHTS", start, "model_final.pth"),))


TABLE_1A = {
    "Detic": tuned("detic.yaml"),
    "Detic + CLIM": tuned("detic_clim.yaml"),
    "BARON": tuned("baron.yaml", start=BARON_BASE),
    "BARON + CLIM": tuned("baron_clim.yaml", start=BARON_BASE),
    "OV-RCNN": tuned("ovrcnn.yaml", start=Row("ovrcnn_pretrain.yaml")),
    "OV-RCNN + CLIM": tuned("ovrcnn_clim.yaml", start=Row("ovrcnn_clim_pretrain.yaml")),
}
SECTIONS = {
    "Table 1a: methods, each with and without CLIM": TABLE_1A,
    "Image-text supervision, object-centric pairs": {
        "base stage only": BASE,
        "4 captions": tuned("detic.yaml", *NO_TAGS),
        "21 captions, stacked": tuned("detic.yaml", *STACKED, *NO_TAGS),
        "CLIM, captions": tuned("detic_clim.yaml", *NO_TAGS),
        "4 captions + tags": tuned("detic.yaml"),
        "21 captions + tags, stacked": tuned("detic.yaml", *STACKED),
        "CLIM, captions + tags": tuned("detic_clim.yaml"),
        "control: CLIM, texts permuted within each canvas": tuned(
            "detic_clim.yaml", "MODEL.METHOD.NAME", "PermutedDetic"
        ),
    },
    "Grids, captions + tags": {
        "2 x 2": tuned("detic_clim.yaml", "INPUT.MOSAIC.GRIDS", "[2]"),
        "3 x 3": tuned("detic_clim.yaml", "INPUT.MOSAIC.GRIDS", "[3]"),
        "4 x 4": tuned("detic_clim.yaml", "INPUT.MOSAIC.GRIDS", "[4]"),
        "random (the row above)": tuned("detic_clim.yaml"),
    },
}
CLUTTERED_SECTION = {
    "Cluttered pairs, captions + tags (one seed)": {
        "base stage only": BASE,
        "4 captions + tags": tuned("detic.yaml", *CLUTTERED),
        "21 captions + tags, stacked": tuned("detic.yaml", *STACKED, *CLUTTERED),
        "CLIM, captions + tags": tuned("detic_clim.yaml", *CLUTTERED),
    }
}
METRICS = {"AP50_novel": "AP50 novel", "AP50_base": "AP50 base", "AP50_all": "AP50 all"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/mini_tables"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, one thread each")
    parser.add_argument("--report", type=Path, help="only write the tables of what has been run")
    args = parser.parse_args()
    sections = [(title, rows, args.seeds) for title, rows in SECTIONS.items()]
    sections += [(title, rows, args.seeds[:1]) for title, rows in CLUTTERED_SECTION.items()]
    if args.report is None:
        run_rows(
            ((row, seeds) for _, rows, seeds in sections for row in rows.values()),
            output=args.output,
            jobs=args.jobs,
        )
    tables = {
        title: markdown(rows, output=args.output, seeds=seeds, metrics=METRICS)
        for title, rows, seeds in sections
    }
    print(report(args.report or args.output / "tables.md", tool="mini_tables.py", sections=tables))


if __name__ == "__main__":
    run_cleanly(main)
