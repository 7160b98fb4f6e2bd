"""Rows of tables: resumable trainings over several seeds. A row may start from another row.

On the mini benchmark a seed has its own images, under ``output/seed{N}/datasets``. Its rows share the runs that they
start from.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from clim.errors import UserError
from clim_commands.outputs import read_note

from .launch import ROOT
from .run_files import Progress
from .training import POLL_SECONDS, RECORD, Busy, Record, below, digest, recorded_config, run_training

CONFIGS = ROOT / "configs"


class Row(NamedTuple):
    """One training for each seed. Rows of the same settings share it.

    config: a YAML file below configs/.
    starts_from: (config key, row, file in its folder), e.g. ("MODEL.WEIGHTS", base, "model_final.pth").
    needs: more rows that must finish first.
    prepare: called with (output, seed) before the training.
    """

    config: str
    overrides: tuple = ()
    starts_from: tuple[tuple[str, "Row", str], ...] = ()
    needs: tuple["Row", ...] = ()
    prepare: Callable[[Path, int], None] | None = None

    @property
    def origins(self) -> list["Row"]:
        return [*(row for _, row, _ in self.starts_from), *self.needs]

    @property
    def depth(self) -> int:
        """The number of trainings that must finish one after another before this one."""
        return max((origin.depth + 1 for origin in self.origins), default=0)

    def folder(self, output: Path, seed: int) -> Path:
        """The run's folder, named after the config, the overrides, and those of the rows that it starts from."""
        words = [Path(self.config).stem, *self.overrides]
        for key, row, _ in self.starts_from:
            words += ([] if key == "MODEL.WEIGHTS" else [Path(row.config).name]) + list(row.overrides)
        return output / f"seed{seed}" / "".join(c if c.isalnum() else "_" for c in "_".join(map(str, words)))

    def settings(self, output: Path, seed: int) -> list:
        """KEY, VALUE, … on top of the config."""
        origins = [word for key, row, file in self.starts_from for word in (key, str(row.folder(output, seed) / file))]
        return ["SEED", seed, *origins, *self.overrides]


@cache
def config_of(row: Row, *more):
    """The row's config after its overrides and ``more`` KEY, VALUE, …"""
    from clim.engine import load_config

    return load_config(str(CONFIGS / row.config), list(map(str, (*row.overrides, *more))))


def tuned(
    config: str, *overrides, start: Row, key: str = "MODEL.WEIGHTS", file: str = "model_final.pth", **others
) -> Row:
    """A row that takes ``file`` of the row ``start`` as its ``key``: by default it is fine-tuned from it."""
    return Row(config, overrides, starts_from=((key, start, file),), **others)


def datasets_of(output: Path, seed: int) -> Path:
    """Data root of a seed."""
    return output / f"seed{seed}" / "datasets"


SetUp = Callable[..., object]  # called with (data root, seed=…), it makes the files of a seed


def run_rows(rows: Iterable[tuple[Row, Sequence[int], SetUp]], *, output: Path, jobs: int) -> None:
    """Train every (row, its seeds, what makes their files), ``jobs`` at a time. Finished runs are kept.

    What others start from is begun before them, for all seeds, so that no worker waits for a run not yet begun; else
    rows are begun in order, so that a run that is cut short leaves whole rows. UserError at the end if one fails.
    """
    rows = list(rows)
    for set_up, seed in dict.fromkeys((set_up, seed) for _, seeds, set_up in rows for seed in seeds):
        set_up(datasets_of(output, seed), seed=seed)
    started: dict[Path, Future] = {}
    stopped = threading.Event()
    errors = {}  # a run that fails ends those that start from it with the same error, and no other
    pool = ThreadPoolExecutor(jobs)
    try:
        for row, seeds in sorted(with_origins((row, seeds) for row, seeds, _ in rows), key=lambda r: r[0].depth):
            for seed in seeds:
                if (folder := row.folder(output, seed)) not in started:
                    needed = [started[origin.folder(output, seed)] for origin in row.origins]
                    options = {"needed": needed, "progress": partial(raise_if_set, stopped)}
                    started[folder] = pool.submit(run_row, row, seed, output=output, **options)
        for done, job in enumerate(started.values(), 1):
            if isinstance(error := job.exception(), UserError):
                errors[id(error)] = error
            else:
                job.result()
            print(f"{done} of {len(started)} trainings over, {time.strftime('%H:%M:%S')}", flush=True)
    finally:  # after Ctrl-C, trainings end with this process
        stopped.set()
        pool.shutdown(cancel_futures=True)
    if errors:
        raise UserError("\n".join(map(str, errors.values())))


def raise_if_set(stopped: threading.Event, progress: Progress) -> None:
    """End a run from its progress callback."""
    if stopped.is_set():
        raise UserError("stopped")


def with_origins(rows: Iterable[tuple[Row, Sequence[int]]]) -> Iterator[tuple[Row, Sequence[int]]]:
    """The rows, each after all rows that it starts from."""
    for row, seeds in rows:
        yield from with_origins((origin, seeds) for origin in row.origins)
        yield row, seeds


def run_row(row: Row, seed: int, *, output: Path, needed: Sequence[Future] = (), **options) -> dict:
    """Wait for ``needed``, then train one row of one seed. Returns the result of :func:`run_training`.

    ``options`` are its arguments; without ``datasets_root`` it is the seed's own.
    """
    for job in needed:
        job.result()
    if row.prepare is not None:
        row.prepare(output, seed)
    folder = row.folder(output, seed)
    options = {"datasets_root": datasets_of(output, seed), "progress": lambda _: None} | options
    while True:
        try:
            result = run_training(CONFIGS / row.config, output=folder, overrides=row.settings(output, seed), **options)
            break
        except Busy:  # if this command was killed, its trainings have gone on
            options["progress"](Progress("waiting"))
            time.sleep(POLL_SECONDS)
    for checkpoint in folder.glob("model_[0-9]*.pth"):  # from which a killed run goes on; hundreds of runs fill a disk
        checkpoint.unlink(missing_ok=True)  # by another machine
    return result


def finished(row: Row, output: Path, seed: int) -> Record | None:
    """The record of the finished run; None without one.

    A run of another config does not count, nor one from another checkpoint than is there now: it is trained anew.
    """
    folder = row.folder(output, seed)
    record = read_note(folder / RECORD, kind=Record, remedy=f"remove {folder} to train this row anew")
    if not record or record["results"] is None:  # {}: a row without an evaluation
        return None
    starts = [origin.folder(output, seed) / file for _, origin, file in row.starts_from]
    now = {below(str(path), folder.parent): digest(path) for path in starts if path.is_file()}
    settings = record["settings"]
    same = settings["config"] == config_of_run(row, output, seed) and now.items() <= settings["inputs"].items()
    return record if same else None


@cache
def config_of_run(row: Row, output: Path, seed: int) -> str:
    """The config that a record of this run holds."""
    from clim.engine import load_config

    cfg = load_config(str(CONFIGS / row.config), list(map(str, row.settings(output, seed))))
    return recorded_config(cfg, beside=row.folder(output, seed).parent)
