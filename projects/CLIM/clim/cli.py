"""The console script ``clim`` and its sub-commands; ``train_net.py`` and ``tools/predict.py`` are the same commands.

Commands import torch and Detectron2 after they have read their arguments: ``--help`` and a wrong argument take no time.
"""

import argparse
import glob
import inspect
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from clim.errors import UserError, raise_on_all_ranks, run_cleanly

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


def main(arguments: list[str] | None = None) -> None:
    """``clim COMMAND …``: a user's mistake ends it with one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="clim", description="Open-vocabulary detection with CLIM.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (add_options, run) in COMMANDS.items():
        text, layout = inspect.getdoc(run), argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, help=text.partition("\n")[0], description=text, formatter_class=layout)
        add_options(command)
        command.set_defaults(run=run)
    args = parser.parse_args(arguments)
    run_cleanly(args.run, args)


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of Detectron2's ``default_argument_parser``, with its defaults."""
    # as there: one port for all trainings of a user
    port = 2**15 + 2**14 + hash(os.getuid() if hasattr(os, "getuid") else 1) % 2**14
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="YAML")
    add("--resume", action="store_true", help="continue from OUTPUT_DIR's last checkpoint")
    add("--eval-only", action="store_true", help="evaluate, do not train")
    add("--num-gpus", type=int, default=1, help="GPUs, or processes, of a machine (%(default)s)")
    add("--num-machines", type=int, default=1, help="machines (%(default)s)")
    add("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    add("--dist-url", default=f"tcp://127.0.0.1:{port}", help="address of the processes (%(default)s)")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, at the end")


def train(args: argparse.Namespace) -> None:
    """Train or evaluate.

        clim train --config-file configs/Detic_CLIM_C4.yaml --num-gpus 8

    --resume continues from OUTPUT_DIR's last checkpoint. --eval-only scores MODEL.WEIGHTS, or with --resume that
    checkpoint. KEY VALUE pairs override the config. --num-machines, --machine-rank and --dist-url train on several
    machines, as in Detectron2. Without CUDA it runs on the CPU, and --num-gpus is the number of processes.
    """
    from clim.engine import launch

    launch(train_process, args)


def train_process(args: argparse.Namespace):
    """Train or evaluate in this process. Returns the results of an evaluation."""
    from clim.engine import Trainer, load_ensemble, setup
    from clim.evaluation import evaluate

    with raise_on_all_ranks():
        cfg = setup(args)
    if args.eval_only:
        with raise_on_all_ranks():
            ensemble = load_ensemble(cfg, resume=args.resume)
        with ensemble.mixed() as model:
            return evaluate(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def add_predict_options(parser: argparse.ArgumentParser, *, config_file: Path | None = None) -> None:
    """The arguments of ``clim predict``; without a default ``config_file``, --config-file is required."""
    default = " (%(default)s)"
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="IMAGES", help="files, folders or globs")
    add("--output", type=Path, default=Path("output/predictions"), metavar="DIR", help="folder" + default)
    vocabulary_help = '"a,b,c", a .txt with one name a line, or a known list such as coco (default: the config\'s)'
    add("--vocabulary", help=vocabulary_help)
    config_help = "YAML" + (default if config_file else "")
    add("--config-file", type=Path, default=config_file, required=not config_file, metavar="FILE", help=config_help)
    add("--weights", metavar="FILE", help="checkpoint (default: the config's)")
    add("--threshold", type=float, default=0.05, help="lowest score shown" + default)
    add("--top", type=count, default=20, help="most boxes shown of an image" + default)
    add("--overlap", type=float, default=0.3, help="show the best of boxes with a higher IoU" + default)
    add("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides")


def predict(args: argparse.Namespace) -> None:
    """Detect objects of any names in images: drawings with boxes, masks, names and scores, and a JSON file.

        clim predict --config-file configs/Detic_CLIM_C4.yaml --weights model_final.pth --input photos "more/*.png"

    Scores are the probabilities of training. CLIM's evaluation leaves out the bias; this command keeps it, because
    without it all scores are nearly 1. Classes without boxes in training (with a star in the drawings) score far lower
    than others, .05 where those reach .9. So the default threshold is low: compare scores within a class, and raise
    --threshold if you look for base classes only.

    DIR/predictions.json:
        {"vocabulary": [names], "novel": [names without boxes in training], "config": …, "weights": …,
         "images": [{"file_name", "height", "width", "drawing",
                     "detections": [{"name", "category_id", "score", "bbox", "segmentation"}]}],
         "skipped": [{"file_name", "reason"}]}
    ``bbox`` is COCO's x, y, width, height in pixels of the upright image. ``category_id`` is an index into
    ``vocabulary``. ``segmentation`` is COCO's RLE {"size", "counts"} in the same pixels, from a detector with masks.
    The detection with the highest score is the first.
    """
    paths = find_images(args.input)
    overrides = args.opts + (["MODEL.WEIGHTS", args.weights] if args.weights is not None else [])
    if args.vocabulary is not None:
        from clim.data.categories import NAMED_CLASSES

        names = NAMED_CLASSES.get(args.vocabulary) or read_names(args.vocabulary, option="--vocabulary")
        overrides += ["MODEL.VOCABULARY.NAMES", list(names)]

    from tqdm import tqdm

    from clim.data.images import UnreadableImage
    from clim.detector import Detector
    from clim.engine import load_config
    from clim.files import write_json

    quiet_logging()
    cfg = load_config(str(args.config_file), overrides)
    detector = Detector(cfg, score_threshold=max(args.threshold, 0.0))
    args.output.mkdir(parents=True, exist_ok=True)
    images, skipped = [], []
    named = zip(paths, drawing_names(paths), strict=True)
    for path, drawing in tqdm(named, total=len(paths), unit="image", disable=len(paths) < 2):
        try:
            images.append(_predict_image(detector, path, args.output / drawing, args))
        except UnreadableImage as error:
            skipped.append({"file_name": str(path), "reason": error.reason})
    result = {
        "vocabulary": detector.names, "novel": [detector.names[i] for i in sorted(detector.novel)],
        "config": str(args.config_file), "weights": cfg.MODEL.WEIGHTS, "images": images, "skipped": skipped,
    }  # fmt: skip
    write_json(args.output / "predictions.json", result, indent=1)
    print_summary(args, images, skipped)
    if not images:
        raise UserError("None of the images could be read; the reasons are above.")


def _predict_image(detector, path: Path, drawing: Path, args: argparse.Namespace) -> dict:
    """Write the ``drawing`` of an image. Returns its entry in predictions.json."""
    import numpy as np
    from PIL import Image
    from pycocotools.mask import encode

    from clim.data.images import ordered, read_image
    from clim.detector import most_confident
    from clim.drawing import draw_objects

    image = read_image(path, fmt="RGB").image
    found = detector.predict(ordered(image, detector.input_format))
    found = most_confident(found, threshold=args.threshold, top=args.top, overlap=args.overlap)
    boxes, classes, scores = found.pred_boxes.tensor, found.pred_classes.tolist(), found.scores.tolist()
    masks = found.pred_masks.numpy() if found.has("pred_masks") else None
    texts = {"names": detector.names, "novel": detector.novel, "scores": scores}
    Image.fromarray(draw_objects(image, boxes, classes, masks=masks, **texts)).save(drawing, quality=92)
    detections = []
    for (x0, y0, x1, y1), k, score in zip(boxes.tolist(), classes, scores, strict=True):
        box = [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)]
        detections.append({"name": detector.names[k], "category_id": k, "score": round(score, 6), "bbox": box})
    if masks is not None:
        for detection, mask in zip(detections, masks, strict=True):
            rle = encode(np.asfortranarray(mask, dtype=np.uint8))
            detection["segmentation"] = rle | {"counts": rle["counts"].decode("ascii")}
    height, width = image.shape[:2]
    return {"file_name": str(path), "height": height, "width": width, "drawing": drawing.name, "detections": detections}


