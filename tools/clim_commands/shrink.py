"""``clim shrink``: small copies of a folder's images, which training reads for tiles that are no larger."""

import argparse
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from clim.errors import UserError
from clim.files import read_json, remove, replacing, write_json
from clim.sources import IMAGES, files_below

from .inputs import output_folder, quiet_logging, workers
from .outputs import hold

QUALITY = 90  # of the JPEGs: 95 decodes a third more slowly for 1 dB on tiles of 400 px, and less on smaller ones
NOTE = "copies.json"  # in a folder of copies
LISTED = 10  # unreadable images that are named


def add_shrink_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clim shrink``."""
    add = parser.add_argument
    add("--input", type=Path, required=True, metavar="DIR", help="folder of images, with its sub-folders")
    add("--output", type=output_folder, required=True, metavar="DIR", help="folder of the copies")
    add("--workers", type=workers, default=2, help="processes that make copies (%(default)s); 0: this one alone")


def shrink(args: argparse.Namespace) -> None:
    """Copy the images of a folder in 400 px, from which mosaics are made faster.

        clim shrink --input datasets/coco/train2017 --output datasets/coco/train2017_400 --workers 16
        clim train --config-file configs/Detic_CLIM_C4.yaml INPUT.COPIES "[['coco/train2017', 'coco/train2017_400']]"

    A copy is a JPEG with the name of its image, whatever that ends with, whose longest side is 400 px. It stands
    upright. Images that are no larger have none. Training reads it where a tile is no larger, and else the image.

    The command may be interrupted: called again, it makes what is missing, and copies of images that have changed.
    """
    names = find_images(args.input, args.output)
    quiet_logging()
    from rich.console import Console
    from rich.progress import track
    from torch.utils.data import DataLoader

    from clim.data.loader import start_worker

    counts, size, unreadable = Counter(), 0, []
    with holding(args.output, args.input):
        make = partial(make_copy, images=args.input, copies=args.output)
        # A DataLoader, because its processes end when this one is killed.
        options = {"num_workers": args.workers, "worker_init_fn": start_worker}
        made = DataLoader(names, batch_size=None, collate_fn=make, **options)
        for kind, number, fault in track(made, "images", len(names), console=Console(stderr=True), transient=True):
            counts[kind] += 1
            size += number
            unreadable += [fault] if fault else []
    copies = counts["new"] + counts["there"]
    print(f"{args.output}: {copies} copies ({counts['new']} of them new), {size / 1e6:.1f} MB")
    if counts["small"]:
        print(f"{counts['small']} images are no larger, and need none")
    if unreadable:
        print(f"{len(unreadable)} images could not be read, and have none:")
        print(*unreadable[:LISTED], *["…"] * (len(unreadable) > LISTED), sep="\n")
    print(f"""Train with INPUT.COPIES "[['{args.input}', '{args.output}']]".""")


def find_images(images: Path, copies: Path) -> list[str]:
    """Names of the images below a folder. UserError if it has none, or if the copies would be among them."""
    if not images.is_dir():
        raise UserError(f"--input {images} does not exist, or is no folder.")
    here, there = (Path(os.path.realpath(folder)) for folder in (images, copies))
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise UserError(f"--output {copies} and --input {images} lie in each other: name another folder.")
    names = sorted(str(p.relative_to(images)) for p in files_below(images) if p.suffix.lower() in IMAGES)
    if not names:
        raise UserError(f"--input {images} has no image ({', '.join(sorted(IMAGES))}); tar shards are not shrunk.")
    return names


@contextmanager
def holding(copies: Path, images: Path) -> Iterator[None]:
    """Note whose copies a folder holds. UserError for a folder of other files, and while another process has it."""
    note, about = copies / NOTE, {"images": str(images.resolve())}
    if not note.is_file():
        if copies.is_dir() and any(copies.iterdir()):
            raise UserError(f"--output {copies} holds files that this command has not made: name another folder.")
        write_json(note, about)
    remedy = f"name another folder, or correct {note} if the images have moved"
    if (before := read_json(note, kind=dict[str, str], remedy=remedy)) != about:
        raise UserError(f"--output {copies} holds copies of {before.get('images')}: {remedy}.")
    with open(note, "r+b") as lock:
        hold(lock, f"Another process makes the copies in {copies}: wait for it.")
        yield


def make_copy(name: str, *, images: Path, copies: Path) -> tuple[str, int, str]:
    """Write the copy of an image, unless it is there; it has the time of the image from which it was made.

    Returns "new", "there", "small" (the image needs none) or "unreadable", the bytes of the copy, and name and reason
    of an unreadable image.
    """
    import cv2
    import simplejpeg

    from clim.data.images import MIN_SIDE, UnreadableImage, image_size, read_image
    from clim.data.mosaic import COPY_SIDE, fit_cell

    source, copy = str(images / name), copies / name
    with suppress(OSError):
        time = os.stat(source).st_mtime
        if int(time) == int((there := copy.stat()).st_mtime):
            return "there", there.st_size, ""
    remove(copy)
    try:
        size = image_size(source)
        if max(size) <= COPY_SIDE:
            return "small", 0, ""
        size = fit_cell(*size, cell=(COPY_SIDE, COPY_SIDE))
        image = read_image(source, at_least=size, min_side=MIN_SIDE).image
    except UnreadableImage as error:
        return "unreadable", 0, f"{name}: {error.reason}"
    small = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)  # each pixel is a mean, so nothing aliases
    data = simplejpeg.encode_jpeg(small, quality=QUALITY, colorspace="BGR", colorsubsampling="420")
    with replacing(copy) as unfinished:
        unfinished.write_bytes(data)
        os.utime(unfinished, (time, time))
    return "new", len(data), ""
