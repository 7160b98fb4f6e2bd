"""The console script ``clim``: its sub-commands are ``train_net.py`` and ``tools/predict.py``.

Commands import torch and Detectron2 after they have read their arguments: ``--help`` and a wrong argument take no time.
"""

import argparse
import inspect

from clim.errors import run_cleanly

from .predict import add_predict_options, predict
from .train import add_train_options, train

COMMANDS = {"train": (add_train_options, train), "predict": (add_predict_options, predict)}


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
