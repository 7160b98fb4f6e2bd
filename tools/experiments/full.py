"""Rows at full size, on the user's data: what must run, in which order, and the commands.

A :class:`Step` makes a file below the data root, such as class embeddings. It comes before the rows whose configs name
this file, and runs where the file is missing, or older than the checkpoint that it is made from.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from clim.errors import UserError
from clim.files import data_root

from .launch import ROOT, Launch
from .needs import README, gpu_hours, needed_files
from .progress import Board
from .rows import CONFIGS, Row, config_of, finished, run_row
from .training import POLL_SECONDS, train_command


class Step(NamedTuple):
    """A command that makes a file, once for all seeds.

    makes: the file, below the data root; the command's --output.
    command: what follows ``python``; {root} is the data root, {start} the checkpoint of ``start``.
    reads: files below the data root.
    start: a row whose checkpoint the command reads.
    """

    makes: str
    command: str
    reads: tuple[str, ...] = ()
    start: Row | None = None


class Training(NamedTuple):
    """A row of one seed."""

    row: Row
    seed: int
    output: Path

    @property
    def folder(self) -> Path:
        return self.row.folder(self.output, self.seed)

    @property
    def name(self) -> str:
        return f"{self.folder.name}, seed {self.seed}"

    @property
    def files(self) -> dict[str, str]:
        return needed_files(config_of(self.row))

    @property
    def hours(self) -> float:
        return gpu_hours(config_of(self.row))[0]

    def done(self) -> bool:
        return finished(self.row, self.output, self.seed) is not None

    def command(self, launch: Launch) -> list[str]:
        overrides = self.row.settings(self.output, self.seed)
        return train_command(CONFIGS / self.row.config, self.folder, overrides, launch)

    def run(self, launch: Launch) -> None:
        """Train. A finished run of the same settings is kept, and an interrupted one goes on."""
        board = Board()
        options = {"datasets_root": data_root(), "threads": None, "launch": launch, "progress": board.of(self.name)}
        run_row(self.row, self.seed, output=self.output, **options)
        board.done(self.name, "over")


class Preparation(NamedTuple):
    """A step; the run of ``seed`` gives it its checkpoint."""

    step: Step
    seed: int
    output: Path
    hours = 0.0

    @property
    def name(self) -> str:
        return self.step.makes

    @property
    def files(self) -> dict[str, str]:
        return dict.fromkeys(self.step.reads, README)

    @property
    def start(self) -> Path | None:
        """The checkpoint that the command reads."""
        return self.step.start and self.step.start.folder(self.output, self.seed) / "model_final.pth"

    def done(self) -> bool:
        """Whether the file is there, and no older than the checkpoint that it is made from."""
        made, start = data_root() / self.step.makes, self.start
        stale = start and start.exists() and made.exists() and made.stat().st_mtime < start.stat().st_mtime
        return made.exists() and not stale

    def command(self, launch: Launch) -> list[str]:
        words = [word.format(root=data_root(), start=self.start) for word in shlex.split(self.step.command)]
        words = [str(ROOT / word) if word.startswith(("tools/", "configs/")) else word for word in words]
        return [*words, "--output", str(data_root() / self.step.makes)]

    def run(self, launch: Launch) -> None:
        """Make the file, on the first machine; the others wait for it."""
        if self.done():
            return
        if launch.machine_rank:
            print(f"waiting for the first machine to make {self.step.makes}", flush=True)
            while not self.done():
                time.sleep(POLL_SECONDS)
            return
        if (made := data_root() / self.step.makes).exists():
            made.replace(old := made.with_name(f"{made.name}.old"))
            print(f"{made} is older than {self.start}: it is made anew; the old file is {old}", flush=True)
        if code := subprocess.run([sys.executable, *self.command(launch)]).returncode:
            raise UserError(f"{pasted(self, launch)} stopped with exit code {code}.")


Task = Training | Preparation


def plan(rows: Iterable[Row], seeds: Sequence[int], *, output: Path, steps: Sequence[Step]) -> dict[Task, list[Task]]:
    """{task: the tasks that it waits for}, in order: what a row starts from, the steps that make its files, the row."""
    makers = {step.makes: Preparation(step, seeds[0], output) for step in steps}
    tasks: dict[Task, list[Task]] = {}

    def add(task: Task) -> Task:
        if task not in tasks:
            starts = [task.step.start] * bool(task.step.start) if isinstance(task, Preparation) else task.row.origins
            needed = [Training(row, task.seed, output) for row in starts]
            needed += [makers[file] for file in task.files if file in makers]
            tasks[task] = list(map(add, needed))
        return task

    for seed in seeds:
        for row in rows:
            add(Training(row, seed, output))
    return tasks


def run_tasks(tasks: dict[Task, list[Task]], launch: Launch) -> None:
    """Run what is missing, in order. What waits for a task that failed is left out; UserError at the end.

    One of several machines ends at its first failure: it cannot know which row the others train. UserError before the
    first task if files are missing that no task makes.
    """
    require_files(tasks)
    failed: dict[Task, str] = {}
    for number, (task, needed) in enumerate(tasks.items(), 1):
        print(f"{number} of {len(tasks)}: {task.name}{' (finished)' if task.done() else ''}", flush=True)
        if origins := [origin.name for origin in needed if origin in failed]:
            failed[task] = f"{task.name} was left out: {origins[0]} failed."
            continue
        try:
            task.run(launch)
        except UserError as error:
            if launch.num_machines > 1:
                raise
            failed[task] = str(error)
            print(f"error: {error}", flush=True)
    if failed:
        raise UserError("\n".join(failed.values()))


def require_files(tasks: Iterable[Task]) -> None:
    """UserError for a file that a task which is not finished needs, and that no task makes."""
    for file, there, remedy in files_of([task for task in tasks if not task.done()]):
        if not there:
            raise UserError(f"{data_root() / file} is missing: {remedy}. --dry-run lists all files.")


def files_of(tasks: Sequence[Task]) -> Iterator[tuple[str, bool, str]]:
    """(file below the data root, whether it is there, how to get it) that tasks need and none of them makes."""
    made = {task.step.makes for task in tasks if isinstance(task, Preparation)}
    needed: dict[str, str] = {}
    for task in tasks:
        needed = task.files | needed  # the first to need a file says how to get it
    for file, remedy in sorted((file, remedy) for file, remedy in needed.items() if file not in made):
        yield file, (data_root() / file).exists(), remedy


def pasted(task: Task, launch: Launch) -> str:
    """The command of a task for a shell, with paths below the working folder shortened."""
    here = f"{os.getcwd()}{os.sep}"
    return shlex.join(["python", *(word.removeprefix(here) for word in task.command(launch))])


def dry_run(tasks: dict[Task, list[Task]], launch: Launch) -> Iterator[str]:
    """Lines about a table: tasks in order, files, GPU hours."""
    for number, task in enumerate(tasks, 1):
        state = "finished" if task.done() else "not finished"
        state = state if isinstance(task, Training) else "there" if task.done() else "missing"
        hours = f", about {task.hours:.0f} GPU hours" if task.hours else ""
        yield f"{number}. {task.name}: {state}{hours}"
        yield f"   {pasted(task, launch)}"
    yield f"Files below {data_root()}:"
    for file, there, remedy in files_of(list(tasks)):
        yield f"   {'there  ' if there else 'missing'} {file}{'' if there else f': {remedy}'}"
    yield hours_left(tasks)


def hours_left(tasks: Iterable[Task]) -> str:
    """ "About 96 GPU hours are left of 184." """
    left = sum(task.hours for task in tasks if not task.done())
    return f"About {left:.0f} GPU hours are left of {sum(task.hours for task in tasks):.0f}."


def assumptions(tasks: Iterable[Task]) -> Iterator[str]:
    """All tables together, and where the GPU hours come from."""
    yield f"All of these tables, which share runs: {hours_left(tasks)}"
    yield "GPU hours are estimates: nobody has trained these rows at full size with this code. They are images divided"
    yield "by rates, which come from published times (older GPUs) or from guesses, without evaluations and slow disks."
    rows = [task.row for task in tasks if isinstance(task, Training)]
    for source in dict.fromkeys(source for row in rows for source in gpu_hours(config_of(row))[1]):
        yield f"- {source}"
