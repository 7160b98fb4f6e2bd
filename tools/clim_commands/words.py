"""Word lists: class names, perhaps with synonyms, from a text, a .txt, .csv, .json or .yaml file."""

import codecs
import csv
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from clim.config_files import parse_yaml
from clim.data.schemas import class_name
from clim.errors import UserError
from clim.files import nfc

COLUMNS = ("name", "names", "class", "classes", "label", "labels", "category")  # of a .csv; headers of the names
FORMS = "a .txt with a name a line, a .csv, a .json or a .yaml"
LETTERS = 500  # of a name: text towers read at most 77 word pieces
MOST_BYTES = 2_000_000_000  # of a file: LVIS's jsons, whose categories can be the list, have 1.2 billion
_FILE = re.compile(r"\S*\.[A-Za-z]{2,5}")  # what can only be the name of a file: "words.xlsx", not "St. Bernard"


def read_words(text: str, *, option: str) -> dict[str, list[str]]:
    """{name: its synonyms} of "a,b,c" or of a file, each name once, in order; errors name ``option``.

    Files may have any case of the suffix, a byte-order mark, and Windows' line ends:

    - .csv (also with ; | or tabs): the column with one of ``COLUMNS`` as its header, else the first; of one row, all;
    - .json and .yaml: a list; {name: [synonyms]}; {index: name}; ``names``, ``classes`` or ``categories`` with one of
      these; entries of a list may be {"name": …}, as COCO's categories, which are sorted by id;
    - .txt and others: a name a line, or one line "a, b, c".

    Numbers and words like "yes" stay as they are written. UserError for a file that is not there, of another form, or
    without a name.
    """
    path = Path(os.path.expanduser(text))
    if os.path.isfile(path) and (path.suffix or path.name != text):
        words = _words_of_file(path, option)
    elif os.path.exists(path) and os.sep in text:
        raise UserError(f'{option} {text} is no regular file: name {FORMS}, or write "a,b,c".')
    elif "," not in text and (_FILE.fullmatch(path.name) or path.is_absolute()):
        raise UserError(f'{option} {text} is not there: name an existing file ({FORMS}), or write "a,b,c".')
    else:
        words = dict.fromkeys(text.split(","), ())
    pairs = ((nfc(name.strip()), others) for name, others in words.items())
    words = {name: [nfc(s.strip()) for s in others if s.strip()] for name, others in pairs if name}
    if not words:
        raise UserError(f'{option} {text!r} holds no name: write "a,b,c", or name {FORMS}.')
    for name, others in words.items():
        for word in (name, *others):
            check_name(word, f"A name of {option} {text[:80]}")
    return words


def check_name(name: str, where: str) -> None:
    """UserError that begins with ``where`` for a name that is too long, or is no text."""
    if len(name) > LETTERS:
        raise UserError(f"{where} has {len(name)} letters, {name[:20]!r}…: give at most {LETTERS}.")
    try:
        class_name(name or "-")
    except ValueError as error:
        raise UserError(f"{where} {error}: give letters only.") from error


def parted(text: str, *, option: str) -> list[str]:
    """The classes of "a, b", or of "a: synonym, synonym; b". UserError for a comma in a name of the latter."""
    if not {":", ";"} & set(text):
        return text.split(",")
    entries = text.split(";")
    if wrong := next((name.strip() for name, *_ in (e.split(":") for e in entries) if "," in name), None):
        remedy = 'part classes by ";", as in "dog: puppy, hound; cat"'
        raise UserError(f"{option} has {wrong!r} as the name of one class: {remedy}.")
    return entries


def with_synonyms(entry: str) -> tuple[str, list[str]]:
    """The name and the synonyms of a class "name: synonym, synonym" or "name"."""
    name, _, listed = (part.strip() for part in nfc(entry).partition(":"))
    words = [word.strip() for word in listed.split(",") if word.strip()]
    for word in (name, *words):
        check_name(word, "A name of the words")
    return name, words


def _words_of_file(path: Path, option: str) -> dict[str, Iterable[str]]:
    suffix = path.suffix.lower()
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has over {MOST_BYTES:,} bytes")
        data = path.read_bytes()
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if wide else "utf-8-sig")
        if suffix in (".json", ".yaml", ".yml"):
            numbers = dict.fromkeys(("parse_int", "parse_float", "parse_constant"), str)  # as they are written
            is_json, source = suffix == ".json", f"{option} {path}"
            return _listed(json.loads(text, **numbers) if is_json else parse_yaml(text, source=source, words=True))
        return dict.fromkeys(_column(text) if suffix in (".csv", ".tsv") else _lines(text), ())
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{option} {path} cannot be read ({error}): use {FORMS}.") from error


def _lines(text: str) -> list[str]:
    """The lines; of a single one without synonyms, its names "a, b, c"."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[0].split(",") if len(lines) == 1 and ":" not in lines[0] else lines


def _column(text: str) -> list[str]:
    """The cells of the column of names, without its header; of a single row, all."""
    lines = text.splitlines(keepends=True)
    delimiter = max(",;\t|", key=next(iter(lines), "").count)
    rows = [row for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True) if any(row)]
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if len(rows) == 1 and not any(cell in COLUMNS for cell in header):
        return [cell for cell in rows[0] if not cell.strip().isdecimal()]
    column = next((i for i, cell in enumerate(header) if cell in COLUMNS), None)
    if short := next((row for row in rows if len(row) <= (column or 0)), None):
        raise ValueError(f"the row {short} has no cell below {header[column or 0]!r}")
    return [row[column or 0] for row in rows[column is not None :]]


def _listed(content) -> dict[str, Iterable[str]]:
    """{name: synonyms} of what a .json or .yaml file holds. ValueError for other forms."""
    if isinstance(content, Mapping):
        for key in ("names", "classes", "categories"):
            if isinstance(content.get(key), list | Mapping):
                return _listed(content[key])
            if key in content:
                raise ValueError(f"its {key} are no list")
        if all(key.isdecimal() and isinstance(name, str) for key, name in content.items()):
            return dict.fromkeys((content[key] for key in sorted(content, key=int)), ())  # {index: name}
        words = {name: [other] if isinstance(other, str) else other or [] for name, other in content.items()}
    else:
        entries = content if isinstance(content, list) else [None]
        if all(isinstance(entry, Mapping) for entry in entries):
            entries = [entry.get("name") for entry in sorted(entries, key=_id)]
        words = dict.fromkeys(entries, []) if all(isinstance(name, str) for name in entries) else {"": None}
    if not all(isinstance(other, list) and all(isinstance(text, str) for text in other) for other in words.values()):
        raise ValueError("it holds neither a list of names nor {name: [synonyms]} nor categories with names")
    return words


def _id(category: Mapping) -> float:
    try:
        return float(category.get("id", 0))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the category {category.get('name')!r} has an id that is no number") from error
