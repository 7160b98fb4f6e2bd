"""Trainings in their own processes, one or several at a time.

A second call with the same settings keeps a finished run, and continues an interrupted one from its last checkpoint.
Other settings start over, and the files of the run before move to a folder NAME.1, NAME.2, … beside it.
``results.json`` in a run's folder is a :class:`Record`, with null for ``results`` until the evaluation.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import NotRequired, TypedDict

import yaml

from clim.errors import UserError
from clim.files import data_root, write_json
from clim_commands.outputs import read_note

from .launch import ONE_PROCESS, ROOT, Launch, commit_of_code, describe_machine
from .run_files import Progress, evaluation, log_tail, where

TRAIN_NET = ROOT / "train_net.py"
RECORD, LOCK = "results.json", ".lock"
POLL_SECONDS = 1.0


class Busy(UserError):
    """Another training still writes to the folder."""


class Settings(TypedDict):
    """What makes two runs the same: the config after overrides, the bytes of weights, embeddings and annotations."""

    config: str
    inputs: dict[str, str]


class Record(TypedDict):
    """Settings of a run, seconds over all sessions, and the evaluator's figures with its rows as "per_class".

    commit: of this code when the last session began, with a "+" if files were changed since that commit.
    machine: its GPUs or cores, and torch's version.
    """

    settings: Settings
    seconds: float
    commit: NotRequired[str]
    machine: NotRequired[str]
    results: dict[str, float | list[dict[str, object]] | None] | None


def run_training(
    config: str | os.PathLike,
    *,
    output: str | os.PathLike,
    overrides: Sequence = (),
    datasets_root: str | os.PathLike | None = None,
    threads: int | None = 1,
    launch: Launch = ONE_PROCESS,
    progress: Callable[[Progress], None] = lambda _: None,
) -> dict:
    """Train and evaluate by ``train_net.py`` in a new process.

    Args:
        config: a YAML file.
        output: folder of this run. A run of other settings in it is moved away. Files of no run are an error.
        overrides: KEY, VALUE, … on top of the config, as on the command line.
        datasets_root: ``DETECTRON2_DATASETS`` of the run (default: this process's).
        threads: ``OMP_NUM_THREADS`` of the run; None: this process's.
        launch: its processes. Machines share ``output``; the first keeps the record, and the others wait for it.
        progress: called about once a second. An exception from it stops the run.

    Returns the evaluator's figures (AP50_novel, … in percent, None where no object exists; for masks and boxes
    "segm/APr", "bbox/APr", …), its rows as "per_class", and "seconds" over all sessions, alone without DATASETS.TEST.

    Raises UserError with the end of the log if the run fails, if another run uses ``output``, and if its record cannot
    be read.
    """
    from clim.engine import load_config  # Detectron2 loads when a run starts, not for --help

    output, root = Path(output), Path(data_root() if datasets_root is None else datasets_root)
    overrides = [str(value) for value in overrides]
    cfg = load_config(str(config), overrides)
    settings = settings_of(cfg, root, beside=output.parent)
    command = [sys.executable, *train_command(config, output, overrides, launch)]
    environment = {"DETECTRON2_DATASETS": str(root)} | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    if launch.machine_rank:
        return _join_first_machine(command, output, settings, log=f"train.log.{launch.machine_rank}", env=environment)
    with holding(output) as lock:
        record = open_record(output, settings)
        if record["results"] is not None:
            progress(Progress("kept"))
            return {**record["results"], "seconds": record["seconds"]}
        progress(now := Progress("resuming" if (output / "last_checkpoint").is_file() else "starting"))
        log = output / "train.log"
        before, start, commit = record["seconds"], time.monotonic(), commit_of_code()
        begun = log.stat().st_size if log.is_file() else 0
        with _process(command, log=log, environment=environment, locks=[lock]) as process:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
                    break
                record["seconds"] = round(before + time.monotonic() - start, 1)
                write_json(output / RECORD, record)
                now = where(output, log, start=begun) or now
                progress(now)
        _require_success(process, log)
        record["results"] = evaluation(output, cfg.DATASETS.TEST) if cfg.DATASETS.TEST else {}
        record["commit"], record["machine"] = commit, describe_machine(launch, device=cfg.MODEL.DEVICE)
        write_json(output / RECORD, record)
    progress(Progress("finished"))
    return {**record["results"], "seconds": record["seconds"]}


def train_command(config, output, overrides: Sequence, launch: Launch) -> list[str]:
    """The words of a training after ``python``."""
    words = [TRAIN_NET, "--config-file", config, "--resume", *launch.words(), "OUTPUT_DIR", output, *overrides]
    return list(map(str, words))


def _join_first_machine(command: Sequence, output: Path, settings: Settings, *, log: str, env: Mapping) -> dict:
    """Train beside the first machine, once its record has these settings. Returns the finished record's figures."""
    print(f"waiting for the first machine to begin {output}", flush=True)
    while (record := _read_record(output)) is None or record["settings"] != settings:
        time.sleep(POLL_SECONDS)
    if record["results"] is None:
        with _process(command, log=output / log, environment=env) as process:
            process.wait()
        _require_success(process, output / log)
    while (record := _read_record(output))["results"] is None:
        time.sleep(POLL_SECONDS)
    return {**record["results"], "seconds": record["seconds"]}


