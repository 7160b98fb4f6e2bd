"""Trainings in their own processes, one or several at a time.

A second call with the same settings keeps a finished run, and continues an interrupted one from its last checkpoint.
Other settings start over, and the files of the run before move to a folder NAME.1, NAME.2, … beside it.
``results.json`` in a run's folder is a :class:`Record`, with null for ``results`` until the evaluation.
"""

import fcntl
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

from clim.errors import UserError
from clim.files import data_root, decode_json, write_json
from clim_commands.outputs import Report, read_note, tasks_of

TRAIN_NET = Path(__file__).resolve().parents[2] / "train_net.py"
REPORTS = ("ov_coco_results.json", "lvis_results.json", "region_results.json")  # written by the evaluators
RECORD, LOCK = "results.json", ".lock"
POLL_SECONDS = 1.0
TAIL_LINES = 15


class Settings(TypedDict):
    """What makes two runs the same."""

    config: str
    inputs: dict[str, str]


class Record(TypedDict):
    """Settings of a run, seconds over all sessions, and the evaluator's figures with its rows as "per_class".

    commit: of this code when the run was finished, with a "+" if files were changed since.
    """

    settings: Settings
    seconds: float
    commit: NotRequired[str]
    results: dict[str, float | list[dict[str, object]] | None] | None


class Progress(NamedTuple):
    """Where a run is. ``phase``: "kept", "starting", "resuming", "training", "evaluating" or "finished"."""

    phase: str
    done: int = 0  # iterations, or images while evaluating
    total: int = 0
    eta: float | None = None  # seconds of training that are left
    loss: float | None = None


def run_training(
    config: str | os.PathLike,
    *,
    output: str | os.PathLike,
    overrides: Sequence = (),
    datasets_root: str | os.PathLike | None = None,
    threads: int = 1,
    progress: Callable[[Progress], None] = lambda _: None,
) -> dict:
    """Train and evaluate by ``train_net.py`` in a new process.

    Args:
        config: a YAML file.
        output: folder of this run. A run of other settings in it is moved away. Files of no run are an error.
        overrides: KEY, VALUE, … on top of the config, as on the command line.
        datasets_root: ``DETECTRON2_DATASETS`` of the run (default: this process's).
        threads: ``OMP_NUM_THREADS`` of the run.
        progress: called about once a second. An exception from it stops the run.

    Returns the evaluator's figures (AP50_novel, AP50_base, AP50_all, … in percent, None where no object exists; for
    masks and boxes "segm/APr", "bbox/APr", …), its rows as "per_class", and "seconds" over all sessions. Without
    DATASETS.TEST, "seconds" alone.

    Settings are the same if the config after overrides and the bytes of weights, embeddings and annotations are.
    Raises UserError with the end of the log if the run fails, if another run uses ``output``, and if its record cannot
    be read.
    """
    from clim.engine import load_config  # Detectron2 loads when a run starts, not for --help

    output = Path(output)
    root = Path(datasets_root) if datasets_root is not None else data_root()
    overrides = [str(value) for value in overrides]
    cfg = load_config(str(config), overrides)
    settings = settings_of(cfg, root)
    with holding(output) as lock:
        record = open_record(output, settings)
        if record["results"] is not None:
            progress(Progress("kept"))
            return {**record["results"], "seconds": record["seconds"]}
        resuming = (output / "last_checkpoint").is_file()
        progress(now := Progress("resuming" if resuming else "starting"))
        log = output / "train.log"
        command = [sys.executable, TRAIN_NET, "--config-file", config, "--resume", "OUTPUT_DIR", output, *overrides]
        environment = {"DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": str(threads)}
        before, start = record["seconds"], time.monotonic()
        with _process(command, log=log, environment=environment, lock=lock) as process:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
                    break
                record["seconds"] = round(before + time.monotonic() - start, 1)
                write_json(output / RECORD, record)
                now = _where(output, log, cfg.SOLVER.MAX_ITER) or now
                progress(now)
        if process.returncode != 0:
            raise UserError(f"{config} stopped with exit code {process.returncode}; {log} ends:\n{log_tail(log)}")
        record["results"] = _evaluation(output, cfg.DATASETS.TEST) if cfg.DATASETS.TEST else {}
        record["commit"] = commit_of_code()
        write_json(output / RECORD, record)
    progress(Progress("finished"))
    return {**record["results"], "seconds": record["seconds"]}


