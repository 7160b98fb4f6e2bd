"""``clim reproduce``: train the rows of tables, and write the tables."""

import argparse

from .inputs import count, output_file, output_folder, quiet_logging, whole

DRAWN = ("1a", "1b", "2a", "2b", "3", "4", "5", "cluttered", "vldet", "own")
NAMES = (*DRAWN, "photos3", "photos1a")  # photos need data of the user's, so they are trained only if named


def add_reproduce_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clim reproduce``."""
    add = parser.add_argument
    add("--table", nargs="+", choices=NAMES, default=DRAWN, metavar="NAME", help=f"one or more of {', '.join(NAMES)}")
    add("--scale", choices=("mini",), default="mini", help="mini: the mini benchmark, on a CPU")
    add("--output", type=output_folder, default="output/reproduce", help="folder of all runs (%(default)s)")
    add("--seeds", type=whole, nargs="+", help="(default: those of each table)")
    add("--jobs", type=count, default=2, help="trainings side by side, one thread each (%(default)s)")
    add("--report", type=output_file, help="only write the tables of what has been run")


def reproduce(args: argparse.Namespace) -> None:
    """Train the rows of the paper's tables on the mini benchmark, and write the tables.

        clim reproduce --scale mini                                # all tables
        clim reproduce --scale mini --table 1a 3
        clim reproduce --scale mini --report docs/mini_results.md  # only write the tables of what has been run

    The command may be interrupted: called again, it keeps finished runs and continues the others.
    """
    from experiments.rows import finished, run_rows
    from experiments.tables import markdown, report
    from reproduce import TABLES

    quiet_logging()
    tables = [(table, args.seeds or table.seeds) for table in TABLES if table.name in args.table]
    output = args.output / args.scale
    if args.report is None:
        rows = [(entry.mini, seeds, table.set_up) for table, seeds in tables for entry in table.entries]
        run_rows(rows, output=output, jobs=args.jobs)
    path = args.report or output / "tables.md"
    done = [
        (table, seeds)
        for table, seeds in tables
        if any(finished(entry.mini.folder(output, seed)) for entry in table.entries for seed in seeds)
    ]
    print(report(path, {table.heading: markdown(table, output=output, seeds=seeds) for table, seeds in done}))
    for table, seeds in done:
        for name, draw in table.drawings.items():
            draw(output, seeds, path.with_name(name))
