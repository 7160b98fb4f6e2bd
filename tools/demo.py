"""Run the demonstration on a CPU: mini benchmark, base stage, Detic and Detic + CLIM, and a report.

    python tools/demo.py [--seed 0] [--fresh]

It writes output/demo/report.html and output/demo/results.json. You may stop it at any time: the same command keeps
finished parts and continues interrupted ones.
"""

import argparse
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from arguments import new_parser
from clim.errors import UserError, run_cleanly
from clim.files import data_root, remove, write_json
from clim_commands.inputs import count, output_folder, quiet_logging, whole
from clim_commands.outputs import read_note
from experiments.progress import Board, clock
from experiments.training import RECORD, run_together, run_training
from mini.generate import DEFAULT_SIZES, Summary, set_up_mini
from reports import COMPARED, TITLES

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "mini"
FILES = {"base": "base_stage.yaml", "detic": "detic.yaml", "detic_clim": "detic_clim.yaml"}
FIGURES = ("AP50_novel", "AP50_base", "AP50_all")
NOTE = "data.json"  # in the output: what the first call has drawn, and in how many seconds
MOST_CORES = 8  # more do not make images of 256 px faster


class Drawn(TypedDict):
    """The content of NOTE."""

    summary: Summary
    seconds: float


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    folder_help = "folder of runs and report (%(default)s)"
    parser.add_argument("--output", type=output_folder, default="output/demo", help=folder_help)
    parser.add_argument("--seed", type=whole, default=0, help="of the images and the training (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier calls have trained")
    # For tests: a run of seconds, whose results mean nothing.
    parser.add_argument("--iterations", type=count, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=whole, nargs=3, help=argparse.SUPPRESS)  # train, val, pairs
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    quiet_logging()
    if args.fresh:
        forget(args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    if any(args.output.iterdir()) and not (args.output / NOTE).is_file():
        raise UserError(f"--output {args.output} holds files, but no {NOTE} of this command: name a new folder.")
    board = Board()
    seconds = {"data": prepare_data(args, board)}
    results = train(args, board)
    seconds |= {name: result["seconds"] for name, result in results.items()}
    write_results(args, results, seconds)
    from clim.engine import load_config  # torch and Detectron2 load here, not for --help
    from reports.demo_report import write_demo_report

    start = time.monotonic()
    configs = {name: load_config(str(CONFIGS / file), overrides(args, name)) for name, file in FILES.items()}
    write_demo_report(
        args.output, configs=configs, results=results, seconds=seconds, seed=args.seed, commands=next_commands(args)
    )
    seconds["report"] = round(time.monotonic() - start, 1)
    seconds["total"] = total_seconds(seconds)
    write_results(args, results, seconds)
    print_summary(args, results, seconds)


def forget(output: Path) -> None:
    """Remove what this command has made, and nothing else."""
    if not (output / NOTE).is_file():
        return
    for name in (name for name in FILES if (output / name / RECORD).is_file()):
        remove(output / name)
    examples = output / "examples"
    for path in (*examples.glob("[0-9]*.jpg"), output / "results.json", output / "report.html"):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # it holds other files, too
        examples.rmdir()


def prepare_data(args: argparse.Namespace, board: Board) -> float:
    """Make images, class and caption embeddings under the data root. Returns the seconds that this took."""
    start = time.monotonic()
    board.say(f"Data: the mini benchmark, seed {args.seed}, in {data_root() / 'mini'}")
    sizes = dict(zip(("train", "val", "pairs"), args.sizes, strict=True), cluttered=0) if args.sizes else DEFAULT_SIZES
    numbers = {f"num_{split}": number for split, number in sizes.items()}
    summary = set_up_mini(data_root(), seed=args.seed, workers=cores(), **numbers)
    # A later call finds all files: the seconds of the first call count.
    note = args.output / NOTE
    known = read_note(note, kind=Drawn, remedy="remove it: only the seconds of the first call are lost")
    if known is None or known["summary"] != summary:
        known = Drawn(summary=summary, seconds=round(time.monotonic() - start, 1))
        write_json(note, known)
    images = sum(counts["images"] for counts in summary["counts"].values())
    board.say(f"  {images} images in {known['seconds']:.0f} s")
    return known["seconds"]


def train(args: argparse.Namespace, board: Board) -> dict[str, dict]:
    """Train the base stage on all cores, then both fine-tunings, side by side on two or more cores."""

    def training(name: str, *, threads: int) -> dict:
        return {
            "config": CONFIGS / FILES[name],
            "output": args.output / name,
            "overrides": overrides(args, name),
            "threads": threads,
            "progress": board.of(TITLES[name]),
        }

    board.say("Base stage: boxes of the 48 base classes")
    results = {"base": run_training(**training("base", threads=cores()))}
    board.done(TITLES["base"], in_words(results["base"]))
    pair = side_by_side()
    board.say("Detic and Detic + CLIM, fine-tuned from it" + (", side by side" if pair > 1 else ""))
    results |= run_together({name: training(name, threads=cores() // pair) for name in COMPARED}, at_once=pair)
    for name in COMPARED:
        board.done(TITLES[name], in_words(results[name]))
    return results


def overrides(args: argparse.Namespace, name: str) -> list[str]:
    values = ["SEED", str(args.seed)]
    if name != "base":
        values += ["MODEL.WEIGHTS", str(args.output / "base" / "model_final.pth")]
    if args.iterations:
        values += ["SOLVER.MAX_ITER", str(args.iterations), "SOLVER.STEPS", "()", "SOLVER.LOG_PERIOD", "1"]
    return values


def cores() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_CORES)


def side_by_side() -> int:
    """The number of fine-tunings that run at once."""
    return min(cores(), len(COMPARED))


def total_seconds(seconds: dict[str, float]) -> float:
    """Seconds of an uninterrupted call. Fine-tunings that run side by side count once."""
    pair = [seconds[name] for name in COMPARED]
    fine_tuning = max(pair) if side_by_side() > 1 else sum(pair)
    return round(seconds["data"] + seconds["base"] + fine_tuning + seconds["report"], 1)


def write_results(args: argparse.Namespace, results: dict[str, dict], seconds: dict[str, float]) -> None:
    runs = [
        {"name": name, "seed": args.seed} | {key: result[key] for key in FIGURES} for name, result in results.items()
    ]
    write_json(args.output / "results.json", {"runs": runs, "seconds": seconds}, indent=1)


def in_words(result: dict) -> str:
    figures = ", ".join(f"{key.removeprefix('AP50_')} {figure(result[key])}" for key in FIGURES)
    return f"{clock(result['seconds'])}, AP50 {figures}"


def figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def next_commands(args: argparse.Namespace) -> list[tuple[str, str]]:
    base = args.output / "base" / "model_final.pth"
    return [
        ("Find objects of any names in images:", predict_command(args)),
        ("The same with other images and another seed:", "python tools/demo.py --seed 1 --output output/demo_1"),
        (
            "One training by itself, here with 2 x 2 mosaics only:",
            "python train_net.py --config-file configs/mini/detic_clim.yaml \\\n"
            f"    MODEL.WEIGHTS {base} INPUT.MOSAIC.GRIDS '[2]' OUTPUT_DIR output/grid_2",
        ),
        (
            "The paper's experiment on OV-COCO, on GPUs (datasets/README.md says where to get the data):",
            "python train_net.py --config-file configs/BoxSup_C4.yaml --num-gpus 8\n"
            "python train_net.py --config-file configs/Detic_CLIM_C4.yaml --num-gpus 8",
        ),
    ]


def predict_command(args: argparse.Namespace) -> str:
    weights = args.output / "detic_clim" / "model_final.pth"
    return f'clim predict --weights {weights} --input {data_root()}/mini/val --vocabulary "dog, lemon, umbrella, key"'


def print_summary(args: argparse.Namespace, results: dict[str, dict], seconds: dict[str, float]) -> None:
    print(f"\n{'AP50':<14}{'novel':>8}{'base':>8}{'all':>8}")
    for name, result in results.items():
        print(f"{TITLES[name]:<14}" + "".join(f"{figure(result[key]):>8}" for key in FIGURES))
    print("\nSeconds: " + ", ".join(f"{step} {value:.0f}" for step, value in seconds.items()))
    print(f"Report: {args.output / 'report.html'}; predict with the new model: {predict_command(args)}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the trainings end with this process
    try:
        run_cleanly(main)
    except SystemExit as end:
        if end.code == 128 + signal.SIGINT:
            print("The same command goes on from the last checkpoints.", file=sys.stderr)
        raise
