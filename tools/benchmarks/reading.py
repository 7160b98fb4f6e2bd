"""Records of captions and their memory in workers, and JPEG files."""

import gc
import json
import re
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.common import DatasetFromList
from detectron2.data.detection_utils import read_image as read_with_pil

from clim.data.captions import read_captions
from clim.data.images import read_image
from clim.files import write_json

from .inputs import Settings
from .stopwatch import Spread, compared, fresh, interleaved, paired_ratio

CAPTIONS, READ = (10_000, 100_000, 1_000_000), 20_000  # numbers of records, and how many of them a worker reads


def measure_records(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """Records of captions from Detic's json, and what a worker adds that reads 20,000 of them.

    Every run has its own process; memory is that on top of the libraries.
    """
    rows, path = [], Path(settings.folder) / "captions.json"
    for count in CAPTIONS:
        write_json(path, {"categories": [{"id": c, "name": str(c)} for c in range(48)], "images": pairs(count)})
        arms = {way: partial(fresh, records_once, way, path) for way in OPENED}
        runs = interleaved(arms, repeats=settings.repeats, title=f"{count:,} captions", warm_up=0)
        for way, taken in runs.items():
            figures = {key: Spread.of([run[key] for run in taken]) for key in taken[0]}
            rows.append({"captions": f"{count:,}", "way": way} | figures)
    return rows


def pairs(count: int) -> list[dict]:
    words, size = "man dog street red small table near holding two plate".split(), {"height": 480, "width": 640}
    return [
        {"id": i, "file_name": f"{i:012d}.jpg", "captions": [f"{i} {' '.join(words[i % 9 :] + words[: i % 9])}"]}
        | {"pos_category_ids": [i % 47, i % 47 + 1], **size}
        for i in range(count)
    ]


def listed_pairs(path: Path) -> list[dict]:
    """Plain dicts, as Detectron2's readers of json files make them."""
    names = {"image_id": "id", "tags": "pos_category_ids"}
    names |= {field: field for field in ("file_name", "height", "width", "captions")}
    images = json.loads(path.read_text())["images"]
    return [{field: image[name] for field, name in names.items()} for image in images]


OPENED = {  # {way: path → records}
    "CLIM": lambda path: read_captions(str(path), str(path.parent), remedy=""),
    "list of dicts": listed_pairs,
    "Detectron2, serialised": lambda path: DatasetFromList(listed_pairs(path), copy=False),
}


def records_once(way: str, path: Path) -> dict[str, float]:
    """CPU seconds to open the records, their MB, and MB that a worker adds and its µs a record."""
    gc.collect()
    before, start = private_bytes(), time.process_time()
    records = OPENED[way](path)
    seconds = time.process_time() - start
    gc.collect()
    size = private_bytes() - before
    receiver, sender = get_context("fork").Pipe(duplex=False)
    worker = get_context("fork").Process(target=read_some, args=(records, sender))
    worker.start()
    added, microseconds = receiver.recv()
    worker.join()
    return {"cpu s": seconds, "process MB": size / 1e6, "worker MB": added / 1e6, "µs a record": microseconds}


def read_some(records: Sequence[dict], sender) -> None:
    """Send the bytes that this process adds while it reads READ random records, and the CPU µs of one."""
    gc.freeze()  # a collection would write to every object
    drawn = np.random.default_rng(0).integers(len(records), size=READ).tolist()
    before, start = private_bytes(), time.process_time()
    for i in drawn:
        len(records[i]["captions"])
    microseconds = 1e6 * (time.process_time() - start) / READ
    sender.send((private_bytes() - before, microseconds))


def private_bytes() -> int:
    """Bytes of this process that it shares with no other (Linux)."""
    status = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(map(int, re.findall(r"^Private_\w+:\s*(\d+)", status, re.MULTILINE)))


def measure_decode(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """JPEG files at full size, and how many pixels differ from PIL's."""
    settings.start()
    readers = {
        "Detectron2 (PIL)": partial(read_with_pil, format="BGR"),
        "CLIM": lambda name: read_image(name).image,
        "OpenCV": cv2.imread,
    }
    ways = {way: lambda read=read: [read(record["file_name"]) for record in records] for way, read in readers.items()}
    seconds, images = compared(ways, repeats=settings.repeats, title="JPEG files")
    first, *_ = readers
    rates = {way: [len(records) / s for s in taken] for way, taken in seconds.items()}
    rows = []
    for way in readers:
        differ = np.mean([(a != b).any(2).mean() for a, b in zip(images[way], images[first], strict=True)])
        row = {"decoder": way, "images / s": Spread.of(rates[way]), "ratio": paired_ratio(rates[way], rates[first])}
        rows.append(row | {"pixels that differ %": 100 * float(differ)})
    return rows
