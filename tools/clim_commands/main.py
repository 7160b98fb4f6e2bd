"""The console script ``clim``: each of its sub-commands is a function of a module in COMMANDS.

A module is imported when its command is called, torch when the command has read its arguments: ``--help`` and a wrong
argument take no time.
"""

import argparse
import inspect
import sys
from importlib import import_module

import clim
from clim.errors import run_cleanly

from .inputs import Parser

# {command: module with the functions ``command(args)`` and ``add_command_options(parser)``}
COMMANDS = {
    "train": "clim_commands.train",
    "eval": "clim_commands.eval",
    "predict": "clim_commands.predict",
    "inspect": "clim_commands.inspect",
    "export": "clim_commands.export",
    "serve": "clim_commands.serve",
    "shrink": "clim_commands.shrink",
    "reproduce": "clim_commands.reproduce",
}


def main(arguments: list[str] | None = None) -> None:
    """``clim COMMAND …``: a user's mistake ends it with one line on stderr and exit code 2, Ctrl-C with 130."""
    run_cleanly(run, sys.argv[1:] if arguments is None else arguments)


def run(arguments: list[str]) -> None:
    """Call the function of the command that the first of ``arguments`` names."""
    parser = Parser(prog="clim", description="Open-vocabulary detection with CLIM. clim COMMAND --help says more.")
    parser.add_argument("--version", action="version", version=clim.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in [arguments[0]] if arguments and arguments[0] in COMMANDS else COMMANDS:
        module = import_module(COMMANDS[name])
        function = getattr(module, name)
        text, layout = inspect.getdoc(function), argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, help=text.partition("\n")[0], description=text, formatter_class=layout)
        getattr(module, f"add_{name}_options")(command)
        command.set_defaults(run=function)
    args = parser.parse_args(arguments)
    args.run(args)
