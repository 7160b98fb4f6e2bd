"""The texts, images and figures of the report of ``make demo``; ``page.py`` lays them out."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from clim.data.images import read_image
from clim.data.loader import build_mappers
from clim.detector import Detector
from clim_commands.drawing import class_colours, draw_boxes, draw_objects, enlarge, label_size, ordered
from experiments.training import read_metrics

from . import COMPARED, TITLES
from .page import Example, Report, Run, render_report
from .sheet import Panel, sheet, shortened

NUM_EXAMPLES = 6
SHOWN = {"threshold": 0.05, "overlap": 0.3, "top": 8}

ABOUT = (
    "All three are one Faster R-CNN (EfficientNet-Lite0 C4) that classifies regions by text embeddings "
    "(MiniLM). The base stage learns boxes of 48 base classes. From there, Detic also learns from captions "
    "and tags of single images. Detic + CLIM learns from single images and from mosaics of 4, 9 or 16 images, "
    "and treats their tiles as regions. The test has all 65 classes. 17 of them are novel: they have no boxes "
    "in training."
)
EXAMPLES_NOTE = (
    f"The {NUM_EXAMPLES} validation images with the most novel objects, chosen by ground truth alone. "
    f"Each shows up to {SHOWN['top']} detections of probability {SHOWN['threshold']} or more; of overlapping "
    "detections, the best. A star and a white rim mark novel classes. Their probabilities are low, because "
    "they have no boxes in training. AP compares the detections of one class with each other."
)
NOTES = [
    "A program draws all images: it rotates, flips and recolours OpenMoji drawings, CC BY-SA 4.0 "
    "(https://openmoji.org, https://creativecommons.org/licenses/by-sa/4.0/), and pastes them on crops of "
    "scikit-image's sample photos or on plain colours. Captions and tags come from templates. So this page "
    "shows the effect of a method in minutes. It says nothing about accuracy on photos.",
    "The backbone's ImageNet weights and the text tower are published models. Training scenes show one to six "
    "small objects, with boxes of base classes only. Image-text pairs show one or two large objects, as many "
    "images of the web do.",
]


def write_demo_report(
    folder: Path,
    *,
    configs: Mapping,
    results: Mapping[str, dict],
    seconds: Mapping[str, float],
    seed: int,
    commands: list[tuple[str, str]],
) -> Path:
    """``folder``/report.html and ``folder``/examples, from the finished runs in ``folder``/{base,detic,…}.

    Args:
        configs: {run: its config}.
        results: {run: result of :func:`experiments.training.run_training`}.
        commands: (purpose, command) of next steps.
    """
    runs = [Run(name, TITLES[name], seed, results[name], read_metrics(folder / name)) for name in results]
    report = Report(
        title="Detic + CLIM on the mini benchmark",
        intro=[
            headline(results),
            ABOUT,
            f"This is one seed ({seed}); a few points of difference between seeds are normal.",
        ],
        runs=runs,
        examples=_examples(folder, configs),
        examples_note=EXAMPLES_NOTE,
        mosaics=[Example("Mosaics as the network saw them", mosaic_of_each_grid(configs["detic_clim"], seed=seed))],
        seconds={TITLES.get(step, step.capitalize()): value for step, value in seconds.items()},
        notes=NOTES,
        commands=commands,
    )
    path = folder / "report.html"
    path.write_text(render_report(report), "utf-8")
    return path


def headline(results: Mapping[str, dict]) -> str:
    novel = {name: result["AP50_novel"] for name, result in results.items()}
    if None in novel.values():
        return "The validation images show no novel object, so there is no AP50 of novel classes."
    return (
        f"On classes that never had a box in training, Detic + CLIM reaches AP50 {novel['detic_clim']:.1f}, "
        f"Detic {novel['detic']:.1f} and the base stage {novel['base']:.1f}."
    )


def _examples(folder: Path, configs: Mapping) -> list[Example]:
    predictors = {}
    for name in COMPARED:
        cfg = configs[name].clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = str(folder / name / "model_final.pth")
        predictors[TITLES[name]] = Detector(cfg)
    dataset = cfg.DATASETS.TEST[0]
    shown = [compare(record, dataset, predictors) for record in most_novel(dataset, count=NUM_EXAMPLES)]
    (folder / "examples").mkdir(exist_ok=True)
    for number, example in enumerate(shown, start=1):
        titles, images = zip(*example.panels, strict=True)
        row = sheet([[Panel(image) for image in images]], titles, panel=max(image.shape[1] for image in images))
        Image.fromarray(row).save(folder / "examples" / f"{number}.jpg", quality=90)
    return shown


def most_novel(dataset: str, *, count: int) -> list[dict]:
    """The ``count`` records of a registered data set with the most novel objects, in order."""
    novel = novel_classes(dataset)
    records = DatasetCatalog.get(dataset)
    return sorted(records, key=lambda r: -sum(a["category_id"] in novel for a in r["annotations"]))[:count]


def novel_classes(dataset: str) -> set[int]:
    metadata = MetadataCatalog.get(dataset)
    return {i for i, name in enumerate(metadata.thing_classes) if name in metadata.novel_classes}


def compare(record: dict, dataset: str, predictors: Mapping[str, Detector]) -> Example:
    """One image with its ground truth, then with the detections of each of {title: predictor}."""
    image = read_image(record["file_name"], fmt="RGB").image
    names, novel = MetadataCatalog.get(dataset).thing_classes, novel_classes(dataset)
    boxes = np.array([a["bbox"] for a in record["annotations"]], dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = [a["category_id"] for a in record["annotations"]]
    panels = [("Ground truth", draw_objects(image, boxes, classes, names=names, novel=novel))]
    for title, predictor in predictors.items():
        (found,) = predictor.predict(record["file_name"], **SHOWN)
        known = {"names": found.names, "novel": found.novel, "scores": found.scores.tolist()}
        panels.append((title, draw_objects(image, found.boxes, found.classes.tolist(), **known)))
    return Example(f"Image {Path(record['file_name']).name}", panels)


def mosaic_of_each_grid(cfg, *, seed: int) -> list[tuple[str, np.ndarray]]:
    """(caption, drawing) of a canvas of every grid of INPUT.MOSAIC.GRIDS, from the mapper of the training."""
    mapper = build_mappers(cfg, ["mosaics"], seed=seed)["mosaics"]
    grids = set(cfg.INPUT.MOSAIC.GRIDS)
    found: dict[int, dict] = {}
    for epoch in range(50):  # a grid is drawn anew for every canvas
        canvas = mapper(index=epoch % len(mapper.records), epoch=epoch)
        found.setdefault(len(canvas["tiles"]), canvas)
        if len(found) == len(grids):
            break
    return [
        (f"{tiles} tiles with their captions", draw_canvas(canvas, image_format=cfg.INPUT.FORMAT))
        for tiles, canvas in sorted(found.items())
    ]


def draw_canvas(canvas: dict, *, image_format: str, side: int = 768) -> np.ndarray:
    """Draw the tiles and captions of a canvas: ``image`` (3, H, W) uint8 and ``tiles``."""
    tiles = canvas["tiles"]
    image, scale = enlarge(ordered(canvas["image"].permute(1, 2, 0).numpy(), image_format), side=side)
    boxes, size = tiles.boxes.numpy() * scale, label_size(image)
    texts = [
        shortened(text, width=box[2] - box[0] - size, size=size) for text, box in zip(tiles.drawn, boxes, strict=True)
    ]
    return draw_boxes(image, boxes, texts, colours=class_colours(len(tiles)), labels_inside=True, side=side)
