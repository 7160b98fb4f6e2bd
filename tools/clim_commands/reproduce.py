"""``clim reproduce``: train the rows of tables, and write the tables."""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clim.errors import UserError
from train_net import check_processes

from .inputs import count, output_file, output_folder, quiet_logging, whole

DRAWN = ("1a", "1b", "2a", "2b", "2c", "2d", "3", "4", "5", "baron", "cluttered", "vldet", "own", "factor")
NAMES = (*DRAWN, "photos3", "photos1a")  # photos need data of the user's, so they are trained only if named


def add_reproduce_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clim reproduce``."""
    add = parser.add_argument
    table_help = f"one or more of {', '.join(NAMES)} (default: all but those whose name begins with photos)"
    add("--table", nargs="+", choices=NAMES, default=DRAWN, metavar="NAME", help=table_help)
    add("--scale", choices=("full", "mini"), default="full", help="mini: the mini benchmark, on a CPU (%(default)s)")
    add("--output", type=output_folder, default="output/reproduce", help="folder of all runs (%(default)s)")
    add("--seeds", type=whole, nargs="+", help="(default: 0; those of each table on the mini benchmark)")
    add("--report", type=output_file, help="only write the tables of what has been run with these configs")
    add("--jobs", type=count, default=2, help="mini: trainings side by side, one thread each (%(default)s)")
    full = parser.add_argument_group("full size")
    full.add_argument("--dry-run", action="store_true", help="only print commands, files and GPU hours")
    full.add_argument("--num-gpus", type=int, default=1, help="GPUs of a machine (%(default)s)")
    full.add_argument("--num-machines", type=int, default=1, help="machines (%(default)s)")
    full.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    full.add_argument("--dist-url", default="", help="address of the processes, as of train_net.py")
    full.add_argument("--slurm", nargs="*", metavar="KEY=VALUE", help="submit a job for each row, and return")


def reproduce(args: argparse.Namespace) -> None:
    """Train the rows of the paper's tables, at full size or on the mini benchmark, and write the tables.

        clim reproduce --table 1a --dry-run                        # commands, files, GPU hours
        clim reproduce --table 1a --num-gpus 8
        clim reproduce --table 1a --num-gpus 8 --num-machines 2 --slurm partition=gpu timeout_min=1440
        clim reproduce --scale mini --table 1a 3                   # on a CPU; data are drawn
        clim reproduce --scale mini --table 1a --report tables.md  # only write the table of what has been run

    The command may be interrupted: called again, it keeps finished runs and continues the others. With
    --num-machines, call it on each machine with its --machine-rank; all must see --output and the data root. --slurm
    takes parameters of submitit (timeout_min, mem_gb, cpus_per_task, slurm_…) and options of sbatch (partition, …).
    """
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # the next three packages are not installed
    from experiments.launch import ONE_PROCESS, Launch
    from experiments.rows import finished, run_rows
    from experiments.tables import markdown, report
    from reproduce import TABLES

    quiet_logging()
    launch = Launch(args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
    if args.scale == "mini" and (args.dry_run or args.slurm is not None or launch != ONE_PROCESS):
        raise UserError("--dry-run, --slurm and the options of GPUs and machines are for --scale full.")
    scale, output, seeds = args.scale, args.output / args.scale, tuple(dict.fromkeys(args.seeds or ()))
    tables = [
        (table, seeds or (table.seeds if scale == "mini" else (0,)))
        for table in TABLES
        if table.name in args.table and table.rows(scale)
    ]
    if not tables:
        raise UserError(f"--table {' '.join(args.table)}: no rows with --scale {scale}.")
    if args.report is None:
        with sigterm_like_ctrl_c():
            if scale == "mini":
                rows = [(row, seeds, table.set_up) for table, seeds in tables for row in table.rows(scale)]
                run_rows(rows, output=output, jobs=args.jobs)
            elif run_full(args, tables, launch, output):
                return
    path = args.report or output / "tables.md"
    done = [
        (table, seeds)
        for table, seeds in tables
        if any(finished(row, output, seed) for row in table.rows(scale) for seed in seeds)
    ]
    if not done:
        raise UserError(f"{output} holds no finished run of --table {' '.join(args.table)}.")
    lines = {table.heading(scale): markdown(table, output=output, seeds=seeds, scale=scale) for table, seeds in done}
    print(report(path, lines))
    for table, seeds in done if scale == "mini" else ():
        for name, draw in table.drawings.items():
            draw(output, seeds, path.with_name(name))


@contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """In this block SIGTERM raises KeyboardInterrupt, so that trainings end with this process."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_full(args: argparse.Namespace, tables: list, launch, output: Path) -> bool:
    """Run, submit or only show the rows of ``tables`` at full size. True: there is nothing to report."""
    from experiments.full import assumptions, dry_run, plan, run_tasks
    from reproduce.full import STEPS

    everything = {}
    for table, seeds in tables:
        tasks = plan(table.rows("full"), seeds, output=output, steps=STEPS)
        everything |= tasks
        if args.dry_run:
            print(table.heading("full"), *dry_run(tasks, launch), "", sep="\n")
    if args.dry_run:
        print(*assumptions(everything), sep="\n")
    elif args.slurm is not None:
        from experiments.slurm import submit

        print(*submit(everything, launch, args.slurm, output=output), sep="\n")
    else:
        check_processes(argparse.Namespace(**vars(args) | {"dist_url": args.dist_url or "auto"}))
        run_tasks(everything, launch)
    return args.dry_run or args.slurm is not None or bool(args.machine_rank)
