"""Speed and memory of the mosaics, the joint step and the text towers, side by side: medians (min–max).

    python tools/benchmark.py                          # everything, a quarter of an hour on two cores
    python tools/benchmark.py --only mosaics --images COCO/val2017
    python tools/benchmark.py --only steps memory --full --json output/benchmark.json
    python tools/benchmark.py --only steps --config-file configs/mini/detic_clim.yaml

What is compared runs in turn (ABAB), each section in a process of its own. On a CPU, rates and ratios are of
CPU seconds, which other programs disturb less; wall seconds stand beside them. Boxes, captions and tags are
drawn at random. Weights are random too, with the anchors as proposals, unless the command ends in
"-- MODEL.WEIGHTS FILE".
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import detectron2
import numpy as np
import PIL.features
import torch
import torchvision
from tabulate import tabulate

from arguments import add_device
from benchmarks.memory import measure_memory
from benchmarks.mosaics import measure_mosaics
from benchmarks.photos import find_photos, records_of, synthetic_photos
from benchmarks.settings import Settings
from benchmarks.steps import measure_steps, prefill_captions
from benchmarks.stopwatch import Spread, fresh, machine
from benchmarks.texts import CAPTIONS_A_STEP, measure_text
from clim.engine import load_config
from clim.errors import run_cleanly
from clim.files import write_json

SECTIONS = {
    "mosaics": "Mosaics of 800 px; rate and ratio by CPU seconds, ratio to the first row of the grid",
    "steps": "Joint training step (detection + captions + mosaics), ratio to the baseline",
    "memory": "Peak memory of training steps (small inputs leave mostly libraries and weights), ratio to the baseline",
    "text": f"Caption embeddings, {CAPTIONS_A_STEP} captions a joint step, ratio to the live tower",
}


def run_section(name: str, settings: Settings, records: Sequence[dict]) -> list[dict]:
    if name in ("steps", "memory"):
        fresh(prefill_captions, settings, records)
    if name == "memory":
        return measure_memory(settings, records)
    return fresh({"mosaics": measure_mosaics, "steps": measure_steps, "text": measure_text}[name], settings, records)


def default_scale(config_file: str, device: str) -> float:
    """1, but 2/7 (14 x 14 pooled locations become 4 x 4) for a GPU's inputs on a CPU, where a step would take 40 s."""
    large = max(load_config(config_file, []).INPUT.MIN_SIZE_TRAIN) > 400
    return 2 / 7 if large and not device.startswith("cuda") else 1.0


def as_table(rows: Sequence[dict]) -> str:
    cells = [[f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    return tabulate(cells, headers=list(rows[0]), tablefmt="github", disable_numparse=True)


def as_json(value):
    if isinstance(value, Spread):
        return value._asdict()
    if isinstance(value, dict):
        return {key: as_json(v) for key, v in value.items()}
    return [as_json(v) for v in value] if isinstance(value, list) else value


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--images", default="", help="folder of photos, e.g. COCO's; else synthetic ones are made")
    parser.add_argument("--photos", type=int, default=64, help="number of photos (default 64)")
    parser.add_argument("--repeats", type=int, default=3, help="runs behind each median (default 3)")
    parser.add_argument("--canvases", type=int, default=8, help="canvases (or steps' captions) a run (default 8)")
    parser.add_argument("--config-file", default="configs/Detic_CLIM_C4.yaml", help="model of steps and memory")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--scale", type=float,
        help="of the sides of steps' inputs (default: 2/7 for large inputs on a CPU, else 1)",
    )  # fmt: skip
    size.add_argument("--full", action="store_const", const=1.0, dest="scale", help="the same as --scale 1")
    parser.add_argument("--threads", type=int, default=1, help="of torch and OpenCV (default 1)")
    add_device(parser)
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides, after --")
    args = parser.parse_args(argv)
    for name in ("photos", "repeats", "canvases", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: give at least 1")
    if args.scale is not None and not 0 < args.scale <= 1:
        parser.error(f"--scale {args.scale}: give a number above 0, at most 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(args.threads)  # read by the processes that are started below
    facts = machine([torch, torchvision, detectron2, np, cv2, PIL]) | {"threads": str(args.threads)}
    facts["libjpeg-turbo (PIL)"] = PIL.features.version("libjpeg_turbo") or "no"
    if args.device.startswith("cuda"):
        facts["device"] = torch.cuda.get_device_name(args.device)
    else:
        facts["device"] = "cpu"
    with tempfile.TemporaryDirectory(prefix="clim_benchmark_") as folder:
        if args.images:
            paths = find_photos(args.images, count=args.photos)
        else:
            paths = synthetic_photos(Path(folder) / "photos", count=args.photos)
        records = records_of(paths)
        scale = args.scale if args.scale is not None else default_scale(args.config_file, args.device)
        settings = Settings(
            repeats=args.repeats, canvases=args.canvases, threads=args.threads, device=args.device,
            config_file=args.config_file, scale=scale, folder=folder, overrides=tuple(args.opts),
        )  # fmt: skip
        facts["photos"] = describe(records, source=args.images or "synthetic")
        facts["model"] = f"{args.config_file}, scale {scale:.3g}"
        print("\n".join(f"{name}: {fact}" for name, fact in facts.items()))
        results = {}
        for name in args.only:
            results[name] = run_section(name, settings, records)
            print(f"\n{SECTIONS[name]}; median (min–max) of {args.repeats}\n\n{as_table(results[name])}")
            if args.json:  # after every section: an interrupted run keeps what it has
                content = {"machine": facts, "settings": asdict(settings), "results": as_json(results)}
                write_json(args.json, content, indent=1)


def describe(records: Sequence[dict], *, source: str) -> str:
    sizes = [os.path.getsize(r["file_name"]) / 1000 for r in records]
    height, width = (statistics.median([r[side] for r in records]) for side in ("height", "width"))
    return f"{len(records)} from {source}, median {width:g} x {height:g} px, {statistics.median(sizes):.0f} kB"


if __name__ == "__main__":
    run_cleanly(main)
