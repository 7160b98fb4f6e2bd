"""YAML and overrides, from a user to a config. No code in them runs, and reading them needs bounded time and memory."""

import ast
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from clim.errors import UserError, near
from clim.files import read_text

MOST_BYTES, MOST_VALUES, MOST_LEVELS, MOST_FILES = 2**22, 10**6, 50, 64
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # in no name and path; half an emoji cannot be written
_TYPES = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", list: "a list"}
_KINDS = {type(None): "nothing", list: "a list", dict: "keys"}
_LOADER, _WORDS = (getattr(yaml, "C" + name, getattr(yaml, name)) for name in ("SafeLoader", "BaseLoader"))
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100

Entry = tuple[str, object, str]  # key with dots, value, file that says so ("": an override)


def shown(value) -> str:
    """``repr`` of a value for a message, shortened."""
    return CONTROL.sub("?", _short.repr(value))


# ---- YAML


def read_yaml(path: str | os.PathLike, *, remedy: str, words: bool = False):
    """Content of a YAML file in UTF-8, as :func:`parse_yaml`. UserError with ``remedy`` for a file that is none."""
    path = Path(path)
    if path.exists() and not (path.is_file() and path.stat().st_size <= MOST_BYTES):
        raise UserError(f"{path} is no regular file of at most {MOST_BYTES >> 20} MB: {remedy}.")
    return parse_yaml(read_text(path, remedy=f"{remedy}."), source=path, words=words)


def parse_yaml(text: str, *, source, words: bool = False):
    """Content of a YAML ``text``; with ``words`` every scalar stays a text: 10 and yes are names.

    UserError for broken YAML, tags that could run code, a key given twice, and what exceeds the bounds above.
    """
    try:
        _check_events(text)
        return yaml.load(text, Loader=_WORDS if words else _LOADER)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        where = f"line {mark.line + 1}: " if mark else ""
        reason = CONTROL.sub("?", " ".join(f"{where}{problem}".split()))[:300]
        raise UserError(f"{source} is not valid YAML ({reason}): correct it.") from error


def _check_events(text: str) -> None:
    """YAMLError for a tag of Python, a key that is given twice, and aliases or levels without bounds.

    An alias counts as much as what it stands for, because what reads the content walks through all of it.
    """
    sizes: dict[str, int] = {}  # of what an anchor names
    opened: list[tuple] = []  # (anchor, {key: where it begins} of a mapping, sizes of the parts)
    for event in yaml.parse(text, Loader=_LOADER):
        wrong = ""
        if "tag:yaml.org,2002:python" in (getattr(event, "tag", None) or ""):
            wrong = f"the tag {event.tag.partition(',2002:')[2]} could run code"
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, {} if isinstance(event, yaml.MappingStartEvent) else None, [1]))
            wrong = f"more than {MOST_LEVELS} levels" if len(opened) > MOST_LEVELS else ""
        elif isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
            anchor, _, parts = opened.pop() if isinstance(event, yaml.CollectionEndEvent) else (event.anchor, None, [1])
            size = sizes.get(anchor, MOST_VALUES + 1) if isinstance(event, yaml.AliasEvent) else sum(parts)
            sizes[anchor] = size
            _, lines, parts = opened[-1] if opened else (None, None, [])
            if isinstance(event, yaml.ScalarEvent) and lines is not None and len(parts) % 2:
                first = lines.setdefault(event.value, event.start_mark)
                if first is not event.start_mark:
                    wrong = f"{event.value} is given twice, first in line {first.line + 1}"
            parts.append(size)
            wrong = wrong or "its aliases stand for too many values" * (size > MOST_VALUES)
        if wrong:
            raise yaml.MarkedYAMLError(problem=wrong, problem_mark=event.start_mark)


# ---- configs


