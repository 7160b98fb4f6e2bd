"""Registering data sets that lie under the data root: nothing is read before they are asked for.

Paths are worked out from ``clim.files.data_root()`` whenever a data set or its metadata is asked for, so
``DETECTRON2_DATASETS`` may be set or changed after the registration.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from clim.files import data_root, read_json


class Vocabulary(NamedTuple):
    """Names in contiguous order, their split, and {category id of the json: contiguous index}."""

    names: list[str]
    base: list[str]
    novel: list[str]
    index: dict[int, int]


class Files(NamedTuple):
    """A data set on disk, relative to the data root; of several json files the first that exists is taken."""

    image_root: str
    json_files: tuple[str, ...]
    command: str

    def image_path(self) -> str:
        return str(data_root() / self.image_root)

    def json_path(self) -> str:
        return str(first_existing(self.json_files))

    def made_by(self) -> str:
        return f"{self.command} --output {data_root()}"


class LazyMetadata(Metadata):
    """Detectron2's metadata with entries that are computed at every read instead of stored.

    Copying and unpickling call the constructor without arguments and fill ``__dict__`` afterwards.
    """

    def __init__(self, *, name: str = "", entries: Mapping[str, Callable[[], object]] | None = None):
        super().__init__(name=name)
        self.__dict__["_entries"] = dict(entries or {})

    def __getattr__(self, key):
        if not key.startswith("_") and key in self._entries:
            return self._entries[key]()
        return super().__getattr__(key)

    def as_dict(self) -> dict:
        stored = {key: value for key, value in self.__dict__.items() if key != "_entries"}
        return {key: compute() for key, compute in self._entries.items()} | stored


def register(name: str, files: Files, vocabulary: Callable[[], Vocabulary], load: Callable, **metadata) -> None:
    """Fill both catalogues with ``load(files, vocabulary)``; a name that is taken stays as it is."""
    if name in DatasetCatalog:
        return
    DatasetCatalog.register(name, partial(load, files, vocabulary))
    entries = {
        "json_file": files.json_path,
        "image_root": files.image_path,
        "thing_classes": partial(_field, vocabulary, "names"),
        "thing_dataset_id_to_contiguous_id": partial(_field, vocabulary, "index"),
        "base_classes": partial(_field, vocabulary, "base"),
        "novel_classes": partial(_field, vocabulary, "novel"),
    }
    MetadataCatalog[name] = LazyMetadata(name=name, entries=entries).set(**metadata)


def first_existing(paths: tuple[str, ...]) -> Path:
    """The first of ``paths`` (below the data root) that exists; the first where none does."""
    candidates = [data_root() / path for path in paths]
    return next((path for path in candidates if path.exists()), candidates[0])


def categories_of(json_file: str | Path, *, remedy: str) -> tuple[tuple[int, str, str], ...]:
    """(id, name, split or "") of a COCO-format json by ascending id, read again only where the file has changed.

    Raises:
        UserError: no such file, or no json; it ends with ``remedy``.
    """
    path = Path(json_file)
    return _categories(str(path), path.stat().st_mtime_ns if path.is_file() else 0, remedy)


def own_vocabulary(files: Files, *, remedy: str) -> Vocabulary:
    """The json's own categories by ascending id. UserError as :func:`categories_of`.

    A category may have a field ``split``, "base" or "novel"; without it, it is in neither.
    """
    categories = categories_of(files.json_path(), remedy=remedy)
    index = {identifier: position for position, (identifier, _, _) in enumerate(categories)}
    base, novel = ([name for _, name, split in categories if split == part] for part in ("base", "novel"))
    return Vocabulary([name for _, name, _ in categories], base, novel, index)


@lru_cache(maxsize=8)
def _categories(json_file: str, modified_ns: int, remedy: str) -> tuple[tuple[int, str, str], ...]:
    """``modified_ns`` makes a rewritten file another cache entry."""
    content = read_json(json_file, remedy=remedy)
    return tuple(sorted((c["id"], c["name"], c.get("split", "")) for c in content["categories"]))


def _field(vocabulary: Callable[[], Vocabulary], key: str):
    return getattr(vocabulary(), key)
