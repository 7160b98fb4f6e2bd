"""``clim predict``: find objects in images and videos, draw them and write them as json."""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from clim.errors import UserError

from .inputs import (
    add_model_options,
    count,
    model_overrides,
    number,
    output_file,
    output_folder,
    quiet_logging,
    value_of,
    whole,
)
from .words import parted, read_words, with_synonyms

UNFINISHED = "predictions.jsonl"
DTYPES = {"float32": None, "bf16": "bfloat16", "fp16": "float16"}


def add_predict_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clim predict``."""
    default = " (%(default)s)"
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="IMAGES", help="files, folders, globs, URLs, videos, webcam:0")
    vocabulary_help = '"a, b, c", a word list, or a known one such as coco (default: the checkpoint\'s classes)'
    add("--vocabulary", metavar="WORDS", help=vocabulary_help)
    add("--output", type=output_folder, default="output/predictions", metavar="DIR", help="folder" + default)
    add("--threshold", type=number(0, 1), default=0.05, help="lowest score shown" + default)
    add("--top", type=count, default=20, help="most boxes shown of an image" + default)
    add("--overlap", type=number(0, 1), default=0.3, help="show the best of boxes with a higher IoU" + default)
    slices_help = "read large images also in squares of this side"
    add("--slices", type=partial(whole, least=32), default=0, metavar="PX", help=slices_help)
    add("--tracks", action="store_true", help="number the objects of a video")
    add("--frames", type=count, metavar="N", help="most frames of a video or webcam (default: all, until Ctrl-C)")
    add("--batch", type=count, default=1, metavar="N", help="images at once" + default)
    add("--device", help="cuda, cuda:1, … or cpu (default: a GPU where there is one)")
    add("--dtype", choices=DTYPES, default="float32", help="bf16 and fp16 are faster on a GPU" + default)
    add("--save-json", type=output_file, metavar="FILE", help="also COCO's list of results")
    add_model_options(parser)


def predict(args: argparse.Namespace) -> None:
    """Find objects of any names in images and videos: drawings with boxes, masks, names and scores, and a JSON file.

        clim predict --weights model_final.pth --input photos "more/*.png" film.mp4 --vocabulary "dog, fire hydrant"

    The words of a class with synonyms: --vocabulary "dog: puppy, hound; cat", or a line of a word list "dog: puppy,
    hound". The highest score of its words counts.

    Scores are the probabilities of training. CLIM's evaluation leaves out the bias; this command keeps it, because
    without it all scores are nearly 1. Classes without boxes in training (with a star in the drawings) score far lower
    than others, .05 where those reach .9. So the default threshold is low: compare scores within a class, and raise
    --threshold if you look for base classes only.

    DIR/predictions.json:
        {"vocabulary": [names], "novel": [names without boxes in training], "config": …, "weights": …,
         "images": [{"file_name", "frame", "height", "width", "drawing" (null where it failed),
                     "detections": [{"name", "category_id", "score", "bbox", "segmentation", "track_id"}]}],
         "skipped": [{"file_name", "reason"}]}
    ``bbox`` is COCO's x, y, width, height in pixels of the upright image. ``category_id`` is an index into
    ``vocabulary``. ``segmentation`` is COCO's RLE {"size", "counts"} in the same pixels, from a detector with masks.
    The detection with the highest score is the first. ``frame`` is its number in a video, from 0; ``track_id`` is that
    of an object of a video, -1 without a track.

    DIR/predictions.jsonl has a line for each image while the command runs, and stays where it ends early.

    --save-json FILE has the same as COCO's list of results; ``image_id`` is the number that a file name is, if all
    names are different numbers, else the image's place in predictions.json.
    """
    quiet_logging()
    items, classes, overrides = check(args)
    import torch
    from rich.console import Console
    from rich.progress import track

    from clim.detector import Detector
    from clim.sources import VIDEOS

    dtype = DTYPES[args.dtype] and getattr(torch, DTYPES[args.dtype])
    model = value_of(overrides, "MODEL.WEIGHTS")
    options = {"config": args.config_file, "classes": classes, "device": args.device, "dtype": dtype}
    detector = Detector(model, **options, overrides=overrides)
    options = {name: getattr(args, name) for name in ("batch", "threshold", "top", "overlap", "slices", "tracks")}
    skipped: list = []
    stream = detector.stream(items, frames=args.frames, skipped=skipped, **options)
    endless = any(isinstance(item, int) or Path(str(item)).suffix.lower() in VIDEOS for item in items)
    total, console = None if endless else len(items), Console(stderr=True)
    shown = track(stream, "images", total, console=console, transient=True, disable=total == 1)
    images, results = save_lines(shown, args, console)
    write_files(args, results, {
        "vocabulary": detector.names, "novel": [detector.names[k] for k in sorted(detector.novel)],
        "config": args.config_file, "weights": model, "images": images,
        "skipped": [entry._asdict() for entry in skipped],
    })  # fmt: skip
    print_summary(args, images, skipped)
    if not images:
        raise UserError("None of the images could be read; the reasons are above.")
    if not any(image["detections"] for image in images):
        print(advice(detector, items, args))


def save_lines(stream, args: argparse.Namespace, console) -> tuple[list[dict], list[list[dict]]]:
    """The images of predictions.json, and COCO's results of each for --save-json; drawings and lines as they come."""
    from clim.files import remove
    from clim.results import save_each

    images, results, unfinished = [], [], args.output / UNFINISHED
    remove(unfinished)
    try:
        with open(unfinished, "w", encoding="ascii", buffering=1) as lines:
            for result, drawing in save_each(stream, args.output):
                images.append(result.to_dict() | {"drawing": drawing})
                lines.write(json.dumps(images[-1]) + "\n")
                results.append(result.to_coco() if args.save_json else [])
    except KeyboardInterrupt:
        console.print("Stopped; what was found until here is written.")
    return images, results


