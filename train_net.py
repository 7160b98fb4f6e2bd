"""Train or evaluate: python train_net.py --config-file configs/Detic_CLIM_C4.yaml --num-gpus 8

The same command as ``clim train``. torch is imported when the arguments have been read.
"""

import argparse
import inspect
import os

from clim.errors import raise_on_all_ranks


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


if __name__ == "__main__":
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=inspect.getdoc(train), formatter_class=layout)
    add_train_options(parser)
    train(parser.parse_args())