def read_config(path: str | os.PathLike, *, children: Sequence[str] = (), read: list | None = None) -> Iterator[Entry]:
    """The entries of a config YAML, after those of its ``_BASE_``: one file or a list, relative to the file.

    UserError for addresses, and for what is no config. ``children``: the files that lead here; ``read``: all so far.
    """
    remedy = f"correct _BASE_ of {children[-1]}" if children else "name a config, such as configs/Detic_CLIM_C4.yaml"
    if "://" in str(path):
        raise UserError(f"{path} is an address, and a config is read from files alone: download it, then {remedy}.")
    path, read = Path(path).expanduser(), [] if read is None else read
    here = os.path.abspath(path)  # links need no look: MOST_FILES ends their circles
    if here in children or len(read) >= MOST_FILES:
        raise UserError(f"_BASE_ of {children[-1]} leads back to {path}, or to too many files: {remedy}.")
    read.append(path)
    content = read_yaml(path, remedy=remedy)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds {_KINDS.get(type(content), 'one value')}, not sections of keys: {remedy}.")
    bases = content.pop("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"_BASE_ of {path} is {shown(bases)}: give the path of a config, or a list of paths.")
    for base in bases:
        above = base if "://" in base else path.parent / Path(base).expanduser()
        yield from read_config(above, children=(*children, here), read=read)
    yield from entries(content, source=str(path))


def entries(tree: Mapping, *, source: str, prefix: str = "") -> Iterator[Entry]:
    """The entries of sections in sections. UserError for a key that is no text."""
    for key, value in tree.items():
        if not isinstance(key, str):
            raise UserError(f"{source} has the key {shown(key)}{f' in {prefix[:-1]}' * bool(prefix)}: keys are texts.")
        if isinstance(value, dict) and value:
            yield from entries(value, source=source, prefix=f"{prefix}{key}.")
        else:
            yield prefix + key, value, source


def override_entries(overrides: Sequence) -> Iterator[Entry]:
    """The entries of KEY, VALUE, …. UserError for a key without a value."""
    if len(overrides) % 2:
        raise UserError(f"The override {shown(overrides[-1])} has no value: write KEY VALUE pairs, as SEED 0.")
    return ((str(key), value, "") for key, value in zip(overrides[::2], overrides[1::2], strict=True))


def merge(cfg, new: Iterable[Entry]) -> dict[str, str]:
    """Write entries into ``cfg``, in place. Returns {key: file that said so last}.

    Texts for other values are literals of Python, as in YACS: "(1, 2)". A whole number is a number too. UserError for
    an unknown key, and for a value of another type than the one that it replaces.
    """
    sources = {}
    for key, value, source in new:
        *sections, name = key.split(".")
        node = cfg
        for section in sections:
            node = node.get(section) if isinstance(node, Mapping) else None
        where = f" ({source})" if source else ""
        if not isinstance(node, Mapping) or name not in node:
            if new_name := cfg.__dict__[cfg.RENAMED_KEYS].get(key):
                raise UserError(f"{key} was renamed to {new_name}{where}: change the key.")
            hint = near(key, (known for known, *_ in entries(cfg, source="")))
            raise UserError(f"{shown(key)[1:-1]} is no key of the config{where}{hint or ': see clim/config.py.'}")
        old = node[name]
        if isinstance(old, Mapping):
            if value != {}:
                raise UserError(f"{key} is {shown(value)}{where}: it is a section, so give its keys, as {key}.KEY.")
            continue
        node[name] = value = _like(value, old)
        if old is not None and type(value) is not type(old):
            kind = _TYPES.get(type(old), _TYPES[list])
            raise UserError(f"{key} is {shown(value)}{where}: it must be {kind}{', in quotes' * (type(old) is str)}.")
        sources[key] = source
    return sources


def _like(value, old):
    """``value`` in the type of ``old``, where it can be."""
    if isinstance(value, str):
        try:
            literal = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            literal = value
        if not isinstance(old, str) or type(literal) not in (int, float):  # a folder may be named 2024
            value = literal
    if isinstance(old, str) and value is None:
        return ""
    if isinstance(old, list | tuple) and isinstance(value, list | tuple):
        return type(old)(value)
    return float(value) if isinstance(old, float) and type(value) is int and abs(value) < 2**53 else value
