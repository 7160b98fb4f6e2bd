"""What the report of ``make demo`` says and shows; ``report.py`` sets the page."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from clim.detector import Detector
from clim.run_record import read_metrics

from .comparison import compare, mosaic_of_each_grid, most_novel
from .draw import side_by_side
from .report import Example, Report, Run, render_report

TITLES = {"base": "Base stage", "detic": "Detic", "detic_clim": "Detic + CLIM"}
COMPARED = ("detic", "detic_clim")
NUM_EXAMPLES = 6
SHOWN = {"threshold": 0.05, "overlap": 0.3, "top": 8}

ABOUT = (
    "All three are one Faster R-CNN (EfficientNet-Lite0 C4) that classifies regions by text embeddings "
    "(MiniLM). The base stage learns boxes of 48 base classes. From there, Detic also learns from captions "
    "and tags of single pictures; Detic + CLIM from single pictures and from mosaics of 4, 9 or 16 pictures, "
    "whose tiles stand in for regions. At test the vocabulary is all 65 classes, 17 of them novel: no box of "
    "theirs was ever seen."
)
EXAMPLES_NOTE = (
    f"The {NUM_EXAMPLES} validation pictures with the most novel objects, chosen by ground truth alone. "
    f"Shown are up to {SHOWN['top']} detections of probability {SHOWN['threshold']} and more, of overlapping "
    "ones the best. A star and a white rim mark novel classes. Their probabilities are low, because no box "
    "has ever raised them; AP compares the detections of a class among themselves."
)
NOTES = [
    "All pictures are drawn by a program: OpenMoji drawings, CC BY-SA 4.0 (https://openmoji.org, "
    "https://creativecommons.org/licenses/by-sa/4.0/), rotated, flipped, recoloured and pasted on crops of "
    "scikit-image's sample photos or on plain colours. Captions and tags come from templates. So this page "
    "shows the effect of a method in minutes; it says nothing about accuracy on photos.",
    "The backbone's ImageNet weights and the text tower are real, published models. Training scenes hold one "
    "to six small objects, with boxes of base classes only; image-text pairs hold one or two large objects, "
    "as pictures from the web do.",
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
        configs: {run: the config that it was trained with}.
        results: {run: what :func:`clim.experiments.run_training` returned}.
        commands: (what it does, command) for the reader who wants to go on.
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
        mosaics=[
            Example("Mosaics as the network saw them", mosaic_of_each_grid(configs["detic_clim"], seed=seed))
        ],
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
        return "The validation pictures show no novel object, so there is no AP50 of novel classes."
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
    shown = [
        compare(record, dataset, predictors, **SHOWN) for record in most_novel(dataset, count=NUM_EXAMPLES)
    ]
    (folder / "examples").mkdir(exist_ok=True)
    for number, example in enumerate(shown, start=1):
        titles, pictures = zip(*example.panels, strict=True)
        Image.fromarray(side_by_side(pictures, titles)).save(
            folder / "examples" / f"{number}.jpg", quality=90
        )
    return shown
