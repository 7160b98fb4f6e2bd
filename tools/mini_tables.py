"""The paper's ablations on the mini benchmark: every row, three seeds, one table.

    python tools/mini_tables.py                       # all rows; can be stopped and started again
    python tools/mini_tables.py --report docs/mini_results.md   # only write what has been run so far

A seed has its own pictures and its own base stage, which all its rows start from. Settings are fixed in
configs/mini; nothing here is tuned.
"""

import argparse
from pathlib import Path

from clim.engine import run_cleanly
from clim.experiment_table import Row, markdown, run_rows

BASE = Row("base_stage.yaml")
NO_TAGS = ("MODEL.METHOD.DETIC.TAG_WEIGHT", 0.0)
STACKED = ("DATALOADER.CAPTIONS_PER_GPU", 21)  # CLIM's 2 + 2 x (4 + 9 + 16) / 3 pictures
CLUTTERED = ("DATASETS.CAPTIONS", "('mini_ov_captions_cluttered',)")


def tuned(config: str, *overrides) -> Row:
    """A row that is fine-tuned from the base stage."""
    return Row(config, overrides, starts_from=(("MODEL.WEIGHTS", BASE, "model_final.pth"),))


SECTIONS = {
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
PREFACE = """# Results on the mini benchmark

Written by `python tools/mini_tables.py --report docs/mini_results.md`; the runs themselves by `python
tools/mini_tables.py`.

AP50 in percent, mean ± standard deviation over seeds; a seed has its own pictures, its own base stage and its
own training randomness. 250 held-out scenes, 48 base and 17 novel concepts, all 65 predicted. Everything is
synthetic: OpenMoji drawings on photos from scikit-image, 1,000 scenes with boxes of the base concepts (one
object in ten is a novel one, unlabelled), 1,500 object-centric pictures with captions. Base stage 300
iterations; fine-tuning 200 iterations from it, 2 box images in each.

Settings (learning rates, iterations, RoIs, sizes) were chosen on the base stage and the 4-caption baseline
with spare seed 9 and committed before any run with mosaics. Of two learning rates for fine-tuning, .001 and
.002, the baseline had AP50 all 56.3 and 52.5 (novel 24.8 and 29.2); .001 was taken. All rows are one run of
commit 0fc3c33 on two CPU cores. An earlier, incomplete run of the same settings (commit f945121, another
machine) had AP50 novel 4.2, 1.0, 1.6 (base stage), 24.7, 16.5, 22.4 (4 captions), 45.0, 40.9 (CLIM, captions),
40.0, 27.0, 34.2 (4 captions + tags), 50.5, 42.8, 51.2 (CLIM, captions + tags) and 10.7, 7.5, 9.5 (control):
repeated runs of a seed differ by some points, and no row changes its place.

"21 captions, stacked" shows as many pictures as CLIM does (2 + 2 x 9.67), each as a canvas of its own. The
control is CLIM whose tiles have exchanged their texts within each canvas (`PermutedDetic`): its single images
and their texts are intact.

What comes out: CLIM adds 19 points of AP50 novel with captions alone and 13 with tags, and the control loses
them all. Stacked single pictures, as many as CLIM shows, are 3 to 4 points better still, at 1.5 times the
CPU time of a step (`tools/benchmark.py --only steps --config-file configs/mini/detic_clim.yaml`): in the paper
they are worse than CLIM. On cluttered pairs, whose objects are as small as those of the scenes, CLIM gains nothing
(one seed). AP50 base falls by 4 points, with CLIM and with stacking alike. The base stage's
AP50 novel was meant to be about 0 and is 4; why was not looked into.

"""


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
    text = PREFACE
    for title, rows, seeds in sections:
        lines = markdown(rows, output=args.output, seeds=seeds, metrics=METRICS)
        text += "\n".join([f"### {title}", "", *lines, "", ""])
    (args.report or args.output / "tables.md").write_text(text)
    print(text)


if __name__ == "__main__":
    run_cleanly(main)
