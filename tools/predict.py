"""Detect objects of any names in images: drawings with boxes, names and scores, and a JSON file.

    python tools/predict.py --input photo.jpg folder "more/*.png" --vocabulary "dog, fire hydrant"
    python tools/predict.py --config-file configs/Detic_CLIM_C4.yaml --weights model_final.pth --input photos

The default model is the one that ``make demo`` has trained. A score is the probability that training fitted:
the bias that CLIM leaves out at test is kept in, or everything would score nearly 1. Classes that had no boxes in
training (starred in the drawings) score far lower than others, .05 where those reach .9: hence the low default
threshold. Compare scores within a class; raise --threshold where base classes are all you look for.

DIR/predictions.json:
    {"vocabulary": [names], "novel": [names without boxes in training], "config": …, "weights": …,
     "images": [{"file_name", "height", "width", "drawing",
                 "detections": [{"name", "category_id", "score", "bbox"}]}],
     "skipped": [{"file_name", "reason"}]}
``bbox`` is COCO's x, y, width, height in pixels of the upright image, ``category_id`` an index into
``vocabulary``; detections come by falling score.
"""

import argparse
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from arguments import count, find_images, quiet_logging, read_names
from clim.data.images import UnreadableImage, ordered, read_image
from clim.detector import Detector, most_confident
from clim.drawing import draw_objects
from clim.engine import load_config
from clim.errors import UserError, run_cleanly
from clim.files import write_json

DEMO_WEIGHTS = Path("output/demo/detic_clim/model_final.pth")
DEMO_CONFIG = Path("configs/mini/detic_clim.yaml")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, metavar="IMAGES", help="files, folders or globs")
    parser.add_argument("--output", type=Path, default=Path("output/predictions"), help="folder (%(default)s)")
    parser.add_argument("--vocabulary", help='"a,b,c", or a .txt with one name a line (default: the config\'s)')
    parser.add_argument("--config-file", type=Path, default=DEMO_CONFIG, help="YAML (%(default)s)")
    parser.add_argument("--weights", help=f"checkpoint (default: {DEMO_WEIGHTS} with its config, else the config's)")
    parser.add_argument("--threshold", type=float, default=0.05, help="lowest score shown (%(default)s)")
    parser.add_argument("--top", type=count, default=20, help="most boxes shown of an image (%(default)s)")
    parser.add_argument(
        "--overlap", type=float, default=0.3, help="of boxes with a higher IoU the best stays (%(default)s)"
    )
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    quiet_logging()
    paths = find_images(args.input)
    cfg = load_config(str(args.config_file), overrides_of(args))
    predictor = Detector(cfg)
    args.output.mkdir(parents=True, exist_ok=True)
    images, skipped, drawings = [], [], drawing_names(paths)
    for path, drawing in zip(tqdm(paths, unit="image", disable=len(paths) < 2), drawings, strict=True):
        try:
            image = read_image(path, fmt="RGB").image
        except UnreadableImage as error:
            skipped.append({"file_name": str(path), "reason": error.reason})
            continue
        found = predictor.predict(ordered(image, cfg.INPUT.FORMAT))
        found = most_confident(found, threshold=args.threshold, top=args.top, overlap=args.overlap)
        boxes, classes, scores = found.pred_boxes.tensor, found.pred_classes.tolist(), found.scores.tolist()
        drawn = draw_objects(image, boxes, classes, names=predictor.names, novel=predictor.novel, scores=scores)
        Image.fromarray(drawn).save(args.output / drawing, quality=92)
        height, width = image.shape[:2]
        images.append(
            {"file_name": str(path), "height": height, "width": width, "drawing": drawing}
            | {"detections": as_records(found, predictor.names)}
        )
    result = {
        "vocabulary": predictor.names,
        "novel": [predictor.names[i] for i in sorted(predictor.novel)],
        "config": str(args.config_file),
        "weights": cfg.MODEL.WEIGHTS,
        "images": images,
        "skipped": skipped,
    }
    write_json(args.output / "predictions.json", result, indent=1)
    print_summary(args, images, skipped)
    if not images:
        raise UserError("None of the images could be read; the reasons are above.")


def overrides_of(args: argparse.Namespace) -> list[str]:
    overrides = list(args.opts)
    weights = args.weights
    if weights is None and args.config_file == DEMO_CONFIG and "MODEL.WEIGHTS" not in overrides:
        if not DEMO_WEIGHTS.is_file():
            raise UserError(f"{DEMO_WEIGHTS} does not exist: train it with `make demo`, or name --weights.")
        weights = str(DEMO_WEIGHTS)
    if weights is not None:
        overrides += ["MODEL.WEIGHTS", weights]
    if args.vocabulary is not None:
        overrides += ["MODEL.VOCABULARY.NAMES", read_names(args.vocabulary, option="--vocabulary")]
    return overrides


def drawing_names(paths: list[Path]) -> list[str]:
    """A different .jpg name for each image."""
    names: dict[str, None] = {}
    for path in paths:
        name, number = f"{path.stem}.jpg", 2
        while name in names:
            name, number = f"{path.stem}_{number}.jpg", number + 1
        names[name] = None
    return list(names)


def as_records(found, names: list[str]) -> list[dict]:
    rows = zip(found.pred_boxes.tensor.tolist(), found.pred_classes.tolist(), found.scores.tolist(), strict=True)
    return [
        {
            "name": names[category],
            "category_id": category,
            "score": round(score, 6),
            "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
        }
        for (x0, y0, x1, y1), category, score in rows
    ]


def print_summary(args: argparse.Namespace, images: list[dict], skipped: list[dict]) -> None:
    boxes = sum(len(image["detections"]) for image in images)
    print(f"{len(images)} images, {boxes} boxes: {args.output}/*.jpg and {args.output / 'predictions.json'}")
    if skipped:
        print(f"{len(skipped)} images could not be read:")
        for entry in skipped:
            print(f"  {entry['file_name']}: {entry['reason']}")
    if images and not boxes:
        lower = f": lower --threshold, to {args.threshold / 10:g} say" if args.threshold > 0 else ""
        print(f"Nothing scores {args.threshold:g} or more{lower}.")


if __name__ == "__main__":
    run_cleanly(main)
