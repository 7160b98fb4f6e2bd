"""The texts, images and figures of the report of ``make demo``; ``page.py`` lays them out."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from clim.data.images import read_image
from clim.results import draw
from clim_commands.canvases import mosaic_of_each_grid
from clim_commands.page import Example, write_page
from experiments.run_files import read_metrics

from . import COMPARED, TITLES
from .analysis import AREAS, Analysis, class_mean
from .page import Part, Report, Run, render_report
from .sheet import Panel, sheet

NUM_EXAMPLES, NUM_DIFFERENCES, NUM_CONFUSIONS = 6, 3, 12
LETTERS = 26  # px on images of 640 px, which a phone shows at half that size
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
    "they have no boxes in training. AP compares the detections of one class with each other. Click on an image to "
    "enlarge it, and again to close it."
)
DIFFERENCE_NOTE = (
    "An object is found if a box of its class is shown, by the rule above, that overlaps it by half (IoU .5). In both "
    f"directions: the {NUM_DIFFERENCES} images with the most novel objects that one model alone finds; then all of "
    "its objects count."
)
CURVES_NOTE = (
    "Precision of the detections, in percent, at each recall: the mean over the classes of a group, IoU .5. The area "
    "below a curve is AP50."
)
SIZES_NOTE = "AP50 by the area of the box: small below 32 x 32 px, large above 96 x 96 px. Few objects say little."
CONFUSIONS_NOTE = f"Objects with another name, by true and shown class: the {NUM_CONFUSIONS} most frequent pairs."
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
    analysis = Analysis(folder, configs["base"].DATASETS.TEST[0], list(results), **SHOWN)
    examples = most_novel(analysis)
    write_sheets(folder / "examples", examples)
    runs = [Run(name, TITLES[name], seed, results[name], read_metrics(folder / name)) for name in results]
    report = Report(
        title="Detic + CLIM on the mini benchmark",
        intro=[
            headline(results),
            ABOUT,
            f"This is one seed ({seed}); a few points of difference between seeds are normal.",
        ],
        runs=runs,
        parts=[
            Part("What they see", EXAMPLES_NOTE, examples=examples),
            *parts(analysis),
            Part("What the network learns from", examples=mosaic_of_each_grid(configs["detic_clim"], seed=seed)),
        ],
        seconds={TITLES.get(step, step.capitalize()): value for step, value in seconds.items()},
        notes=NOTES,
        commands=commands,
    )
    return write_page(folder / "report.html", render_report(report))


def headline(results: Mapping[str, dict]) -> str:
    novel = {name: result["AP50_novel"] for name, result in results.items()}
    if None in novel.values():
        return "The validation images show no novel object, so there is no AP50 of novel classes."
    return (
        f"On classes that never had a box in training, Detic + CLIM reaches AP50 {novel['detic_clim']:.1f}, "
        f"Detic {novel['detic']:.1f} and the base stage {novel['base']:.1f}."
    )


def compare(analysis: Analysis, i: int, *, title: str) -> Example:
    """Image ``i`` with its ground truth, then with what each of COMPARED shows."""
    image = read_image(analysis.records[i]["file_name"], fmt="RGB").image
    images = []
    for boxes in (analysis.truth[i], *(analysis.shown[run][i] for run in COMPARED)):
        labels = _names(analysis, boxes.class_id)
        if boxes.confidence is not None:
            labels = [f"{label} {score:.2f}" for label, score in zip(labels, boxes.confidence, strict=True)]
        images.append(draw(image, boxes, labels, novel=analysis.novel, letters=LETTERS))
    return Example(title, list(zip(("Ground truth", *map(TITLES.get, COMPARED)), images, strict=True)))


def most_novel(analysis: Analysis) -> list[Example]:
    """The NUM_EXAMPLES images with the most novel objects, in the set's order."""
    counts = [-sum(k in analysis.novel for k in truth.class_id) for truth in analysis.truth]
    best = np.argsort(counts, kind="stable")[:NUM_EXAMPLES]
    return [compare(analysis, i, title=f"Image {Path(analysis.records[i]['file_name']).name}") for i in best]


def write_sheets(folder: Path, examples: list[Example]) -> None:
    """``folder``/1.jpg, …: the images of each example side by side."""
    folder.mkdir(exist_ok=True)
    for number, example in enumerate(examples, start=1):
        titles, images = zip(*example.panels, strict=True)
        row = sheet([[Panel(image) for image in images]], titles, panel=max(image.shape[1] for image in images))
        Image.fromarray(row).save(folder / f"{number}.jpg", quality=90)


