"""The data root, json, and writing of whole files: a kill leaves NAME.partial, and the next attempt replaces it."""

import codecs
import json
import math
import os
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from clim.errors import UserError

SUFFIX = ".partial"
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

    After a kill or an error, ``path`` is as it was. Makes the folder of ``path``. ``shared``: other processes may write
    ``path`` at the same time; the last one wins.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + (f".{os.getpid()}" if shared else "") + SUFFIX)
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


def read_json(
    path: str | os.PathLike, *, remedy: str, kind: type[T] = object,
    object_hook: Callable[[dict], object] | None = None,
) -> T:  # fmt: skip
    """Content of a json file as ``kind``, any type that msgspec decodes; its Structs describe each kind of file.

    UserError with ``remedy`` where the file is missing or broken, or a value does not fit: file, place, expected type.
    """
    data = _read_bytes(path, remedy)
    return decode_json(data, source=path, remedy=remedy, kind=kind, object_hook=object_hook)


def decode_json(data: bytes, *, source, remedy: str, kind: type[T] = object, object_hook=None) -> T:
    """As :func:`read_json`, of the content of ``source``."""
    try:
        try:
            if object_hook is None:
                return msgspec.json.decode(data.removeprefix(codecs.BOM_UTF8), type=kind)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, RecursionError):
            pass  # Python's json also reads NaN, half surrogate pairs and UTF-16, and says where a file breaks off
        return msgspec.convert(json.loads(data, object_hook=object_hook), kind)
    except msgspec.ValidationError as error:
        expected, _, place = str(error).rstrip("`").partition(" - at `$")
        where = f"{place.lstrip('.')} of {source}" if place else source
        raise UserError(f"{where} does not fit: {expected[:1].lower()}{expected[1:]}: {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is not valid json ({error}): {remedy}") from error


def read_text(path: str | os.PathLike, *, remedy: str) -> str:
    """Text of a file in UTF-8, without its byte-order mark. UserError with ``remedy``, as :func:`read_json`."""
    try:
        return _read_bytes(path, remedy).decode("utf-8-sig")
    except ValueError as error:
        raise UserError(f"{path} is not text in UTF-8 ({error}): {remedy}") from error


def nfc(name: str) -> str:
    """A class name with each accent in its letter (Unicode's NFC), so that names that look the same are equal."""
    return unicodedata.normalize("NFC", name)


def _read_bytes(path: str | os.PathLike, remedy: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} not found: {remedy}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {remedy}") from error
