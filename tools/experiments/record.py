"""The output folder of one training as a record: with which settings, how long, which results.

``results.json`` holds {"settings", "seconds", "results"}; ``results`` is null until the run is evaluated.
"""

import fcntl
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from detectron2.data import MetadataCatalog

from clim.errors import UserError
from clim.files import data_root, read_json_or_none, write_json

RECORD = "results.json"
LOCK = ".lock"


def settings_of(cfg, root: Path) -> dict:
    """What makes two runs the same: the config, and the contents of all files that it starts from."""
    return {"config": _comparable(cfg), "inputs": _input_digests(cfg, root)}


@contextmanager
def holding(output: Path):
    """A lock on ``output``, which a child process may inherit; yields its file descriptor."""
    output.mkdir(parents=True, exist_ok=True)
    with open(output / LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{output}: another training is still writing there; wait for it or stop it.") from error
        yield file.fileno()


def open_record(output: Path, settings: dict) -> dict:
    """The record of this run; what a run of other settings left in ``output`` is deleted first."""
    path = output / RECORD
    others = [entry for entry in output.iterdir() if entry.name != LOCK]
    if others and not path.is_file():
        raise UserError(f"{output} holds files that no such run has made: remove it, or name another folder.")
    record = read_json_or_none(path)
    if record and record.get("settings") == settings:
        return record
    for entry in others:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    record = {"settings": settings, "seconds": 0.0, "results": None}
    write_record(output, record)
    return record


def write_record(output: Path, record: dict) -> None:
    """Keep what is known of the run; a reader sees the old record or the whole new one."""
    write_json(output / RECORD, record)


def read_metrics(output: str | os.PathLike) -> list[dict]:
    """Lines of a run's metrics.json by ascending iteration; of those that a resumed run repeats, the last."""
    path = Path(output) / "metrics.json"
    by_iteration: dict[int, dict] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            iteration = entry["iteration"]
        except (ValueError, KeyError):  # the line that a kill cut off
            continue
        by_iteration[iteration] = by_iteration.get(iteration, {}) | entry
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]


def _comparable(cfg) -> str:
    """The config as text, without its folder and how often it logs."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR, cfg.SOLVER.LOG_PERIOD = "", 0
    return cfg.dump()


def _input_digests(cfg, root: Path) -> dict[str, str]:
    """{file: sha256} of weights, embeddings, annotations, partners and classes with boxes, those that exist."""
    sets = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.CAPTIONS, *cfg.DATASETS.REGIONS, *cfg.DATASETS.TEST)
    files = [MetadataCatalog.get(name).get("json_file") for name in sets]
    # Registrations answer with paths under this process's data root; the run may have another.
    files = [os.path.relpath(file, data_root()) for file in files if file]
    files += [cfg.MODEL.WEIGHTS, cfg.MODEL.IMAGE_ENCODER.PRETRAINED, cfg.MODEL.TEXT.PRETRAINED]
    files += [cfg.INPUT.MOSAIC.PARTNERS, cfg.MODEL.OPEN_VOCAB.BASE_CLASSES]
    files += [cfg.MODEL.VOCABULARY.EMBEDDINGS, cfg.MODEL.METHOD.REGION_CLIP.EMBEDDINGS]
    found = {}
    for file in filter(None, files):
        path = Path(file) if Path(file).is_file() else root / file
        if path.is_file():
            found[file] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
