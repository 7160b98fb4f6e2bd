"""Damages: functions of the world's folder. They put new files in place of old ones, whose data copies share."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

MISSING = object()  # the value of an entry that is taken away


def put(path: Path, data: bytes | str) -> None:
    """Write a new file."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def edited(file: str, change: Callable[[bytes], bytes | str]) -> Callable[[Path], None]:
    """The file with other bytes."""
    return lambda world: put(world / file, change((world / file).read_bytes()))


def written(file: str, data: bytes | str) -> Callable[[Path], None]:
    """Other content; "{world}" in a text is the folder."""
    return lambda world: put(world / file, data.replace("{world}", str(world)) if isinstance(data, str) else data)


def entry(file: str, place: str, value) -> Callable[[Path], None]:
    """A json whose entry at ``place``, as "annotations.0.bbox", is ``value``, a function of the old one, or MISSING."""

    def change(data: bytes) -> str:
        content = json.loads(data)
        *path, last = (int(part) if part.lstrip("-").isdecimal() else part for part in place.split("."))
        holder = content
        for part in path:
            holder = holder[part]
        if value is MISSING:
            del holder[last]
        else:
            holder[last] = (
                value(holder.get(last) if isinstance(holder, dict) else holder[last]) if callable(value) else value
            )
        return json.dumps(content)

    return edited(file, change)


def no_file(file: str) -> Callable[[Path], None]:
    return lambda world: (world / file).unlink()


def a_folder(file: str) -> Callable[[Path], None]:
    return lambda world: ((world / file).unlink(missing_ok=True), (world / file).mkdir())


def a_fifo(file: str) -> Callable[[Path], None]:
    return lambda world: ((world / file).unlink(missing_ok=True), os.mkfifo(world / file))


def a_link(file: str, target: str) -> Callable[[Path], None]:
    """A link: to itself, to a device, to nothing."""
    return lambda world: ((world / file).unlink(missing_ok=True), os.symlink(target, world / file))


def a_file(folder: str) -> Callable[[Path], None]:
    """A file in a folder's place."""

    def damage(world: Path) -> None:
        shutil.rmtree(world / folder, ignore_errors=True)
        put(world / folder, "no folder")

    return damage


def cut(part: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * part)]


def flipped(seed: int, count: int = 8) -> Callable[[bytes], bytes]:
    """``count`` random bits, not those of the first 2 %."""

    def change(data: bytes) -> bytes:
        rng, data = random.Random(seed), bytearray(data)
        for _ in range(count):
            data[rng.randrange(len(data) // 50, len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)

    return change


def zeroed(data: bytes) -> bytes:
    """The middle fifth is zero, as after a crash of the file system."""
    start, end = len(data) * 2 // 5, len(data) * 3 // 5
    return data[:start] + bytes(end - start) + data[end:]


BYTES = {  # damages of any file's bytes
    "empty": lambda data: b"",
    "a third of it": cut(1 / 3),
    "all but the last byte": lambda data: data.rstrip()[:-1],
    "a block of zeros": zeroed,
    "noise": lambda data: random.Random(len(data)).randbytes(len(data)),
    "html": lambda data: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "a git-lfs pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
}
PLACES = {  # what else may lie in a file's place
    "missing": no_file,
    "a folder": a_folder,
    "a FIFO": a_fifo,
    "a link to itself": lambda file: a_link(file, Path(file).name),
    "a link to nothing": lambda file: a_link(file, "nowhere"),
    "/dev/zero": lambda file: a_link(file, "/dev/zero"),
}