def write_files(args: argparse.Namespace, results: list[list[dict]], content: dict) -> None:
    """Write predictions.json, which replaces the lines, and --save-json."""
    from clim.files import remove, write_json

    write_json(args.output / "predictions.json", content, indent=1)
    remove(args.output / UNFINISHED)
    if args.save_json:
        numbered = zip(image_ids(content["images"]), results, strict=True)
        write_json(args.save_json, [entry | {"image_id": number} for number, of in numbered for entry in of])


def check(args: argparse.Namespace) -> tuple[list, list[str] | dict[str, list[str]] | None, list[str]]:
    """The items of --input, the classes of --vocabulary and the overrides. UserError for what is missing."""
    from clim.sources import IMAGES, VIDEOS, check_apart, find_source

    items, overrides = find_source(args.input), model_overrides(args)
    if not value_of(overrides, "MODEL.WEIGHTS"):
        raise UserError("Name a checkpoint: --weights model_final.pth, for example of `make demo`.")
    classes = None if args.vocabulary is None else read_classes(args.vocabulary)
    check_apart(args.output, items)
    there = {path.name for path in args.output.iterdir()} if args.output.is_dir() else set()
    other = next((name for name in sorted(there) if Path(name).suffix.lower() in IMAGES | VIDEOS), None)
    if other and there.isdisjoint({"predictions.json", UNFINISHED}):
        said = f"holds {other}, which is not of an earlier call, and drawings could replace it"
        raise UserError(f"--output {args.output} {said}: name another folder.")
    file = args.save_json
    if file and file.exists() and (file.suffix.lower() != ".json" or file.name == "predictions.json"):
        raise UserError(f"--save-json {file} is there already, and no json: name another file.")
    args.output.mkdir(parents=True, exist_ok=True)
    return items, classes, overrides


def read_classes(text: str) -> list[str] | dict[str, list[str]]:
    """Names of --vocabulary; {name: synonyms} if one has any."""
    if text.isidentifier():  # otherwise it names no list, and importing them takes seconds
        from .classes import NAMED_CLASSES

        if text in NAMED_CLASSES:
            return list(NAMED_CLASSES[text])
    inline = (":" in text or ";" in text) and not Path(text).suffix
    option, classes = "--vocabulary", {}
    words = dict.fromkeys(parted(text, option=option), ()) if inline else read_words(text, option=option)
    for entry, others in words.items():
        name, listed = with_synonyms(entry)
        if name:
            classes[name] = listed + list(others)
    if not classes:
        raise UserError(f'--vocabulary {text!r} holds no name: write "dog: puppy, hound; cat".')
    return classes if any(classes.values()) else list(classes)


def image_ids(images: list[dict]) -> Sequence[int]:
    """Numbers of the images' entries in predictions.json: those of their file names, if these differ; else places."""
    stems = ["" if "frame" in image else Path(image["file_name"]).stem for image in images]
    numbers = {int(stem) for stem in stems if stem.isdecimal()}
    return [int(stem) for stem in stems] if len(numbers) == len(stems) else range(len(stems))


def print_summary(args: argparse.Namespace, images: list[dict], skipped: list) -> None:
    """Print what was written and what was skipped."""
    boxes = sum(len(image["detections"]) for image in images)
    kinds = sorted({Path(image["drawing"]).suffix for image in images if image["drawing"]})
    drawn = " and ".join(f"{args.output}/*{kind}" for kind in kinds)
    written = f"{drawn + ' and ' if drawn else ''}{args.output / 'predictions.json'}"
    print(f"{len(images)} images, {boxes} boxes: {written}")
    if skipped:
        print(f"{len(skipped)} images could not be read:")
        print(*(f"  {entry.file_name}: {entry.reason}" for entry in skipped), sep="\n")


def advice(detector, items: list, args: argparse.Namespace) -> str:
    """What to change where nothing is shown: another threshold helps only if some score is near it."""
    lowest = args.threshold / 5
    files = [item for item in items if isinstance(item, Path)][:10]
    stream = detector.stream(files, threshold=lowest, top=1, frames=1, skipped=[])
    scores = [score for found in stream for score in found.scores]
    if scores:
        return f"Nothing scores {args.threshold:g} or more, the best is {max(scores):.2g}: lower --threshold."
    return f"Nothing scores {args.threshold:g} or more, nor is there a score near it: are these classes in the images?"
