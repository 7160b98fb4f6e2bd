"""``clim inspect``: what is in data sets, before a training. torch is imported after the arguments."""

import argparse
import sys

from clim.errors import UserError

from ..inputs import output_folder, quiet_logging, require_files
from ..terminal import print_table

LISTED, CLASSES = 10, 30  # files and classes on the terminal; all are on the page
WIDTH = 10  # letters of the longest bar
LAST = ("damaged or missing", "images without an entry")  # rows of the table


def add_inspect_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clim inspect``."""
    add = parser.add_argument
    add("data", nargs="?", metavar="data.yaml", help="your own sets (docs/own_data.md)")
    add("--config-file", metavar="FILE", default="", help="YAML or checkpoint: its sets, or how it resizes yours")
    add("--output", type=output_folder, metavar="DIR", help="also write DIR/data.html, with examples and mosaics")
    add("--strict", action="store_true", help="exit code 1 if a file cannot be used or a box lies outside")
    parser.set_defaults(opts=[])  # KEY VALUE pairs; an argument for them would swallow the options after data.yaml


def inspect(args: argparse.Namespace) -> None:
    """Show what is in data sets: images, boxes of each class, captions, damaged files.

        clim inspect data.yaml --output output/inspection
        clim inspect --config-file configs/Detic_CLIM_C4.yaml

    It opens and decodes every image. --output writes a page with boxes drawn, captions, and mosaics as the detector
    gets them: with the sizes of --config-file, or else of configs/Detic_CLIM_C4.yaml. No model is loaded. KEY VALUE
    pairs at the end override the config.
    """
    require_files({"data.yaml": args.data, "--config-file": args.config_file})
    if not args.data and not args.config_file:
        raise UserError("Name a data.yaml, or a --config-file whose sets are meant.")
    quiet_logging()
    from clim.data.own_data import read_data
    from clim.engine import load_config

    from .counts import Counts, class_rows, remarks
    from .files import check_files

    cfg = load_config(args.config_file, (["DATASETS.DATA", args.data] if args.data else []) + args.opts)
    names = {"train": cfg.DATASETS.TRAIN, "captions": cfg.DATASETS.CAPTIONS, "test": cfg.DATASETS.TEST}
    sets = [Counts(name, part) for part in names for name in names[part]]
    check_files(sets, read_data(cfg.DATASETS.DATA) if cfg.DATASETS.DATA else None)
    print_sets(sets)
    print_classes(class_rows(sets), sets)
    said, faults = remarks(sets), any(c.damaged or c.outside for c in sets)
    for skipped in [skipped for c in sets for skipped in c.damaged][:LISTED]:
        print(f"  {skipped.file_name}: {skipped.reason}")
    print("\n".join(said or ["All images can be read, no box reaches over the border, every class is shown."]))
    if args.output:
        from .report import write_report

        print(write_report(args.output / "data.html", cfg, sets, said))
    if faults and args.strict:
        sys.exit(1)


def print_sets(sets: list) -> None:
    """Print a column of facts for each set."""
    facts = [counts.facts() for counts in sets]
    names = sorted({name: None for of in facts for name in of}, key=lambda name: name in LAST)
    rows = [[name, *(of.get(name, "") for of in facts)] for name in names]
    print_table(["", *(counts.name for counts in sets)], rows)


def print_classes(rows: list[list], sets: list) -> None:
    """Print the classes with the most boxes, in the order of the vocabulary, and their numbers in each set."""
    shown = sorted(range(len(rows)), key=lambda i: -sum(n or 0 for n in rows[i][2:]))[:CLASSES]
    most = max((n or 0 for row in rows for n in row[2:]), default=0)
    table = [
        [f"{name} ★" if novel else name, *numbers, "█" * round(WIDTH * (numbers[0] or 0) / max(most, 1))]
        for name, novel, *numbers in (rows[i] for i in sorted(shown))
    ]
    heads = [f"{c.name}: {'tags' if c.part == 'captions' else 'boxes'}" for c in sets]
    more = f", the {CLASSES} most frequent of {len(rows)}" if len(rows) > CLASSES else ""
    print_table(["class", *heads, ""], table, title=f"Classes (★: novel, without boxes for training){more}")
