"""Damages: functions of the world's folder. They put new files in place of old ones, whose data copies share."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

MISSING = object()  # the value of an entry that is taken away
Damage = Callable[[Path], object]


def put(path: Path, data: bytes | str) -> None:
    """Write a new file."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)


def edited(file: str, change: Callable[[bytes], bytes | str]) -> Damage:
    """The file with other bytes."""
    return lambda world: put(world / file, change((world / file).read_bytes()))


def edits(file: str, changes: dict[str, Callable[[bytes], bytes | str]]) -> dict[str, Damage]:
    return {f"{os.path.basename(file)}: {name}": edited(file, change) for name, change in changes.items()}


def written(file: str, data: bytes | str) -> Damage:
    """Other content; "{world}" in a text is the folder."""
    return lambda world: put(world / file, data.replace("{world}", str(world)) if isinstance(data, str) else data)


def contents(file: str, texts: dict[str, bytes | str]) -> dict[str, Damage]:
    return {f"{os.path.basename(file)}: {name}": written(file, text) for name, text in texts.items()}


def entry(file: str, place: str, value) -> Damage:
    """A json whose entry at ``place``, as "annotations.0.bbox", is ``value`` or MISSING."""

    def change(data: bytes) -> str:
        content = holder = json.loads(data)
        *path, last = (int(part) if part.isdecimal() else part for part in place.split("."))
        for part in path:
            holder = holder[part]
        holder[last] = value
        if value is MISSING:
            del holder[last]
        return json.dumps(content)

    return edited(file, change)


def instead(make: Callable[[Path], object]) -> Callable[[str], Damage]:
    """Something else in a file's place."""
    return lambda file: lambda world: ((world / file).unlink(missing_ok=True), make(world / file))


def a_link(target: str) -> Callable[[str], Damage]:
    """A link to itself ("."), to a device, to nothing."""
    return instead(lambda path: os.symlink(path.name if target == "." else target, path))


def a_file(folder: str) -> Damage:
    """A file in a folder's place."""
    return lambda world: (shutil.rmtree(world / folder, ignore_errors=True), put(world / folder, "no folder"))


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
    "a third of it": lambda data: data[: len(data) // 3],
    "all but the last byte": lambda data: data.rstrip()[:-1],
    "a block of zeros": zeroed,
    "noise": lambda data: random.Random(len(data)).randbytes(len(data)),
    "html": lambda data: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "a git-lfs pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
}
PLACES = {  # what else may lie in a file's place
    "missing": instead(lambda path: None), "a folder": instead(Path.mkdir), "a FIFO": instead(os.mkfifo),
    "a link to itself": a_link("."), "a link to nothing": a_link("nowhere"), "/dev/zero": a_link("/dev/zero"),
}  # fmt: skip


def broken(file: str, *names: str, but: tuple[str, ...] = ()) -> dict[str, Damage]:
    """The damages of BYTES and PLACES, or those with ``names``."""
    found = edits(file, BYTES) | {f"{os.path.basename(file)}: {name}": place(file) for name, place in PLACES.items()}
    wanted = names or (*BYTES, *PLACES)
    return {title: d for title, d in found.items() if (name := title.partition(": ")[2]) in wanted and name not in but}
