"""Runs the sections of tools/benchmark.py, prints the table of each, and writes their json."""

import argparse
import os
import pkgutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import detectron2
import numpy as np
import PIL.features
import torch
import torchvision
from tabulate import tabulate

from clim.engine import load_config
from clim.files import write_json

from . import SECTIONS
from .inputs import Settings, find_photos, records_of, synthetic_photos
from .stopwatch import Spread, fresh, machine


def run_sections(args: argparse.Namespace) -> tuple[dict[str, str], dict[str, list[dict]]]:
    """Measure the sections of ``args.only``, print a table for each, and write ``args.json``.

    Returns facts about the machine, and {section: rows}.
    """
    facts = machine([torch, torchvision, detectron2, np, cv2, PIL]) | {"threads": str(args.threads)}
    facts["libjpeg-turbo (PIL)"] = PIL.features.version("libjpeg_turbo") or "no"
    facts["device"] = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else "cpu"
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
            evaluated=tuple(args.evaluated),
            pairs=tuple(args.pairs),
        )  # fmt: skip
        facts["photos"] = describe(records, source=args.images or "synthetic")
        facts["model"] = f"{args.config_file}, scale {scale:.3g}"
        facts["repeats"] = f"median (min–max) of {args.repeats}"
        print("\n".join(f"{name}: {fact}" for name, fact in facts.items()))
        results = {}
        for name in args.only:
            results[name] = fresh(measure_of(name), settings, records)
            print(f"\n{title_of(name)} ({name})\n\n{as_table(results[name])}", flush=True)
            if args.json:  # after every section: an interrupted run keeps what it has
                content = {"machine": facts, "settings": asdict(settings), "results": as_json(results)}
                write_json(args.json, content, indent=1)
    return facts, results


def measure_of(section: str) -> Callable[[Settings, Sequence[dict]], list[dict]]:
    return pkgutil.resolve_name(f"{__package__}.{SECTIONS[section]}:measure_{section}")


def title_of(section: str) -> str:
    return measure_of(section).__doc__.splitlines()[0].rstrip(".")


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


def describe(records: Sequence[dict], *, source: str) -> str:
    sizes = [os.path.getsize(r["file_name"]) / 1000 for r in records]
    height, width = (statistics.median([r[side] for r in records]) for side in ("height", "width"))
    return f"{len(records)} from {source}, median {width:g} x {height:g} px, {statistics.median(sizes):.0f} kB"
