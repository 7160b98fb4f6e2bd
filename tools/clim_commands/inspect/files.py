"""Files of a data set that cannot be used: every image is decoded."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from detectron2.data import MetadataCatalog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clim.data.formats import find_images, read_table
from clim.data.images import MIN_SIDE, UnreadableImage, check_size, image_size, read_image
from clim.data.own_data import OwnData
from clim.data.shards import ShardRecords
from clim.sources import Skipped

from .counts import Counts

THREADS, CHUNK = 4, 256
SMALL = (1, 1)  # a JPEG is read whole, but decoded at an eighth of its size


def check_files(sets: list[Counts], data: OwnData | None) -> None:
    """Fill ``damaged`` and ``unlisted`` of each set, with a progress bar on stderr. ``data``: where sets are from."""
    tables = {own.name: own for own in data.sets if own.kind == "table"} if data else {}
    columns = (TextColumn("files of {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars, ThreadPoolExecutor(THREADS) as pool:
        for counts in sets:
            task, records = bars.add_task(counts.name, total=len(counts.records)), counts.records
            for start in range(0, len(records), CHUNK):
                chunk = records[start : start + CHUNK]
                counts.damaged += filter(None, pool.map(reason_against, chunk))
                bars.advance(task, len(chunk))
            if isinstance(records, ShardRecords):
                continue
            listed = read_table(tables[counts.name].texts, remedy="") if counts.name in tables else ()
            damaged, counts.unlisted = without_record(counts, listed)
            counts.damaged += damaged


def reason_against(record: dict) -> Skipped | None:
    """What is wrong with the image of ``record``; None if it can be used."""
    try:
        annotated = "annotations" in record
        decoded = read_image(record["file_name"], at_least=SMALL, min_side=1 if annotated else MIN_SIDE)
        if annotated:
            check_size(record, decoded)
    except UnreadableImage as error:
        return Skipped(error.file_name, error.reason)
    return None


def without_record(counts: Counts, listed=()) -> tuple[list[Skipped], int]:
    """Files that readers have left out because of their headers or because they are missing; number of other images.

    They are images in the folder of the set and those of ``listed``, relative to it.
    """
    root = MetadataCatalog.get(counts.name).get("image_root")
    if not root or not Path(root).is_dir():
        return [], 0
    known = {os.path.normpath(record["file_name"]) for record in counts.records}
    files = {os.path.normpath(os.path.join(root, name)) for name in (*find_images(root), *listed)} - known
    damaged = []
    for file in sorted(files):
        try:
            image_size(file)
        except UnreadableImage as error:
            damaged.append(Skipped(error.file_name, error.reason))
    return damaged, len(files) - len(damaged)
