"""``clim train``: train by a config, or fine-tune a checkpoint on own data by :func:`recipe` (docs/finetune.md)."""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import train_net
from clim.errors import UserError

from .eval import evaluate_process, reports
from .inputs import model_overrides, value_of
from .terminal import print_table

PASSES = 2  # over the images with boxes
ITERATIONS = (200, 20_000)  # fewest and most, of one process
PER_GPU = 2  # images with boxes, pairs, and mosaics of pairs in a step
METRICS = ("AP50", "AP")
GROUPS = {"base": "with boxes", "novel": "without boxes", None: "all"}  # {split of a class: heading}
LISTED = 5  # classes that a line names


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``train_net.py``, and those of fine-tuning."""
    parser.add_argument("--data", metavar="FILE", help="data.yaml of your own boxes and captions (docs/own_data.md)")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint to start from; with --data it is fine-tuned")
    train_net.add_train_options(parser)


def train(args: argparse.Namespace) -> None:
    """Train, or fine-tune a checkpoint on your own data.

        clim train --config-file configs/Detic_CLIM_C4.yaml --num-gpus 8
        clim train --data data.yaml --weights model_final.pth

    The first line is train_net.py. The second fine-tunes: a step has boxes, image-text pairs and mosaics of pairs, so
    that the detector keeps the words that have no boxes in your data. Sources, learning rate and schedule follow from
    the checkpoint and the number of images; KEY VALUE pairs at the end override them. The config is the one inside the
    checkpoint, or --config-file. At the end it prints AP before and after, of classes with boxes and of classes
    without. --resume continues from OUTPUT_DIR's last checkpoint. Without CUDA, --num-gpus is the number of processes.
    """
    own = model_overrides(args)[len(args.opts) :]  # what --data and --weights stand for
    args.config_file = args.config_file or args.weights or ""
    if args.data and args.weights and not args.eval_only:
        fine_tune(args, own)
    else:
        run(args, own, args.opts)


def pairs(keys: Mapping[str, object]) -> list[str]:
    """{key: value} as the list KEY, VALUE, … of overrides."""
    return [str(word) for item in keys.items() for word in item]


def run(args: argparse.Namespace, *opts: Sequence[str], process: Callable | None = None, **changes) -> None:
    """Train, or run ``process``, with other arguments; of two ``opts`` for a key, the last counts."""
    joined = {"opts": [word for part in opts for word in part]}
    train_net.launch(argparse.Namespace(**vars(args) | changes | joined), process)


def fine_tune(args: argparse.Namespace, own: list[str]) -> None:
    """Evaluate the checkpoint, fine-tune it by the recipe, and print what has changed. ``own``: data and weights."""
    train_net.quiet_warnings()
    output = Path(value_of(args.opts, "OUTPUT_DIR") or default_output(args.data))
    changes, tests, lines = plan(args, own, output)
    opts, before, first = [*own, *pairs(changes)], output / "before", args.machine_rank == 0
    if first:
        print("\n".join(lines), flush=True)
    if first and tests and not (args.resume and (before / "evaluation.json").is_file()):
        run(args, opts, args.opts, ["OUTPUT_DIR", str(before)], process=evaluate_process, num_machines=1)
    run(args, opts, args.opts, ["OUTPUT_DIR", str(output)])
    if first:
        old, new = ({report["dataset"]: report for report in reports(folder)} for folder in (before, output))
        for name in tests:
            for folder, found in ((before, old), (output, new)):
                if name not in found:
                    raise UserError(f"{folder} holds no figures of {name}: remove {before}, and call this again.")
            print_changes(old[name], new[name])
        print(f"The model: {output / 'model_final.pth'}")


def default_output(data: str) -> Path:
    """Folder of a fine-tuning: a file data.yaml is named after its folder."""
    file = Path(data).resolve()
    return Path("output/finetuned") / (file.parent.name if file.stem == "data" else file.stem)


def plan(args: argparse.Namespace, own: list[str], output: Path) -> tuple[dict, tuple[str, ...], list[str]]:
    """What the recipe sets, the sets to evaluate on, and lines that say so."""
    from clim.data.loader import source_records
    from clim.engine import load_config

    start = load_config(args.config_file, [*own[2:], *args.opts])  # without the data
    method = method_of(start)
    cfg = load_config(args.config_file, [*own, *pairs(method or {}), *args.opts])
    records, texts = source_records(cfg, "detection"), 0
    if method is not None and cfg.DATASETS.CAPTIONS:
        texts = len(source_records(cfg, "captions"))
    processes = args.num_gpus * args.num_machines * cfg.SOLVER.ACCUMULATE
    changes = recipe(start, images=len(records), processes=processes)
    changes |= sources(method if texts else None, cache=output.absolute() / "captions")  # not below the data root
    lines = [f"{len(records)} images with boxes"]
    if texts:
        lines[0] += f" and {texts} image-text pairs: a step has {PER_GPU} of each and {PER_GPU} mosaics a GPU."
    elif method is None:
        lines[0] += ". This model learns from boxes alone."
    else:
        lines[0] += ", and no captions: words without boxes may suffer. Give image-text pairs that name them, as "
        lines[0] += f"captions in {args.data}, or a tenth of the learning rate."
    if lacking := words_without_boxes(cfg, records):
        more = f" and {len(lacking) - LISTED} more" if len(lacking) > LISTED else ""
        lines.append(f"No box shows {', '.join(lacking[:LISTED])}{more}, so their objects count as background. List "
                     f"these words as novel in {args.data}, if the images may show them.")  # fmt: skip
    rate, iterations = (value_of(args.opts, key) or changes[key] for key in ("SOLVER.BASE_LR", "SOLVER.MAX_ITER"))
    lines.append(f"{iterations} iterations with learning rate {float(rate):g}, in {output}.")
    return changes, cfg.DATASETS.TEST, lines


def words_without_boxes(cfg, records: Sequence[Mapping]) -> list[str]:
    """Words that are trained on the boxes of ``records``, though no box shows them."""
    from clim.modeling.vocabulary import class_mask

    shown = {a["category_id"] for record in records for a in record["annotations"]}
    trained = zip(cfg.MODEL.VOCABULARY.NAMES, class_mask(cfg).tolist(), strict=True)
    return [name for i, (name, weight) in enumerate(trained) if weight and i not in shown]


def method_of(cfg) -> dict | None:
    """Keys of the method that learns from pairs: the checkpoint's own, or one for its classifier. None: it cannot."""
    if cfg.MODEL.META_ARCHITECTURE != "OpenVocabRCNN" or cfg.MODEL.ROI_BOX_HEAD.PREDICTOR == "OVRCNNOutputLayers":
        return None
    if cfg.MODEL.METHOD.NAME in ("Detic", "Baron"):
        return {"MODEL.METHOD.NAME": cfg.MODEL.METHOD.NAME}
    classifier = cfg.MODEL.OPEN_VOCAB
    if classifier.CLASSIFIER == "pseudo_words":
        return {"MODEL.METHOD.NAME": "Baron"}
    like = {"TEMPERATURE": classifier.TEMPERATURE, "BIAS": classifier.TRAIN_BIAS}
    return {"MODEL.METHOD.NAME": "Detic"} | {f"MODEL.METHOD.DETIC.{key}": value for key, value in like.items()}