def _require_success(process: subprocess.Popen, log: Path) -> None:
    if process.returncode != 0:
        config = process.args[process.args.index("--config-file") + 1]
        raise UserError(f"{config} stopped with exit code {process.returncode}; {log} ends:\n{log_tail(log)}")


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


_running: set[subprocess.Popen] = set()


def stop_running() -> None:
    """End the trainings of this process, which save a checkpoint first, and wait for them."""
    for process in list(_running):
        process.terminate()
        with suppress(ChildProcessError):  # not process.wait(): a signal handler may interrupt it, and its lock is held
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


@contextmanager
def _process(command: Sequence, *, log: Path, environment: Mapping[str, str], locks: Sequence[int] = ()):
    """A process that writes to ``log`` and inherits ``locks``. The end of the block ends it."""
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            env=os.environ | environment,
            pass_fds=locks,  # if this process is killed, the run still locks its folder
        )  # fmt: skip
    _running.add(process)
    try:
        yield process
    finally:
        _running.discard(process)
        if process.poll() is None:
            process.terminate()
            process.wait()


def settings_of(cfg, root: Path, *, beside: Path) -> Settings:
    """What makes a run of ``cfg`` on the data root ``root`` the same as another one. Other runs lie in ``beside``."""
    inputs = {below(file, beside): found for file, found in _input_digests(cfg, root).items()}
    return {"config": recorded_config(cfg, beside=beside), "inputs": inputs}


def recorded_config(cfg, *, beside: Path) -> str:
    """The config as text, without what does not count (:func:`_clear_place`)."""
    cfg = cfg.clone()
    cfg.defrost()
    _clear_place(cfg, beside)
    return cfg.dump()


def _clear_place(config: dict, beside: Path) -> None:
    """Folder and log period do not count, nor the device, which is the CPU without a GPU, nor where ``beside`` lies."""
    model = config["MODEL"]
    config["OUTPUT_DIR"], config["SOLVER"]["LOG_PERIOD"], model["DEVICE"] = "", 0, "cpu"
    for node, key in ((model, "WEIGHTS"), (model["IMAGE_ENCODER"], "PRETRAINED")):
        node[key] = below(node[key], beside)


def below(path: str, folder: Path) -> str:
    """A path in ``folder`` as it is called there; any other one unchanged."""
    whole, folder = (Path(os.path.abspath(place)) for place in (path, folder))
    return str(whole.relative_to(folder)) if path and whole.is_relative_to(folder) else path


@contextmanager
def holding(output: Path):
    """Lock ``output``; yields the lock's file descriptor, which a child process may inherit."""
    output.mkdir(parents=True, exist_ok=True)
    with open(output / LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Busy(f"{output}: another training is still writing there; wait for it or stop it.") from error
        yield file.fileno()


def open_record(output: Path, settings: Settings) -> Record:
    """The record of this run. Files of a run of other settings are moved out of ``output`` first."""
    path = output / RECORD
    others = [entry for entry in output.iterdir() if entry.name != LOCK]
    if others and not os.path.lexists(path) and not _begun_by_hand(output, settings):
        raise UserError(f"{output} holds files that no such run has made: move it away, or name another folder.")
    record = _read_record(output)
    if record and record["settings"] == settings:
        return record
    if record:
        aside = next(free for n in count(1) if not os.path.lexists(free := output.with_name(f"{output.name}.{n}")))
        aside.mkdir()
        for entry in sorted(others, key=lambda entry: entry.name == RECORD):  # last, so that a killed move goes on
            entry.rename(aside / entry.name)
        print(f"{output} holds a run of other settings, whose files are now in {aside}.", file=sys.stderr)
    record = Record(settings=settings, seconds=0.0, results=None)
    write_json(path, record)
    return record


def _begun_by_hand(output: Path, settings: Settings) -> bool:
    """Whether ``output`` holds a run of this config that train_net.py was called for, without a record."""
    if not (file := output / "config.yaml").is_file():
        return False
    config = yaml.safe_load(file.read_text(errors="replace"))
    with suppress(TypeError, KeyError):  # no config
        _clear_place(config, output.parent)
    return config == yaml.safe_load(settings["config"])


def _read_record(output: Path) -> Record | None:
    remedy = f"if you want to keep the files of this run, rename {output}; else remove it, and it is trained anew"
    return read_note(output / RECORD, kind=Record, remedy=remedy)


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
        path = path / "facts.json" if path.is_dir() else path  # an index of tar shards
        if path.is_file():
            found[file] = digest(path)
    return found


def digest(path: Path) -> str:
    """The SHA-256 of a file. Rows share checkpoints and annotations, so a process computes it once for each state."""
    facts = path.stat()
    return _digest(path, facts.st_mtime_ns, facts.st_size)


@cache
def _digest(path: Path, changed: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
