"""Measure the work of training, detection and evaluation against the usual libraries: speed, memory, equal results.

    python tools/benchmark.py                          # everything, half an hour on two cores
    python tools/benchmark.py --only mosaics --images COCO/val2017
    python tools/benchmark.py --only steps memory --full --json output/benchmark.json
    python tools/benchmark.py --only steps --config-file configs/mini/detic_clim.yaml
    python tools/benchmark.py --only lvis evaluation --evaluated 200 5000
    python tools/benchmark.py --only shards --pairs 10000 100000 1000000
    python tools/benchmark.py --read output/benchmark.json --markdown docs/benchmark.md --plot docs/benchmark.png

Each section runs in its own process, and what it compares takes turns (ABAB). On a CPU, rates and ratios use CPU
seconds, which other programs disturb less; wall seconds stand beside them. Boxes, captions and tags are random.
Weights are random too, with the anchors as proposals, unless the command ends in MODEL.WEIGHTS FILE.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from arguments import add_device, new_parser, usable_device
from benchmarks import SECTIONS
from clim.errors import run_cleanly
from clim_commands.inputs import add_overrides, count, number, output_file


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    add("--images", default="", help="folder of photos, e.g. COCO's; else synthetic ones are made")
    add("--photos", type=count, default=64, help="number of photos (default %(default)s)")
    add("--repeats", type=count, default=3, help="runs behind each median (default %(default)s)")
    add("--canvases", type=count, default=8, help="canvases (or steps' captions) a run (default %(default)s)")
    add("--pairs", type=count, nargs="+", default=[10_000, 100_000], help="sizes of shards' sets (default %(default)s)")
    add("--config-file", default="configs/Detic_CLIM_C4.yaml", help="model of steps, memory, sources and detection")
    size = parser.add_mutually_exclusive_group()
    scale_help = "of the sides of networks' inputs (default: 2/7 for large inputs on a CPU, else 1)"
    size.add_argument("--scale", type=number(0, 1), help=scale_help)
    size.add_argument("--full", action="store_const", const=1.0, dest="scale", help="the same as --scale 1")
    images_help = "images of both evaluations: of the comparison, and of CLIM alone (default 200 5000)"
    add("--evaluated", nargs=2, type=count, default=(200, 5000), metavar=("BOTH", "ALONE"), help=images_help)
    add("--threads", type=count, default=1, help="of torch and OpenCV (default %(default)s)")
    add_device(parser)
    add("--json", type=output_file, help="write the results to this file too")
    add("--read", nargs="+", type=Path, metavar="JSON", help="measure nothing, take results of --json (later ones win)")
    add("--markdown", type=output_file, help="write the tables into this file, each in place of the one of its title")
    add("--plot", type=output_file, help="draw the growth curves, a .png or .svg")
    add_overrides(parser)
    args = parser.parse_args(argv)
    if args.scale == 0:
        parser.error("--scale 0: give a number above 0, at most 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(args.threads)  # read by the processes that are started below
    from benchmarks import sections, summary  # after the threads are set and wrong arguments are reported

    if args.read:
        facts, results = summary.read_results(args.read)
    else:
        args.device = usable_device(args.device)
        facts, results = sections.run_sections(args)
    summary.report_results(facts, results, markdown=args.markdown, plot=args.plot)


if __name__ == "__main__":
    run_cleanly(main)