def sources(method: Mapping | None, *, cache: Path) -> dict:
    """Keys of the batches: boxes, pairs and mosaics of the ``method``, or boxes alone."""
    number = PER_GPU if method else 0
    sizes = {"DETECTION": PER_GPU, "CAPTIONS": number, "MOSAICS": number, "REGIONS": 0}
    keys = {f"DATALOADER.{source}_PER_GPU": size for source, size in sizes.items()}
    keys |= {"DATALOADER.ALTERNATE": "()", "INPUT.COPIES": "[]"}
    keys |= dict(method) if method else {"MODEL.METHOD.NAME": ""}
    return keys | ({"MODEL.TEXT.CACHE": cache} if method else {})


def recipe(start, *, images: int, processes: int) -> dict:
    """Learning rate and schedule for ``images`` with boxes, from the config ``start`` of the checkpoint.

    The learning rate is that of the checkpoint's training, for this number of processes. PASSES over the images with
    boxes, within ITERATIONS and in full hundreds, are shared by the processes. The rate rises over the first tenth and
    falls after four fifths.
    """
    reference = start.SOLVER.REFERENCE_WORLD_SIZE
    rate = start.SOLVER.BASE_LR * (processes / reference if reference else 1)
    fewest, most = ITERATIONS
    whole = min(max(round(PASSES * images / PER_GPU, -2), fewest), most)
    number = max(10, round(whole / processes))
    return {
        "SOLVER.REFERENCE_WORLD_SIZE": 0, "SOLVER.BASE_LR": rate, "SOLVER.EPOCHS": 0.0, "SOLVER.STEP_EPOCHS": "[]",
        "SOLVER.MAX_ITER": number, "SOLVER.STEPS": f"({number * 4 // 5},)", "SOLVER.WARMUP_ITERS": number // 10,
        "SOLVER.CHECKPOINT_PERIOD": max(1, number // 5), "TEST.EVAL_PERIOD": 0,
        "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False,  # own images are annotated with all classes that have boxes
    }  # fmt: skip


def print_changes(before: Mapping, after: Mapping) -> None:
    """Print AP of two evaluators' reports on a set, for each group of classes, and the classes that lost most."""
    old, new = ({row["class"]: row for row in report["per_class"]} for report in (before, after))
    scored, first = {name for name, row in old.items() if row.get(METRICS[0]) is not None}, METRICS[0]
    table = []
    for split, heading in GROUPS.items():
        names = [name for name, row in old.items() if row.get("split") == split]
        seen = [name for name in names if name in scored]
        cells = [compared(*([of[name][metric] for name in seen] for of in (old, new))) for metric in METRICS]
        if names:
            table.append([heading, f"{len(seen)} of {len(names)}", *cells])
    print_table(["classes", "with objects", *METRICS], table, title=f"{before['dataset']}, before → after")
    steps = {name: (old[name][first], new[name][first]) for name in scored}
    worst = sorted((name for name, (a, b) in steps.items() if b < a), key=lambda n: steps[n][1] - steps[n][0])
    if worst:
        print(f"Lost most ({first}): {', '.join('{} {:.0f} → {:.0f}'.format(n, *steps[n]) for n in worst[:LISTED])}.")


def compared(before: Sequence[float], after: Sequence[float]) -> str:
    """Means of two lists as "40.1 → 45.3 (+5.2)"; a dash for empty ones."""
    if not before:
        return "–"
    first, last = statistics.mean(before), statistics.mean(after)
    return f"{first:.1f} → {last:.1f} ({last - first:+.1f})"
