"""The whole demonstration on a CPU: mini benchmark, base stage, Detic and Detic + CLIM, and a report of it.

    python tools/demo.py [--seed 0] [--fresh]

What is finished is kept and what was cut off goes on, so the same command may be given again at any time.
Ends with output/demo/report.html and output/demo/results.json.
"""

import argparse
import json
import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from clim.data.mapper import CanvasMapper
from clim.data.mini import DEFAULT_SIZES, build_mini
from clim.engine import load_config, run_cleanly
from clim.errors import UserError
from clim.experiments import read_metrics, run_together, run_training
from clim.paths import data_root
from clim.predictor import Predictor, most_confident
from clim.progress import Board, clock
from clim.text import build_text_encoder, build_text_tower, class_embeddings
from clim.visualization import Example, Report, Run, class_colours, draw_boxes, draw_canvas, render_report, side_by_side

ROOT = Path(__file__).resolve().parents[1]
TITLES = {"base": "Base stage", "detic": "Detic", "detic_clim": "Detic + CLIM"}
CONFIGS = {name: ROOT / "configs/mini" / f"{file}.yaml" for name, file in
           (("base", "base_stage"), ("detic", "detic"), ("detic_clim", "detic_clim"))}  # fmt: skip
FIGURES = ("AP50_novel", "AP50_base", "AP50_all")
NUM_EXAMPLES, NUM_MOSAICS = 6, 3
SHOWN_SCORE, SHOWN_OVERLAP = 0.2, 0.5


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder of runs and report")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures and of the training (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier calls have trained")
    # For the tests: a demonstration of seconds that shows nothing.
    parser.add_argument("--iterations", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=int, nargs=3, metavar=("TRAIN", "VAL", "PAIRS"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("torch.fx").setLevel(logging.ERROR)  # torch warns of its own internals on the first call
    if args.fresh:
        forget(args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    board = Board()
    seconds = {"data": prepare_data(args, board)}
    results = train(args, board)
    seconds |= {name: result["seconds"] for name, result in results.items()}
    start = time.monotonic()
    board.say("Report …")
    write_results(args, results, seconds)
    write_report(args, results, seconds)
    seconds["report"] = round(time.monotonic() - start, 1)
    seconds["total"] = round(wall_seconds(seconds), 1)
    write_results(args, results, seconds)
    tell(args, results, seconds)


def forget(output: Path) -> None:
    """Remove what this command makes, and nothing else."""
    for name in (*TITLES, "examples"):
        shutil.rmtree(output / name, ignore_errors=True)
    for name in ("data.json", "results.json", "report.html"):
        (output / name).unlink(missing_ok=True)


# ---- Steps ---------------------------------------------------------------------------------------


def prepare_data(args: argparse.Namespace, board: Board) -> float:
    """Pictures, class embeddings and caption embeddings under the data root; the seconds that making them took."""
    start = time.monotonic()
    board.say(f"Data: the mini benchmark, seed {args.seed}, in {data_root() / 'mini'}")
    sizes = dict(DEFAULT_SIZES)
    if args.sizes:
        sizes = dict(zip(("train", "val", "pairs"), args.sizes, strict=True), cluttered=0)
    summary = build_mini(
        data_root(), seed=args.seed, workers=cores(), **{f"num_{name}": number for name, number in sizes.items()}
    )
    cfg = load_config(str(CONFIGS["detic_clim"]), overrides(args, "detic_clim"))
    embeddings = data_root() / cfg.MODEL.VOCABULARY.EMBEDDINGS
    if not embeddings.is_file():
        names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes
        tower = build_text_tower(name=cfg.MODEL.TEXT.NAME, pretrained=cfg.MODEL.TEXT.PRETRAINED)
        embeddings.parent.mkdir(parents=True, exist_ok=True)
        np.save(embeddings, class_embeddings(tower, names, cfg.MODEL.VOCABULARY.PROMPT).numpy())
    if cfg.MODEL.TEXT.CACHE:
        records = DatasetCatalog.get(cfg.DATASETS.CAPTIONS[0])
        build_text_encoder(cfg).prefill([caption for record in records for caption in record["captions"]])
    # A second call finds everything made; what counts is how long it took the first time.
    note = args.output / "data.json"
    known = json.loads(note.read_text()) if note.is_file() else {}
    if known.get("summary") != summary:
        known = {"summary": summary, "seconds": round(time.monotonic() - start, 1)}
        note.write_text(json.dumps(known))
    board.say(f"  {clock(known['seconds'])}, {sum(c['images'] for c in summary['counts'].values())} pictures")
    return known["seconds"]


def train(args: argparse.Namespace, board: Board) -> dict[str, dict]:
    """The base stage on all cores, then both fine-tunings from it, side by side where there are two cores."""

    def training(name: str, threads: int) -> dict:
        return {
            "config": CONFIGS[name],
            "output": args.output / name,
            "overrides": overrides(args, name),
            "threads": threads,
            "progress": board.of(TITLES[name]),
        }

    board.say("Base stage: boxes of the 48 base classes")
    results = {"base": run_training(**training("base", cores()))}
    board.close(TITLES["base"])
    board.say(f"  {in_words(results['base'])}")
    together = 2 if cores() >= 2 else 1
    board.say("Detic and Detic + CLIM, fine-tuned from it" + (", side by side" if together == 2 else ""))
    names = ("detic", "detic_clim")
    results |= run_together(
        {name: training(name, max(cores() // together, 1)) for name in names}, at_once=together
    )
    for name in names:
        board.close(TITLES[name])
        board.say(f"  {TITLES[name]}: {in_words(results[name])}")
    return results


def overrides(args: argparse.Namespace, name: str) -> list[str]:
    values = ["SEED", str(args.seed)]
    if name != "base":
        values += ["MODEL.WEIGHTS", str(args.output / "base" / "model_final.pth")]
    if args.iterations:
        values += ["SOLVER.MAX_ITER", str(args.iterations), "SOLVER.STEPS", "()", "SOLVER.LOG_PERIOD", "1"]
    return values


def cores() -> int:
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


# ---- What comes out ------------------------------------------------------------------------------


def wall_seconds(seconds: dict[str, float]) -> float:
    """What an uninterrupted call takes: the fine-tunings count once where they run side by side."""
    pair = (seconds["detic"], seconds["detic_clim"])
    return seconds["data"] + seconds["base"] + (max(pair) if cores() >= 2 else sum(pair)) + seconds["report"]


def write_results(args: argparse.Namespace, results: dict[str, dict], seconds: dict[str, float]) -> None:
    runs = [
        {"name": name, "seed": args.seed} | {key: result[key] for key in FIGURES} for name, result in results.items()
    ]
    (args.output / "results.json").write_text(json.dumps({"runs": runs, "seconds": seconds}, indent=1))


def write_report(args: argparse.Namespace, results: dict[str, dict], seconds: dict[str, float]) -> None:
    runs = [
        Run(name, TITLES[name], args.seed, result, read_metrics(args.output / name)) for name, result in results.items()
    ]
    report = Report(
        title="Detic + CLIM on the mini benchmark",
        intro=introduction(args, results),
        runs=runs,
        examples=examples(args),
        examples_note=(
            f"The {NUM_EXAMPLES} validation pictures with the most novel objects, chosen by ground truth alone. "
            f"Detections of probability {SHOWN_SCORE} and more; of boxes that overlap the best one. ★ and a white "
            "rim: a novel class, never seen with a box in training."
        ),
        mosaics=[Example("", mosaics(args))],
        seconds={TITLES.get(step, step.capitalize()): value for step, value in seconds.items()},
        notes=NOTES,
        commands=commands(args),
    )
    (args.output / "report.html").write_text(render_report(report), "utf-8")


def introduction(args: argparse.Namespace, results: dict[str, dict]) -> list[str]:
    novel = {name: result["AP50_novel"] for name, result in results.items()}
    if any(value is None for value in novel.values()):
        headline = "The validation pictures show no novel object, so there is no AP50 of novel classes."
    else:
        headline = (
            f"On classes that never had a box in training, Detic + CLIM reaches AP50 {novel['detic_clim']:.1f}, "
            f"Detic {novel['detic']:.1f} and the base stage {novel['base']:.1f}."
        )
    return [
        headline,
        "All three are one Faster R-CNN (EfficientNet-Lite0 C4) that classifies regions by text embeddings "
        "(MiniLM). The base stage learns boxes of 48 base classes. From there, Detic also learns from captions and "
        "tags of single pictures, Detic + CLIM from single pictures and mosaics of 4, 9 or 16 pictures, whose tiles "
        "stand in for regions. The vocabulary at test is all 65 classes, 17 of them novel.",
        f"One seed ({args.seed}): differences of a few points between two seeds are normal.",
    ]


NOTES = [
    "All pictures are drawn by a program: OpenMoji drawings, CC BY-SA 4.0 (https://openmoji.org, "
    "https://creativecommons.org/licenses/by-sa/4.0/), rotated, flipped, recoloured and pasted on crops of the "
    "sample photos of scikit-image and on plain colours. Captions and tags come from templates. So the report "
    "shows the effect of the method in minutes; it says nothing about accuracy on photos.",
    "The backbone's ImageNet weights and the text tower are real, published models. Training scenes hold one to "
    "six small objects, and boxes of base classes only; image-text pairs hold one or two large objects, as "
    "pictures from the web do.",
]


def commands(args: argparse.Namespace) -> list[tuple[str, str]]:
    return [
        ("Find objects of any names in pictures of yours:", predict_command(args)),
        ("The demonstration again with other pictures and another seed:", "python tools/demo.py --seed 1 --output output/demo_1"),
        ("One training by itself, with other settings:",
         "python train_net.py --config-file configs/mini/detic_clim.yaml INPUT.MOSAIC.GRIDS \"[2]\" OUTPUT_DIR output/grid_2 "
         f"MODEL.WEIGHTS {args.output / 'base' / 'model_final.pth'}"),
        ("The real thing, OV-COCO on GPUs (datasets/README.md says where to get the data):",
         "python train_net.py --config-file configs/Detic_CLIM_C4.yaml --num-gpus 8"),
    ]  # fmt: skip


def predict_command(args: argparse.Namespace) -> str:
    weights = "" if args.output == Path("output/demo") else f" --weights {args.output / 'detic_clim' / 'model_final.pth'}"
    return f'python tools/predict.py --input {data_root() / "mini/val"} --vocabulary "dog, lemon, umbrella, teapot"{weights}'


def examples(args: argparse.Namespace) -> list[Example]:
    """Ground truth, Detic and Detic + CLIM on the same pictures; also as files in output/examples."""
    cfg = load_config(str(CONFIGS["detic_clim"]), overrides(args, "detic_clim"))
    dataset = cfg.DATASETS.TEST[0]
    novel = set(MetadataCatalog.get(dataset).novel_classes)
    names = MetadataCatalog.get(dataset).thing_classes

    def novel_objects(record):
        return sum(names[a["category_id"]] in novel for a in record["annotations"])

    records = sorted(DatasetCatalog.get(dataset), key=novel_objects, reverse=True)[:NUM_EXAMPLES]
    predictors = {}
    for name in ("detic", "detic_clim"):
        weights = str(args.output / name / "model_final.pth")
        predictors[name] = Predictor(load_config(str(CONFIGS[name]), [*overrides(args, name), "MODEL.WEIGHTS", weights]))
    folder = args.output / "examples"
    folder.mkdir(exist_ok=True)
    return [example(record, names, novel, predictors, folder) for record in records]


def example(record: dict, names: list[str], novel: set[str], predictors: dict[str, Predictor], folder: Path) -> Example:
    from PIL import Image

    from clim.data.images import read_image

    picture = read_image(record["file_name"], fmt="RGB").image
    colours = class_colours(len(names))

    def panel(boxes, classes, scores=None):
        labels = [names[c] for c in classes]
        if scores is not None:
            labels = [f"{label} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
        marked = [i for i, c in enumerate(classes) if names[c] in novel]
        return draw_boxes(picture, boxes, labels, colours=colours[classes], marked=marked)

    boxes = np.array([a["bbox"] for a in record["annotations"]], dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    panels = [("Ground truth", panel(boxes, [a["category_id"] for a in record["annotations"]]))]
    for name, predictor in predictors.items():
        found = most_confident(predictor(record["file_name"]), threshold=SHOWN_SCORE, overlap=SHOWN_OVERLAP)
        found = found[list(reversed(range(len(found))))]
        panels.append(
            (TITLES[name], panel(found.pred_boxes.tensor.numpy(), found.pred_classes.tolist(), found.scores.tolist()))
        )
    titles, pictures = zip(*panels, strict=True)
    Image.fromarray(side_by_side(pictures, titles)).save(folder / f"{record['image_id']}.jpg", quality=90)
    return Example(Path(record["file_name"]).name, panels)


def mosaics(args: argparse.Namespace) -> list[tuple[str, np.ndarray]]:
    """One mosaic of each grid, made by the mapper that training uses."""
    cfg = load_config(str(CONFIGS["detic_clim"]), overrides(args, "detic_clim"))
    records = DatasetCatalog.get(cfg.DATASETS.CAPTIONS[0])
    shown = {}
    mapper = CanvasMapper.mosaics(cfg, records, seed=args.seed, stream=2)
    for index in range(len(records)):
        canvas = mapper(index=index, epoch=0)
        shown.setdefault(len(canvas["tiles"]), canvas)
        if len(shown) == min(NUM_MOSAICS, len(set(cfg.INPUT.MOSAIC.GRIDS))):
            break
    return [
        (f"A mosaic as the network sees it: {tiles} tiles with their captions", draw_canvas(canvas, image_format=cfg.INPUT.FORMAT))
        for tiles, canvas in sorted(shown.items())
    ]


def in_words(result: dict) -> str:
    def figure(key):
        return "–" if result[key] is None else f"{result[key]:.1f}"

    return f"{clock(result['seconds'])}, AP50 novel {figure('AP50_novel')}, base {figure('AP50_base')}, all {figure('AP50_all')}"


def tell(args: argparse.Namespace, results: dict[str, dict], seconds: dict[str, float]) -> None:
    print(f"\n{'':<14}{'AP50 novel':>12}{'base':>8}{'all':>8}")
    for name, result in results.items():
        print(f"{TITLES[name]:<14}" + "".join(
            f"{'–' if result[key] is None else format(result[key], '.1f'):>{width}}"
            for key, width in zip(FIGURES, (12, 8, 8), strict=True)))  # fmt: skip
    print("\nSeconds: " + ", ".join(f"{step} {value:.0f}" for step, value in seconds.items()))
    print(f"Report: {args.output / 'report.html'}; predict with the new model: {predict_command(args)}")


if __name__ == "__main__":
    run_cleanly(main)
