"""``clim export``: write a trained detector as an ONNX file or as programs of torch.export."""

import argparse
import hashlib
import importlib.util
from pathlib import Path

from clim.errors import UserError

from ..inputs import find_images, quiet_logging, read_names

FORMATS = {".onnx": ("onnx", "onnxruntime"), ".pt2": ()}  # suffix: packages beside those that CLIM needs


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clim export``."""
    default = " (%(default)s)"
    add = parser.add_argument
    add("--weights", required=True, metavar="FILE", help="checkpoint of a detector")
    add("--config-file", metavar="FILE", help="YAML of a checkpoint that lacks its config")
    add("--output", type=Path, default=Path("model.onnx"), metavar="FILE", help="ends in .onnx or .pt2" + default)
    add("--vocabulary", help='"a,b,c", a .txt with one name a line, or a list such as coco (default: the checkpoint\'s)')
    dynamic_help = "class embeddings are an input, so that other words need no new export (.onnx only)"
    add("--dynamic-classes", action="store_true", help=dynamic_help)
    add("--threshold", type=float, default=0.05, help="lowest score in the output" + default)
    check_help = "compare the file with PyTorch on these images, at three sizes, and measure both"
    add("--check", nargs="+", metavar="IMAGES", help=check_help)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, at the end")


def export(args: argparse.Namespace) -> None:
    """Write a trained detector for onnxruntime, or for torch.export.

        clim export --weights model_final.pth --output model.onnx --vocabulary "dog, umbrella" --check photos
        clim export --weights model_final.pth --output model.onnx --dynamic-classes

    The file takes one image, uint8 or float (height, width, 3) RGB, resized as its metadata say, and gives boxes (N, 4),
    scores (N,), classes (N,) and, from a head with masks, masks (N, M, M). docs/export.md describes it.

    FILE.pt2 stands for two programs, FILE.proposals.pt2 and FILE.head.pt2, and
    ``clim_commands.export.programs.load_programs("FILE.pt2")`` reads them.
    """
    paths = check_arguments(args)
    from rich.console import Console

    from clim.files import replacing

    quiet_logging()
    console = Console()
    with console.status(f"Loading {args.weights}"):
        detector, cfg = load_detector(args)
    with console.status(f"Writing {args.output}"):
        description = describe(detector, cfg, args)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        if args.output.suffix == ".pt2":
            from .programs import write_programs

            written = write_programs(detector.model, args.output, description)
        else:
            from .onnx_file import write_onnx

            with replacing(args.output) as partial:
                write_onnx(detector.model, partial, description, dynamic_classes=args.dynamic_classes)
            written = [args.output]
        if args.dynamic_classes:
            written.append(write_rows(detector.model, args.output.with_suffix(".npy")))
    for path in written:
        console.print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", highlight=False)
    if paths:
        from .check import check

        check(detector, args.output, paths, dynamic_classes=args.dynamic_classes, console=console)


def check_arguments(args: argparse.Namespace) -> list[Path]:
    """Images of --check. UserError for what is wrong without a look at the weights."""
    suffix = args.output.suffix
    if suffix not in FORMATS:
        raise UserError(f"--output {args.output}: its end decides the format: .onnx, or .pt2 for torch.export.")
    for package in FORMATS[suffix]:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"clim export needs {package}: pip install -r requirements-extras.txt")
    if args.dynamic_classes and suffix != ".onnx":
        raise UserError(f"--dynamic-classes is for ONNX files, not for {args.output}.")
    if not 0 <= args.threshold < 1:
        raise UserError(f"--threshold {args.threshold:g}: a score is at least 0 and below 1.")
    return find_images(args.check or [])
