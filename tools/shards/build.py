"""Make the index of tar shards: one pass over each shard, a file for each finished one, and the whole index at last."""

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote
from zipfile import BadZipFile

import numpy as np
from torch.utils.data import DataLoader
from tqdm import tqdm

from clim.data.captions import cleaned
from clim.data.images import MAX_PIXELS, MIN_SIDE, UnreadableImage, image_size
from clim.data.shards import PAIR, VERSION, checksum, stamp
from clim.errors import UserError
from clim.files import remove, replacing, write_json

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
BLOCK = 512  # bytes of a tar header; data is padded to blocks
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
UNTAGGED = "no tag"
OWN_FILES = {"facts.json", "pairs.npy", "texts.bin", "skipped.tsv"}  # of an index
MOST_IMAGE, MOST_TEXT = 1 << 29, 1 << 24  # bytes of a member

Fault = tuple[str, str]  # (member or place, reason)


class Tagging(NamedTuple):
    """How captions become tags."""

    name: str  # of the rule; another name makes shards be read again
    categories: Sequence[Mapping]  # [{"id", "name"}] by ascending id
    tag: Callable[[Sequence[str]], Sequence[int]]  # captions of an image → category ids
    keep_untagged: bool


NO_TAGS = Tagging("none", (), lambda captions: (), True)