def parts(analysis: Analysis) -> list[Part]:
    """What the two compared runs find and miss, and the curves, sizes and confusions of all runs."""
    titles = [TITLES[run] for run in analysis.shown]
    return [
        Part(
            "Found by one, missed by the other", DIFFERENCE_NOTE, *_difference_table(analysis),
            examples=[
                example
                for one, other in (COMPARED, COMPARED[::-1])
                for example in found_by_one(analysis, other, one)
            ],
        ),
        Part("Precision and recall", CURVES_NOTE, charts=_precision_curves(analysis)),
        Part("Size of the objects", SIZES_NOTE, ["objects of", "number", *titles], _size_rows(analysis)),
        Part("The most frequent confusions", CONFUSIONS_NOTE, ["shown as", *titles], _confusions(analysis)),
    ]  # fmt: skip


def found_by_one(analysis: Analysis, one: str, other: str) -> list[Example]:
    """The NUM_DIFFERENCES images with the most novel, then with the most objects that ``one`` alone finds."""
    alone = analysis.found_by_one(one, other)
    classes = [truth.class_id[objects].tolist() for truth, objects in zip(analysis.truth, alone, strict=True)]
    order = sorted(range(len(classes)), key=lambda i: (-sum(k in analysis.novel for k in classes[i]), -len(classes[i])))
    found = {i: ", ".join(_names(analysis, classes[i])) for i in order[:NUM_DIFFERENCES] if classes[i]}
    return [compare(analysis, i, title=f"{TITLES[one]} finds, {TITLES[other]} misses: {found[i]}") for i in found]


def _names(analysis: Analysis, classes: Iterable[int]) -> list[str]:
    return [("★ " if k in analysis.novel else "") + analysis.names[k] for k in classes]


def _difference_table(analysis: Analysis) -> tuple[list[str], list[list]]:
    hits = [np.concatenate(analysis.hits(run)) for run in COMPARED]
    classes = np.concatenate([truth.class_id for truth in analysis.truth])
    rows = []
    for group, members in analysis.groups().items():
        a, b = (found[np.isin(classes, members)] for found in hits)
        rows.append([f"{group} objects", *(int(np.sum(x)) for x in (a & b, a & ~b, ~a & b, ~a & ~b))])
    first, second = map(TITLES.get, COMPARED)
    return ["found by", "both", f"{first} alone", f"{second} alone", "neither"], rows


def _precision_curves(analysis: Analysis) -> dict[str, dict]:
    """{group: {title of a run: (recall, precision)}} in percent."""
    curves = {}
    for group, members in analysis.groups().items():
        means = {TITLES[run]: class_mean(values[..., 0], members) for run, values in analysis.precision.items()}
        curves[f"{group} classes"] = {t: (list(range(len(m))), m.tolist()) for t, m in means.items() if m is not None}
    return curves


def _size_rows(analysis: Analysis) -> list[list]:
    """AP50 of each group and range of area, after the number of objects."""
    areas = np.concatenate([truth.area for truth in analysis.truth])
    classes = np.concatenate([truth.class_id for truth in analysis.truth])
    rows = []
    for group, members in analysis.groups().items():
        for a, (size, (low, high)) in enumerate(AREAS.items()):
            count = np.sum((low <= areas) & (areas < high) & np.isin(classes, members))
            means = [class_mean(values[..., a], members) for values in analysis.precision.values()]
            rows.append([f"{group}, {size}", int(count), *(None if m is None else float(m.mean()) for m in means)])
    return rows


def _confusions(analysis: Analysis) -> list[list]:
    """["true → shown", numbers of objects by run] of the NUM_CONFUSIONS most frequent pairs of different classes."""
    matrices = np.stack([analysis.confusion(run)[:-1, :-1] for run in analysis.shown])
    matrices[:, range(len(analysis.names)), range(len(analysis.names))] = 0
    total = matrices[-len(COMPARED) :].sum(axis=0)
    best = np.argsort(-total, axis=None, kind="stable")[:NUM_CONFUSIONS]
    pairs = [np.unravel_index(place, total.shape) for place in best if total.flat[place]]
    return [[" → ".join(_names(analysis, pair)), *matrices[:, *pair].tolist()] for pair in pairs]