def run_together(trainings: Mapping[str, dict], *, at_once: int) -> dict[str, dict]:
    """Call :func:`run_training` for each {name: its arguments}, ``at_once`` at a time. Returns {name: result}.

    If one fails or this process is interrupted, the others stop, and the next call continues them.
    """
    failed = threading.Event()

    def run(arguments: dict) -> dict:
        def progress(now: Progress) -> None:
            if failed.is_set():
                raise UserError("stopped because another run failed")
            arguments.get("progress", lambda _: None)(now)

        return run_training(**{**arguments, "progress": progress})

    with ThreadPoolExecutor(at_once) as pool:
        futures = {name: pool.submit(run, arguments) for name, arguments in trainings.items()}
        try:
            wait(futures.values(), return_when=FIRST_EXCEPTION)
            for future in futures.values():
                if future.done():
                    future.result()
        except BaseException:
            failed.set()
            raise
        return {name: future.result() for name, future in futures.items()}


def log_tail(log: str | os.PathLike, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, without colours, indented. If an "error: " line is among them, from there on."""
    text = Path(log).read_text(errors="replace") if Path(log).is_file() else ""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()[-lines:]
    named = next((i for i, line in enumerate(plain) if line.startswith("error: ")), 0)
    return "\n".join(f"    {line}" for line in plain[named:])


@contextmanager
def _process(command: Sequence, *, log: Path, environment: Mapping[str, str], lock: int):
    """A process that writes to ``log`` and inherits ``lock``. The end of the block ends it."""
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            env=os.environ | environment,
            pass_fds=[lock],  # if this process is killed, the run still locks its folder
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _where(output: Path, log: Path, max_iter: int) -> Progress | None:
    """The progress, from the ends of metrics.json and the log; None before the first line of metrics."""
    lines = [entry for entry in _metrics(_end_of(output / "metrics.json")) if entry.get("total_loss") is not None]
    for last in lines[-1:]:  # the evaluation's lines have no loss
        if (done := last["iteration"] + 1) < max_iter:
            return Progress("training", done, max_iter, last.get("eta_seconds"), last["total_loss"])
        counts = re.findall(r"Inference done (\d+)/(\d+)", _end_of(log)) or [(0, 0)]
        return Progress("evaluating", *map(int, counts[-1]))
    return None


def _end_of(path: Path, size: int = 8192) -> str:
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        file.seek(max(path.stat().st_size - size, 0))
        return file.read().decode(errors="replace")


def _evaluation(output: Path, datasets: Sequence[str]) -> dict:
    """The figures of the first data set, its rows as "per_class", and figures of the others as "DATASET/…"."""
    first, *others = datasets
    found = _report(output / "inference" / first)
    for name in others:
        figures = _report(output / "inference" / name)
        found |= {f"{name}/{key}": figure for key, figure in figures.items() if key != "per_class"}
    return found


def _report(folder: Path) -> dict:
    remedy = "remove it and call this again: the evaluation writes it anew"
    reports = (read_note(folder / name, kind=Report, remedy=remedy) for name in REPORTS)
    report = next(filter(None, reports), None)
    if report is None:
        raise UserError(f"{folder} holds none of {', '.join(REPORTS)}: the training ended without an evaluation.")
    figures = {f"{t}/{name}": figure for t, found in tasks_of(report).items() for name, figure in found.items()}
    return {name.removeprefix("/"): figure for name, figure in figures.items()} | {"per_class": report["per_class"]}


def commit_of_code() -> str:
    """The commit of this code, with a "+" if tracked files have been changed since; "" outside a git repository."""
    command = ["git", "-C", str(TRAIN_NET.parent), "describe", "--always", "--exclude=*", "--dirty=+"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return ""


def settings_of(cfg, root: Path) -> Settings:
    """The config without folder and log period, and the hashes of its input files."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR, cfg.SOLVER.LOG_PERIOD = "", 0
    return {"config": cfg.dump(), "inputs": _input_digests(cfg, root)}


@contextmanager
def holding(output: Path):
    """Lock ``output``; yields the lock's file descriptor, which a child process may inherit."""
    output.mkdir(parents=True, exist_ok=True)
    with open(output / LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{output}: another training is still writing there; wait for it or stop it.") from error
        yield file.fileno()


def open_record(output: Path, settings: Settings) -> Record:
    """The record of this run. Files of a run of other settings are moved out of ``output`` first."""
    path = output / RECORD
    others = [entry for entry in output.iterdir() if entry.name != LOCK]
    if others and not os.path.lexists(path):
        raise UserError(f"{output} holds files that no such run has made: move it away, or name another folder.")
    remedy = f"if you want to keep the files of this run, rename {output}; else remove it, and it is trained anew"
    record = read_note(path, kind=Record, remedy=remedy)
    if record and record["settings"] == settings:
        return record
    if others:
        aside = next(free for n in count(1) if not os.path.lexists(free := output.with_name(f"{output.name}.{n}")))
        aside.mkdir()
        for entry in others:
            entry.rename(aside / entry.name)
        print(f"{output} holds a run of other settings, whose files are now in {aside}.", file=sys.stderr)
    record = Record(settings=settings, seconds=0.0, results=None)
    write_json(path, record)
    return record


def read_metrics(output: str | os.PathLike) -> list[dict]:
    """Lines of a run's metrics.json by ascending iteration. Of lines that a resumed run repeats, the last counts."""
    path = Path(output) / "metrics.json"
    by_iteration: dict[int, dict] = {}
    for entry in _metrics(path.read_text(errors="replace") if path.is_file() else ""):
        by_iteration[entry["iteration"]] = by_iteration.get(entry["iteration"], {}) | entry
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]


def _metrics(text: str) -> Iterator[dict[str, int | float | None]]:
    """The whole lines of a metrics.json: a kill cuts off the last one, and a resumed run goes on in the same line."""
    for line in text.splitlines():
        with suppress(UserError):
            entry = decode_json(line.encode(), source="", remedy="", kind=dict[str, int | float | None])
            if isinstance(entry.get("iteration"), int):
                yield entry


def _input_digests(cfg, root: Path) -> dict[str, str]:
    """{file: sha256} of weights, embeddings, annotations, partners and classes with boxes, those that exist."""
    from detectron2.data import MetadataCatalog

    sets = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.CAPTIONS, *cfg.DATASETS.REGIONS, *cfg.DATASETS.TEST)
    files = [MetadataCatalog.get(name).get("json_file") for name in sets]
    # Registered paths lie under this process's data root; the run may have another one.
    files = [os.path.relpath(file, data_root()) for file in files if file]
    files += [cfg.MODEL.WEIGHTS, cfg.MODEL.IMAGE_ENCODER.PRETRAINED, cfg.MODEL.TEXT.PRETRAINED]
    files += [cfg.INPUT.MOSAIC.PARTNERS, cfg.MODEL.OPEN_VOCAB.BASE_CLASSES]
    files += [node.EMBEDDINGS for node in (cfg.MODEL.VOCABULARY, cfg.MODEL.METHOD.REGION_CLIP, cfg.MODEL.METHOD.VLDET)]
    found = {}
    for file in filter(None, files):
        path = Path(file) if Path(file).is_file() else root / file
        if path.is_file():
            found[file] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
