"""What several commands of tools/ share besides clim_commands/. torch is imported when the arguments have been read."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from clim.errors import UserError
from clim_commands.inputs import Parser

CLASS_LISTS = ("coco", "coco_65", "coco_panoptic", "lvis", "pascal_context", "mini")
PROMPTS = ("a", "ensemble", "imagenet", "name")  # the keys of clim.text.PROMPTS


def new_parser(description: str) -> Parser:
    """A parser whose --help shows ``description`` as it is."""
    return Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def known_classes(name: str) -> list[str] | None:
    """The class names of one of CLASS_LISTS, in the order of their indices; None for any other name."""
    from clim_commands.classes import NAMED_CLASSES
    from mini.concepts import NAMES

    lists = NAMED_CLASSES | {"mini": NAMES}
    return list(lists[name]) if name in lists else None


def listed_names(path: Path, *, wrong: str) -> list[str]:
    """Names of the categories of a json by ascending id, or of a .txt: what precedes the first comma of each line.

    UserError that begins with ``wrong`` for other files, and for a name that is empty.
    """
    try:
        if path.suffix == ".txt":
            with open(path, encoding="utf-8") as lines:
                names = [line.split(",")[0].strip() for line in lines]
        else:
            categories = json.loads(path.read_bytes())["categories"]
            names = [category["name"] for category in sorted(categories, key=lambda category: category["id"])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{wrong} ({error!r}).") from error
    if "" in names:
        raise UserError(f"Name {names.index('') + 1} of {path} is empty: remove it, because names are numbered.")
    return names


def registered_captions(name: str) -> Iterator[str] | None:
    """All captions of a registered data set, one by one in order; None for any other name."""
    from detectron2.data import DatasetCatalog

    import clim.data.datasets  # noqa: F401  registers the data sets

    if name not in DatasetCatalog.list():
        return None
    return (caption for record in DatasetCatalog.get(name) for caption in record.get("captions", ()))


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device; :func:`usable_device` reads it."""
    parser.add_argument("--device", help="cuda, cuda:1, … or cpu (default: a GPU where there is one)")


def usable_device(name: str | None) -> str:
    """``name``, or a GPU where there is one. Raises UserError where this machine has no such device."""
    import torch

    available = torch.cuda.is_available()
    if name is None:
        return "cuda" if available else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind != "cpu" and not (kind == "cuda" and available):
        raise UserError(f"--device {name!r} is not a device of this machine: give cuda with a GPU, or cpu.")
    return name