def build_index(
    folder: Path, names: Sequence[str], output: Path, *, tagging: Tagging = NO_TAGS, workers: int = 0
) -> dict:
    """Write the index of the shards ``names`` in ``folder`` to the folder ``output``. Returns its facts.

    ``workers`` further processes read shards; 0: this one. Finished shards wait in ``output``.parts: after a kill, the
    next call goes on from there. UserError for compressed shards, for another folder at ``output``, for what is no
    file, and for no pair.
    """
    if output.exists() and not ((output / "facts.json").is_file() and {p.name for p in output.iterdir()} <= OWN_FILES):
        raise UserError(f"{output} exists and is not an index: name another folder.")
    for name in names:
        if not (folder / name).is_file():  # a pipe would never end
            raise UserError(f"{folder / name} is no file: remove it, or choose other shards with --pattern.")
    parts = output.with_name(output.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    files = [parts / f"{quote(os.fsencode(name), safe='')}.npz" for name in names]
    todo = [(folder / name, file) for name, file in zip(names, files, strict=True)]
    # A DataLoader, because its processes end when this one is killed.
    make = DataLoader(todo, batch_size=None, num_workers=workers, collate_fn=partial(index_shard, tagging=tagging))
    for _ in tqdm(make, desc="shards", unit="shard"):
        pass
    facts = join(names, files, output, tagging=tagging)
    for file in parts.glob("*.npz*"):
        file.unlink()
    with suppress(OSError):  # it holds other files
        parts.rmdir()
    return facts


def index_shard(shard: tuple[Path, Path], *, tagging: Tagging) -> None:
    """Write the second file, a part of the index, for the first, a shard, unless it is there for this very shard."""
    path, file = shard
    key = json.dumps([VERSION, tagging.name, tagging.keep_untagged, stamp(path)])
    with suppress(OSError, ValueError, KeyError, EOFError, BadZipFile), np.load(file) as part:  # missing or damaged
        if str(part["key"]) == key and all(part[name] is not None for name in part.files):
            return
    pairs, texts, faults = read_shard(path, tagging)
    with replacing(file, shared=True) as partial_file, open(partial_file, "wb") as opened:
        faults = np.array(json.dumps(faults))
        np.savez(opened, key=np.array(key), pairs=pairs, texts=np.frombuffer(texts, np.uint8), faults=faults)


def join(names: Sequence[str], files: Sequence[Path], output: Path, *, tagging: Tagging) -> dict:
    """One index of the files of all shards."""
    tables, shards, counts = [np.empty(0, PAIR)], [], Counter()
    with replacing(output) as folder:
        folder.mkdir()
        with open(folder / "texts.bin", "wb") as texts, open(folder / "skipped.tsv", "w", encoding="utf-8") as skipped:
            for number, (name, file) in enumerate(zip(names, files, strict=True)):
                with np.load(file) as part:
                    pairs, faults = part["pairs"], json.loads(str(part["faults"]))
                    shards.append({"name": name} | json.loads(str(part["key"]))[-1])
                    pairs["shard"] = number
                    pairs["start"] += texts.tell()
                    texts.write(part["texts"].tobytes())
                tables.append(pairs)
                counts.update(reason.partition(" (")[0] for _, reason in faults)
                rows = ((name, member, reason) for member, reason in faults if reason != UNTAGGED)
                skipped.writelines("\t".join(json.dumps(text)[1:-1] for text in row) + "\n" for row in rows)
            size = texts.tell()
        pairs = np.concatenate(tables)
        if not len(pairs):
            reasons = ", ".join(f"{count} times {reason}" for reason, count in counts.most_common())
            shown = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            remedy = "give shards whose images, such as KEY.jpg, have a KEY.txt or KEY.json beside them"
            raise UserError(f"No image-text pair in {shown} ({reasons or 'no member'}): {remedy}.")
        ids = pairs["image_id"]
        if ids.min() < 0 or len(np.unique(ids)) < len(ids):
            pairs["image_id"] = np.arange(len(pairs))
        np.save(folder / "pairs.npy", pairs)
        facts = {"version": VERSION, "images": len(pairs), "text_bytes": size, "skipped": dict(counts.most_common())}
        facts["checksums"] = {name: checksum(folder / name) for name in ("pairs.npy", "texts.bin")}
        facts |= {"tagging": tagging.name, "categories": list(tagging.categories), "shards": shards}
        write_json(folder / "facts.json", facts, indent=1)
        remove(output)  # an older index; a folder cannot replace it
    return facts


def read_shard(path: Path, tagging: Tagging) -> tuple[np.ndarray, bytes, list[Fault]]:
    """(pairs (N,) of type PAIR in the order of the images, texts.bin of this shard, faults)."""
    images, captions, faults = {}, {}, []
    with open(path, "rb") as file:
        for member in members(file, os.path.getsize(path), faults):
            key, suffix = os.path.splitext(member.name)
            suffix = suffix.lower()
            if suffix in IMAGES:
                if key in images:
                    faults.append((member.name, "second image of its key"))
                else:
                    images[key] = (member, size_or_reason(file, member))
            elif suffix in (".txt", ".json"):
                if suffix in captions.setdefault(key, {}) or member.size > MOST_TEXT:
                    reason = "text too large" if member.size > MOST_TEXT else f"second {suffix} of its key"
                    faults.append((member.name, reason))
                else:
                    file.seek(member.offset_data)
                    captions[key][suffix] = file.read(member.size)
    index = {category["id"]: i for i, category in enumerate(tagging.categories)}
    rows, texts = [], io.BytesIO()
    for key, (member, size) in images.items():
        caption, reason = caption_or_reason(captions.pop(key, {}))
        reason = size if isinstance(size, str) else reason
        tags = [] if reason else [index[category] for category in tagging.tag([caption])]
        if not reason and not tags and not tagging.keep_untagged:
            reason = UNTAGGED
        if reason:
            faults.append((member.name, reason))
            continue
        stem, start = os.path.basename(key), texts.tell()
        image_id = int(stem) if stem.isdecimal() and len(stem) < 19 else -1
        parts = [cleaned(member.name).encode(), caption.encode()]
        parts.append(np.array(tags, "<i4").tobytes())
        texts.write(b"".join(parts))
        rows.append((0, member.offset_data, member.size, *size, image_id, start, *map(len, parts)))
    faults += [(key, "text without an image") for key in captions]
    return np.array(rows, PAIR), texts.getvalue(), faults


def members(file: io.BufferedReader, size: int, faults: list[Fault]) -> Iterator[tarfile.TarInfo]:
    """The whole files in a tar of ``size`` bytes; damaged places and a cut end are added to ``faults``."""
    if file.read(6).startswith(COMPRESSED):
        raise UserError(f"{file.name} is compressed, so it has no random access: unpack it to a plain .tar.")

    def cut() -> bool:
        """Whether something else than the end mark or the next header lies at ``end``."""
        file.seek(end)
        block = file.read(BLOCK)
        return len(block) < BLOCK or any(block)

    file.seek(0)
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:  # goes on after a damaged header
            for member in tar:
                if member.offset > end and cut():
                    faults.append((f"byte {end}", "damaged header"))
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                if member.size < 0 or member.offset_data + member.size > size:
                    faults.append((member.name, "truncated shard"))
                    return
                if member.issparse():
                    faults.append((member.name, "sparse"))
                elif member.isreg():
                    yield member
    except (tarfile.TarError, ValueError, ArithmeticError, MemoryError, RecursionError) as error:  # a senseless header
        faults.append((f"byte {end}", f"unreadable rest ({error})"))
        return
    if cut():
        faults.append((f"byte {end}", "truncated shard" if end + BLOCK > size else "damaged header"))


def size_or_reason(file: io.BufferedReader, member: tarfile.TarInfo) -> tuple[int, int] | str:
    """(height, width) of an image, or why it is left out."""
    if member.size > MOST_IMAGE:
        return "too large"
    file.seek(member.offset_data)
    try:
        height, width = image_size(io.BytesIO(file.read(member.size)))
    except UnreadableImage as error:
        return error.reason if member.size else "empty"
    if height * width > MAX_PIXELS:
        return f"too large ({width}x{height})"
    return (height, width) if min(height, width) >= MIN_SIDE else f"tiny ({width}x{height})"


def caption_or_reason(found: Mapping[str, bytes]) -> tuple[str, str]:
    """(caption, "") or ("", why there is none), from the .txt or else from img2dataset's .json."""
    try:
        facts = json.loads(found.get(".json", b"{}"))
    except (ValueError, RecursionError):
        facts = {}
    facts = facts if isinstance(facts, dict) else {}
    if facts.get("status", "success") != "success":
        return "", f"status ({str(facts['status'])[:80]})"
    try:
        caption = found[".txt"].decode("utf-8") if ".txt" in found else facts.get("caption")
    except UnicodeDecodeError:
        return "", "text is not UTF-8"
    if not isinstance(caption, str):
        return "", "without text"
    caption = cleaned(caption)
    return (caption, "") if caption.strip() else ("", "empty text")