def drawing_names(paths: list[Path]) -> list[str]:
    """A different .jpg name for each image."""
    names: dict[str, None] = {}
    for path in paths:
        name, number = f"{path.stem}.jpg", 2
        while name in names:
            name, number = f"{path.stem}_{number}.jpg", number + 1
        names[name] = None
    return list(names)


def print_summary(args: argparse.Namespace, images: list[dict], skipped: list[dict]) -> None:
    """Print what was written, what was skipped, and what to change where no box is shown."""
    boxes = sum(len(image["detections"]) for image in images)
    print(f"{len(images)} images, {boxes} boxes: {args.output}/*.jpg and {args.output / 'predictions.json'}")
    if skipped:
        print(f"{len(skipped)} images could not be read:")
        print(*(f"  {entry['file_name']}: {entry['reason']}" for entry in skipped), sep="\n")
    if images and not boxes:
        print(f"Nothing scores {args.threshold:g} or more{': lower --threshold' if args.threshold > 0 else ''}.")


def quiet_logging() -> None:
    """Show only warnings and errors, without time and module."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("torch.fx").setLevel(logging.ERROR)  # its warnings are about its own code


def find_images(inputs: Iterable[str]) -> list[Path]:
    """Images of files, folders (without sub-folders) and globs, each once, in order."""
    found: dict[Path, None] = {}
    for item in inputs:
        path = Path(item).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        elif path.exists() or not glob.has_magic(item):
            inside = [path]
        else:
            inside = [p for p in map(Path, sorted(glob.glob(str(path), recursive=True))) if p.is_file()]
        if not inside:
            raise UserError(f"--input {item}: no image there ({', '.join(sorted(SUFFIXES))}).")
        found.update(dict.fromkeys(inside))
    return list(found)


def read_names(text: str, *, option: str) -> list[str]:
    """Names of "a,b,c" or of the lines of a .txt file, each once; errors name ``option``."""
    if text.endswith(".txt"):
        try:
            names = Path(text).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{option} {text} cannot be read ({error}): use a text file with a name a line.") from error
    else:
        names = text.split(",")
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not names:
        raise UserError(f'{option} {text!r} holds no name: write "a,b,c", or a name on each line of the file.')
    return names


def count(text: str) -> int:
    """A number above 0, for ``type=`` of an argparse option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


COMMANDS = {"train": (add_train_options, train), "predict": (add_predict_options, predict)}
