"""``clim export``: write a trained detector as an ONNX file, or as programs of torch.export."""

import argparse
from pathlib import Path

from clim.errors import UserError, require_packages

from ..inputs import add_overrides, number, output_file, quiet_logging, require_files, require_other
from ..predict import read_classes


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clim export``."""
    default = " (%(default)s)"
    add = parser.add_argument
    add("--weights", required=True, metavar="FILE", help="checkpoint of a detector")
    add("--output", type=output_file, default="model.onnx", metavar="FILE", help="ends in .onnx or .pt2" + default)
    vocabulary_help = '"a, b, c", a word list, or a known one such as coco (default: the checkpoint\'s classes)'
    add("--vocabulary", metavar="WORDS", help=vocabulary_help)
    dynamic_help = "class embeddings are an input, so that other words need no new export (.onnx only)"
    add("--dynamic-classes", action="store_true", help=dynamic_help)
    add("--config-file", metavar="FILE", help="YAML, for a checkpoint without its config")
    add("--threshold", type=number(0, 1), default=0.05, help="lowest score in the output" + default)
    check_help = "compare the file with PyTorch on these images, at three sizes, and measure the speed of both"
    add("--check", nargs="+", default=[], metavar="IMAGES", help=check_help)
    add_overrides(parser)


def export(args: argparse.Namespace) -> None:
    """Write a trained detector for onnxruntime, or for torch.export.

        clim export --weights model_final.pth --output model.onnx --vocabulary "dog, umbrella" --check photos
        clim export --weights model_final.pth --output model.onnx --dynamic-classes

    The file takes an image, uint8 or float (height, width, 3) RGB, resized as its metadata say, and gives boxes (N, 4),
    scores (N,), classes (N,), and masks (N, M, M) from a head with masks. tools/onnx_predict.py is a client without
    torch. FILE.pt2 stands for two files, which `clim_commands.export.programs.load_programs` reads: docs/export.md.
    """
    quiet_logging()
    images, classes = check_arguments(args)
    from rich.console import Console

    from clim.detector import Detector

    from .graph import describe, prepare

    console = Console()
    with console.status(f"Loading {args.weights}"):
        options = {"config": args.config_file, "classes": classes, "overrides": args.opts}
        detector = Detector(args.weights, score_threshold=args.threshold, device="cpu", **options)
        prepare(detector, dynamic_classes=args.dynamic_classes)
        about = describe(detector, Path(args.weights))
    with console.status(f"Writing {args.output}"):
        args.output.parent.mkdir(parents=True, exist_ok=True)
        if args.output.suffix == ".pt2":
            from .programs import write_programs

            files = write_programs(detector.model, args.output, about)
        else:
            from .onnx_file import write_onnx

            files = write_onnx(detector.model, args.output, about, dynamic_classes=args.dynamic_classes)
    for file in files:
        console.print(f"{file}: {file.stat().st_size / 1e6:.1f} MB", highlight=False, soft_wrap=True)
    if images:
        from .check import check

        check(detector, args.output, images, dynamic_classes=args.dynamic_classes, console=console)


def check_arguments(args: argparse.Namespace) -> tuple[list, list[str] | dict[str, list[str]] | None]:
    """The images of --check and the classes of --vocabulary. UserError for what is wrong, before torch loads."""
    from clim.sources import find_source

    if args.output.suffix not in (".onnx", ".pt2"):
        raise UserError(f"--output {args.output}: its end decides the format: .onnx, or .pt2 for torch.export.")
    for written in (args.output, args.output.with_suffix(".npy")):
        require_other(written, args.weights, args.vocabulary, *args.opts[1::2])
    if args.output.suffix == ".onnx":
        require_packages("clim export", ("onnx", "onnxruntime") if args.check else ("onnx",))
    elif args.dynamic_classes:
        raise UserError(f"--dynamic-classes is for ONNX files, not for {args.output}.")
    require_files({"--weights": args.weights, "--config-file": args.config_file})
    return find_source(args.check), None if args.vocabulary is None else read_classes(args.vocabulary)
