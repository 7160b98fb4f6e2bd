"""The data root, json, and writing of whole files: a kill leaves NAME.partial, and the next attempt replaces it."""

import codecs
import json
import math
import os
import re
import shutil
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from clim.errors import UserError

_WORDS = {  # msgspec's names of types
    "array": "a list", "object": "an object", "str": "a text", "int": "a whole number", "float": "a number",
    "bool": "true or false",
}  # fmt: skip
T = TypeVar("T")


def data_root() -> Path:
    """Folder of all data sets: the environment's ``DETECTRON2_DATASETS``, or ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def resolve(path: str | os.PathLike) -> Path:
    """``path`` if it is absolute or exists; otherwise ``path`` under :func:`data_root`."""
    path = Path(path).expanduser()
    return path if path.is_absolute() or path.exists() else data_root() / path


@contextmanager
def replacing(path: str | os.PathLike, *, shared: bool = False) -> Iterator[Path]:
    """Give a path for a new file, link or folder, which replaces ``path`` at the end of the block.

    After a kill or an error, ``path`` is as it was. Makes its folder. ``shared``: the last of several processes wins.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + (f".{os.getpid()}" if shared else "") + ".partial")
    remove(partial)
    try:
        with naming(path):
            yield partial
            os.replace(partial, path)
    except BaseException:  # a Ctrl-C too
        remove(partial)
        raise


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """An OSError of the block that names no file, as that of a write, names the file or folder ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # NumPy's has words alone, which a name would hide
            error.filename = error.filename or str(path)
        raise


def remove(path: Path) -> None:
    """Delete a file, a link (not its target) or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content, *, indent: int | None = None, shared: bool = False) -> None:
    """Write ``content`` to ``path`` as json; ``shared`` as in :func:`replacing`."""
    text = json.dumps(content, indent=indent)
    with replacing(path, shared=shared) as partial:
        partial.write_text(text)


def nan_to_none(row: Mapping) -> dict:
    """A copy with None in place of nan, because json has no nan."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def read_json(path: str | os.PathLike, *, remedy: str, kind: type[T] = object) -> T:
    """Content of a json file as ``kind``, any type that msgspec decodes; its Structs describe each kind of file.

    UserError with ``remedy`` where the file is missing or broken, or a value does not fit: file, place, the value and
    the id of its object, and what it must be (the ``description`` of its field, else its type).
    """
    return decode_json(read_bytes(path, remedy=remedy), source=path, remedy=remedy, kind=kind)


def decode_json(data: bytes, *, source, remedy: str, kind: type[T] = object) -> T:
    """As :func:`read_json`, of the content of ``source``."""
    content = msgspec.Raw(data.removeprefix(codecs.BOM_UTF8))
    try:
        try:
            return msgspec.json.decode(content, type=kind)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, RecursionError):
            pass  # Python's json also reads NaN, half surrogate pairs and UTF-16, and says where a file breaks off
        content = json.loads(data)
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{_misfit(error, content, source, kind)}: {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is not valid json ({error}): {remedy}") from error


def _misfit(error: msgspec.ValidationError, content, source, kind: type) -> str:
    """What does not fit in ``content``: its place, the id of its object, the value, and what it must be."""
    message, _, path = str(error).removesuffix("`").partition(" - at `$")
    keys = [name or int(number) for name, number in re.findall(r"\.([^.[]+)|\[(\d+)\]", path.partition("[...]")[0])]
    missing, own = re.fullmatch("Object missing required field `([^`]*)`?", message), error.__cause__
    if not (missing or own):
        schema = {} if kind is object else msgspec.json.schema(kind, schema_hook=lambda _: {"title": "any"})
        fields = [field for part in schema.get("$defs", {}).values() for field in part.get("properties", {}).items()]
        kinds = ((name, choice) for name, field in fields for choice in (field, *field.get("anyOf", ())))
        described = {name: choice["description"] for name, choice in kinds if "description" in choice}
        last = next((i for i in reversed(range(len(keys))) if keys[i] in described), None)
        expected = message.removeprefix("Expected ").partition(", got")[0]
        if last is None:  # "`int | null` >= 0"
            expected = re.sub(r"\w+", lambda word: _WORDS.get(word[0], word[0]), expected)
            expected = expected.replace("`", "").replace(" | ", " or ")
        else:
            expected, keys = described[keys[last]], keys[: last + 1]
    found, identity = _look_up(content, keys)
    place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
    where = (f"{place} of {source}" if place else str(source)) + identity
    if missing:
        return f"{where} has no {missing[1]}" + ("" if keys else ", so it is a file of another kind")
    return f"{where} {message}" if own else f"{where} is {found}: it must be {expected}"


def _look_up(content, keys: list) -> tuple[str, str]:
    """The value at ``keys`` as a short json, and " (id …)" of the innermost object around it that has an id."""
    identity = ""
    for key in (*keys, None):
        parts = content
        if isinstance(content, msgspec.Raw):  # only the way to the value is decoded
            kind = list[msgspec.Raw] if isinstance(key, int) else dict[str, msgspec.Raw]
            try:
                parts = msgspec.json.decode(content, type=kind)
            except (msgspec.MsgspecError, RecursionError):  # it may also be broken elsewhere
                break
        if isinstance(parts, dict) and "id" in parts and key != "id":
            identity = f" (id {_shortened(parts['id'])})"
        if key is not None:
            content = parts[key]
    return _shortened(content), identity


def _shortened(value, length: int = 60) -> str:
    raw = isinstance(value, msgspec.Raw)
    text = bytes(memoryview(value)[: 4 * length]).decode(errors="replace") if raw else json.dumps(value)
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]}…"


def read_text(path: str | os.PathLike, *, remedy: str) -> str:
    """Text of a file in UTF-8, without its byte-order mark. UserError with ``remedy``, as :func:`read_json`."""
    try:
        return read_bytes(path, remedy=remedy).decode("utf-8-sig")
    except ValueError as error:
        raise UserError(f"{path} is not text in UTF-8 ({error}): {remedy}") from error


def nfc(name: str) -> str:
    """A class name with each accent in its letter (Unicode's NFC), so that names that look the same are equal."""
    return unicodedata.normalize("NFC", name)


def read_bytes(path: str | os.PathLike, *, remedy: str) -> bytes:
    """Content of a file. UserError with ``remedy`` where it is missing, cannot be read or is no regular file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe or a device may never end
            raise UserError(f"{path} is a folder, a pipe or a device, but must be a file: {remedy}")
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} not found: {remedy}") from error
    except MemoryError as error:
        raise UserError(f"{path} is too large for the memory: {remedy}") from error
    except (OSError, ValueError) as error:  # ValueError: a path with the character 0
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', error)}): {remedy}") from error
