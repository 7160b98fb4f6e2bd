"""What several commands read from their arguments: config overrides, files, names and numbers."""

import argparse
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

from clim.errors import UserError
from train_net import quiet_warnings

from .words import read_words

LARGEST = 2**32 - 1  # that numpy takes as a seed
# A key of the config. Files such as DSC_01.JPG are none, because their names begin otherwise.
KEY = re.compile(
    r"(MODEL|INPUT|DATASETS|DATALOADER|DISTRIBUTED|SOLVER|TEST|GLOBAL)(\.[A-Z0-9_]+)+"
    r"|OUTPUT_DIR|SEED|VERSION|VIS_PERIOD|CUDNN_BENCHMARK"
)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and whose options end at the first KEY of KEY VALUE overrides.

    So an option of several values, such as --input, does not swallow the overrides after it.
    """

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} ({self.prog} --help lists the arguments)\n")

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else list(args)
        start = next(
            (i for i, word in enumerate(words) if KEY.fullmatch(word) and not Path(word).is_file()), len(words)
        )
        namespace, unknown = super().parse_known_args(words[:start], namespace)
        if unknown:
            self.error(f"unknown option: {' '.join(unknown)}")
        if start < len(words) and "opts" not in namespace:
            self.error(f"{words[start]}: this command takes no KEY VALUE pairs")
        opts = [*getattr(namespace, "opts", ()), *words[start:]]
        if wrong := next((key for key in opts[::2] if not KEY.fullmatch(key)), None):
            self.error(f"{wrong} is no option here and no config key: KEY VALUE pairs, as MODEL.DEVICE cpu, come last")
        if len(opts) % 2:
            self.error(f"{opts[-1]} has no value: write KEY VALUE pairs, such as MODEL.DEVICE cpu")
        if opts:
            namespace.opts = opts
        return namespace, unknown


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Let KEY VALUE pairs, the config's overrides, end the command line; they become the list ``args.opts``."""
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, at the end")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --weights, --config-file, --data and overrides; :func:`model_overrides` reads them."""
    add = parser.add_argument
    add("--weights", metavar="FILE", help="checkpoint, the same as MODEL.WEIGHTS FILE")
    add("--config-file", metavar="FILE", help="YAML (default: the config inside the checkpoint)")
    add("--data", metavar="FILE", help="data.yaml of your own sets and classes, the same as DATASETS.DATA FILE")
    add_overrides(parser)


def model_overrides(args: argparse.Namespace) -> list[str]:
    """``args.opts``, and then what --data and --weights stand for.

    UserError as :func:`require_files`, so call it before torch is imported.
    """
    chosen = {"DATASETS.DATA": args.data, "MODEL.WEIGHTS": args.weights}
    require_files({"--config-file": args.config_file, "--data": args.data, "--weights": args.weights})
    return args.opts + [part for key, file in chosen.items() if file is not None for part in (key, file)]


def require_files(files: Mapping[str, str | os.PathLike | None]) -> None:
    """UserError if the file of an {option: file} does not exist. Addresses pass, and options without a file."""
    for option, file in files.items():
        path = str(file or "").partition("?")[0]
        if path and "://" not in path and not Path(path).expanduser().is_file():
            raise UserError(f"{option} {file} does not exist, or is no file.")


def value_of(overrides: list[str], key: str) -> str | None:
    """The last value of ``key`` among KEY, VALUE, …; None without one."""
    return dict(zip(overrides[::2], overrides[1::2], strict=True)).get(key)


def quiet_logging() -> None:
    """Show only warnings and errors, without time and module, and none that speak to other packages' developers.

    Call it before torch is imported, and in each process of :func:`train_net.launch`.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # What a checkpoint lacks, clim says in a sentence; fvcore lists all of it.
    for name in ("fvcore", "iopath", "detectron2"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # of webcams and videos that we report ourselves
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of a text tower that loads
    quiet_warnings()


def read_names(text: str, *, option: str) -> list[str]:
    """The names of :func:`clim_commands.words.read_words`."""
    return list(read_words(text, option=option))


def whole(text: str, *, least: int = 0, most: int = LARGEST) -> int:
    """``type=`` of an argparse option: a whole number from ``least`` to ``most``."""
    if not text.isdecimal() or len(text) > len(str(most)) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from {least} to {most}")
    return int(text)


count = partial(whole, least=1)
workers = partial(whole, most=256)  # processes that read, beside the command's own
processes = partial(whole, least=1, most=1024)


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """``type=`` of an argparse option: a finite number from ``low`` to ``high``."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            limits = f"of {low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number {limits}")
        return value

    return read


def output_file(text: str) -> Path:
    """``type=`` of an argparse option: a file that can be written, and may exist."""
    if os.path.exists(text) and not os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"{text} is a folder, or no regular file: name a file")
    output_folder(text and os.path.dirname(os.path.abspath(text)))
    return Path(text)


def output_folder(text: str) -> Path:
    """``type=`` of an argparse option: a folder that can be written, and may exist."""
    if not text.strip():  # an empty variable of a shell; Path("") would be the working folder
        raise argparse.ArgumentTypeError("it is empty: name a place")
    folder = Path(text)
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise argparse.ArgumentTypeError(f"{existing} is no folder: name another place")
    if not os.access(existing, os.W_OK):
        raise argparse.ArgumentTypeError(f"{existing} is read-only: name another place")
    return folder


def require_other(output: Path, *inputs: str | os.PathLike | None, option: str = "--output") -> None:
    """UserError if ``output`` is one of the files ``inputs``, which it would replace."""
    for file in filter(None, inputs):
        if os.path.exists(output) and os.path.exists(file) and os.path.samefile(output, file):
            raise UserError(f"{option} {output} is {file}, which is an input: name another file.")
