"""``clim predict``: find objects in images, draw them and write them as json. torch is imported after the arguments."""

import argparse
from pathlib import Path

from clim.errors import UserError

from .inputs import count, find_images, quiet_logging, read_names


def add_predict_options(parser: argparse.ArgumentParser, *, config_file: Path | None = None) -> None:
    """The arguments of ``clim predict``; without a default ``config_file``, --config-file is required."""
    default = " (%(default)s)"
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="IMAGES", help="files, folders or globs")
    add("--output", type=Path, default=Path("output/predictions"), metavar="DIR", help="folder" + default)
    vocabulary_help = '"a,b,c", a .txt, .csv, .json or .yaml of names, or a list as coco (default: the config\'s)'
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
        from .classes import NAMED_CLASSES

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

    from clim.data.images import read_image

    from .drawing import draw_objects, ordered

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


def most_confident(found, *, threshold: float = 0.0, top: int | None = None, overlap: float = 1.0):
    """At most ``top`` boxes of ``found`` (Instances) with a score of ``threshold`` or more, the highest score first.

    Of boxes with an IoU above ``overlap``, also of different classes, only the best stays: one object has one name.
    """
    from torchvision.ops import nms

    found = found[found.scores >= threshold]
    return found[nms(found.pred_boxes.tensor.double(), found.scores.double(), overlap)[:top]]


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
