"""Image-text pairs in tar shards: the index's time and size, memory of a worker, and samples a second against files."""

import io
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from clim.data.images import read_image
from clim.data.shards import read_shards
from shards.build import build_index

from .inputs import Settings
from .stopwatch import Run, Spread, fresh, interleaved, measure, paired_ratio

A_SHARD = 10_000  # pairs, as img2dataset's default
SAMPLES = 2_000  # images a run, of fewer photos 2 each
MB = 1e6


def measure_shards(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """Pairs in tar shards.

    A row for the photos of ``records``, and one for each of ``settings.pairs`` small images of 1 kB.
    """
    settings.start()
    photos = ((Path(r["file_name"]).read_bytes(), r["captions"][0]) for r in records)
    rows = [_row("photos", photos, len(records), settings)]
    return rows + [_row("1 kB", small_pairs(count), count, settings) for count in settings.pairs]


def small_pairs(count: int) -> Iterator[tuple[bytes, str]]:
    """(JPEG of about 1 kB, caption of 10 words)"""
    words, rng = np.array("man dog street red small table near holding two plate".split()), np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)) for _ in range(64)]
    for i in range(count):
        if i < len(noise):
            noise[i].save(file := io.BytesIO(), "JPEG", quality=75)
            noise[i] = file.getvalue()
        yield noise[i % len(noise)], f"{i} {' '.join(rng.permutation(words))}"


def _row(images: str, pairs: Iterator[tuple[bytes, str]], count: int, settings: Settings) -> dict:
    folder = Path(settings.folder) / "shards"
    names = write_shards(folder, pairs, count)
    started = time.perf_counter()
    build_index(folder, names, folder / "index")
    seconds = time.perf_counter() - started
    memory = fresh(memory_of_a_worker, folder)
    samples = min(SAMPLES, 2 * count)
    runs = interleaved(sampling_arms(folder, samples), repeats=settings.repeats, title=f"samples of {count} pairs")
    shutil.rmtree(folder)
    rates = {name: [samples / run.cpu for run in of_one] for name, of_one in runs.items()}
    return {
        "images": images,
        "pairs": f"{count:,}",
        "index s": seconds,
        "index MB": memory["index"] / MB,
        "open ms": 1000 * memory["open"],
        "worker MB": memory["anonymous"] / MB,
        "mapped MB": memory["mapped"] / MB,
        "samples / s and core": Spread.of(rates["shards"]),
        "of plain files": Spread.of(rates["files"]),
        "ratio": paired_ratio(rates["shards"], rates["files"]),
    }


def write_shards(folder: Path, pairs: Iterator[tuple[bytes, str]], count: int) -> list[str]:
    """Tar files of A_SHARD pairs each, and their names."""
    folder.mkdir(parents=True)
    names = [f"{i:05d}.tar" for i in range(-(-count // A_SHARD))]
    with tqdm(total=count, desc="writing shards", unit="pair") as bar:
        for number, name in enumerate(names):
            with tarfile.open(folder / name, "w") as tar:
                for i in range(number * A_SHARD, min((number + 1) * A_SHARD, count)):
                    image, caption = next(pairs)
                    for suffix, data in ((".jpg", image), (".txt", caption.encode())):
                        info = tarfile.TarInfo(f"{i:09d}{suffix}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
                    bar.update()
    return names


def memory_of_a_worker(folder: Path) -> dict[str, float]:
    """Seconds to open the index, its bytes, and the bytes that it and up to 20,000 samples add to this process."""
    read_image(next(iter(open_index(folder)))["file_name"])  # what decoding needs once
    before, started = resident(), time.perf_counter()
    records = open_index(folder)
    seconds = time.perf_counter() - started
    for i in np.random.default_rng(0).integers(len(records), size=min(10 * SAMPLES, 2 * len(records))):
        read_image(records[i]["file_name"], at_least=(16, 16))
    after = resident()
    size = sum(path.stat().st_size for path in (folder / "index").iterdir())
    return {"index": size, "open": seconds} | {name: after[name] - before[name] for name in after}


def sampling_arms(folder: Path, samples: int) -> dict[str, Callable[[], Run]]:
    """Functions that read and decode the same random images, from the shards and from plain files."""
    records, plain = open_index(folder), folder / "plain"
    plain.mkdir()
    drawn = np.random.default_rng(1).integers(len(records), size=samples).tolist()
    copies = {}
    for i in set(drawn):
        name = records[i]["file_name"]
        copies[i] = records[i] | {"file_name": str(plain / name.rpartition("#")[2])}
        shard, offset, size = re.match(r"tar://(.+)\?(\d+)\+(\d+)#", name).groups()
        with open(shard, "rb") as file:
            file.seek(int(offset))
            Path(copies[i]["file_name"]).write_bytes(file.read(int(size)))

    def run(source):
        for i in drawn:
            read_image(source[i]["file_name"])

    return {name: partial(measure, partial(run, source)) for name, source in (("shards", records), ("files", copies))}


def open_index(folder: Path):
    return read_shards(str(folder / "index"), str(folder), remedy="")


def resident() -> dict[str, int]:
    """Bytes of this process: ``anonymous`` belong to it alone, ``mapped`` are pages of files, which processes share."""
    status = dict(re.findall(r"^Rss(Anon|File):\s*(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE))
    return {"anonymous": int(status["Anon"]) * 1024, "mapped": int(status["File"]) * 1024}
