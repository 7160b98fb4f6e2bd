"""``clim eval``: score a checkpoint on data sets. torch is imported after the arguments."""

import argparse
from pathlib import Path

from clim.errors import UserError
from clim.files import read_json

from .inputs import add_model_options, model_overrides, output_folder, processes, quiet_logging, value_of
from .outputs import Report, tasks_of
from .terminal import evaluation_progress, print_table

OUTPUT = "output/evaluation"


def add_eval_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clim eval``."""
    add = parser.add_argument
    add("--output", type=output_folder, metavar="DIR", help=f"folder of figures, the same as OUTPUT_DIR DIR ({OUTPUT})")
    add("--per-class", action="store_true", help="also print the figures of every class")
    add("--num-gpus", type=processes, default=1, metavar="N", help="GPUs, or processes without CUDA (%(default)s)")
    add_model_options(parser)
    # For train_net.launch: one machine, any free port.
    parser.set_defaults(num_machines=1, machine_rank=0, dist_url="auto")


def eval(args: argparse.Namespace) -> None:  # the name of the command
    """Score a checkpoint: AP of all classes, of those with boxes in training (base) and of those without (novel).

        clim eval --weights output/model_final.pth --data data.yaml --per-class
        clim eval --weights model.pth --config-file configs/Detic_CLIM_C4.yaml DATASETS.TEST "('coco_ov_val',)"

    It scores on every set of DATASETS.TEST; --data takes the sets of a data.yaml. Figures are in percent. DIR gets
    evaluation.json with the same figures, and inference/SET/ with those of every class and with all detections.
    """
    overrides = model_overrides(args)
    output = args.output or Path(value_of(overrides, "OUTPUT_DIR") or OUTPUT)
    args.opts = [*overrides, "OUTPUT_DIR", str(output)]
    args.config_file = args.config_file or value_of(overrides, "MODEL.WEIGHTS")
    if not args.config_file:
        raise UserError("Name a checkpoint: --weights model_final.pth, for example of `make demo`.")
    quiet_logging()
    from train_net import launch

    launch(args, evaluate_process)
    for report in reports(output):
        print_report(report, per_class=args.per_class)
    print(output / "evaluation.json")


def evaluate_process(args: argparse.Namespace) -> None:
    """Evaluate in this process, which is one of ``args.num_gpus``."""
    quiet_logging()
    from clim.engine import load_config, load_ensemble
    from clim.engine.setup import check_datasets
    from clim.errors import raise_on_all_ranks
    from clim.evaluation import evaluate

    with raise_on_all_ranks():
        cfg = load_config(args.config_file, args.opts)
        check_datasets(cfg, training=False)
        ensemble = load_ensemble(cfg)
    with evaluation_progress(), ensemble.mixed() as model:
        evaluate(cfg, model)


def reports(output: Path) -> list[Report]:
    """The reports of the evaluators below ``output``, of which some name their tasks in "summary" and some do not."""
    files = sorted(output.glob("inference/*/*_results.json"))
    remedy = "remove it, and evaluate again"
    return [read_json(file, kind=Report, remedy=remedy) for file in files if "_instances_" not in file.name]


def print_report(report: Report, *, per_class: bool) -> None:
    """Print a set's figures, a row for each group of classes, and with ``per_class`` a row for each class."""
    rows = {}
    for task, figures in tasks_of(report).items():
        for name, value in figures.items():
            metric, _, group = name.partition("_")
            rows.setdefault(f"{task} {group or 'all'}".strip(), {})[metric] = value
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    order = sorted(rows, key=lambda name: ("novel" in name) - ("all" in name))  # all, base, novel
    table = [[name, *(rows[name].get(metric) for metric in metrics)] for name in order]
    print_table(["", *metrics], table, title=f"{report['dataset']}, in percent")
    if per_class and report["per_class"]:
        head = list(report["per_class"][0])
        print_table(head, [[row.get(key) for key in head] for row in report["per_class"]])
