"""What docs/parity.md names exists: functions and classes of the library and of tools/, config keys, presets."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from detectron2.config import get_cfg

import clim
from clim.config import add_clim_config

ROOT = Path(__file__).parents[1]
PARITY = (ROOT / "docs/parity.md").read_text(encoding="utf-8")
QUOTED = sorted(set(re.findall(r"`([^`\n]+)`", PARITY)))
CELLS = [cell.strip() for line in PARITY.splitlines() if line.startswith("|") for cell in line.split("|")]

ROOMS = "|".join(["clim", *(path.stem for path in (ROOT / "tools").iterdir() if path.stem.isidentifier())])
NAMES = sorted({name for text in QUOTED for name in re.findall(rf"(?<![\w/])(?:{ROOMS})(?:\.\w+)+", text)})
MEMBERS = [name for name in QUOTED if re.fullmatch(r"[A-Z]\w*[a-z]\w*\.\w+", name)]
PRESETS = [name for name in QUOTED if re.fullmatch(r"\w+_(?:C4|COCO|OVCOCO|CC3M|pretrain)(?:_[\w-]+)?", name)]
KEYS = sorted(
    {key for text in QUOTED for key in re.findall(r"(?<![\w.\"])[A-Z][A-Z0-9_]+(?:\.[A-Z][A-Z0-9_]+)*(?![\w.])", text)}
    - set(PRESETS)
)  # fmt: skip
# Cells such as "`clim.methods.tile_assignment.assign_to_tiles`, `clip_to_tiles`": more of the same module or class.
LISTS = [names for cell in CELLS if len(names := re.findall(r"`([\w.]+)`(?:, |$)", cell)) > 1
         and cell == ", ".join(f"`{name}`" for name in names) and names[0].startswith("clim.")]  # fmt: skip


def parts_of(dotted: str) -> list:
    """The innermost module of ``dotted``, then what it has of the further names, each inside the one before."""
    names = dotted.split(".")
    for split in range(len(names), 0, -1):
        try:
            found = [importlib.import_module(".".join(names[:split]))]
        except ModuleNotFoundError:
            continue
        for name in names[split:]:
            assert has(found[-1], name), f"{dotted}: no {name} in {found[-1]}"
            found.append(getattr(found[-1], name, None))
        return found
    raise AssertionError(dotted)


def has(owner, name: str) -> bool:
    """Whether ``owner`` has ``name``, or its objects, from their constructor on."""
    made = inspect.isclass(owner) and re.search(rf"self\.{name}\b.* = ", inspect.getsource(owner))
    return hasattr(owner, name) or bool(made)


def test_there_is_something_to_check():
    assert len(NAMES) > 40 and len(MEMBERS) > 5 and len(PRESETS) > 10 and len(KEYS) > 20 and len(LISTS) > 2


@pytest.mark.parametrize("name", NAMES)
def test_names_import_from_where_they_are_defined(name):
    module, *inside = parts_of(name)
    if inside and hasattr(inside[0], "__module__") and not hasattr(module, "__path__"):
        assert inside[0].__module__ == module.__name__


@pytest.mark.parametrize("names", LISTS, ids=" ".join)
def test_short_names_belong_to_the_module_or_class_before_them(names):
    *owners, _ = parts_of(names[0])
    assert all(name in MEMBERS or any(has(owner, name) for owner in owners) for name in names[1:])


@pytest.mark.parametrize("name", MEMBERS)
def test_members_of_classes(name):
    owner, member = name.split(".")
    modules = [importlib.import_module(m.name) for m in pkgutil.walk_packages(clim.__path__, "clim.")]
    found = {getattr(module, owner) for module in modules if inspect.isclass(getattr(module, owner, None))}
    assert found and all(has(one, member) for one in found)


def test_config_keys():
    """Whole, or the end of a key where the section is clear from what stands around it."""
    cfg = get_cfg()
    add_clim_config(cfg)

    def under(node, prefix=""):
        for key, value in node.items():
            yield prefix + key
            if hasattr(value, "items"):
                yield from under(value, f"{prefix}{key}.")

    keys = set(under(cfg))
    ends = {key.rpartition(".")[2] for key in keys}
    assert not [key for key in KEYS if key not in keys and key not in ends]


def test_presets_and_tools():
    paths = [f"configs/{name}.yaml" for name in PRESETS] + re.findall(r"\btools/\w+\.py", PARITY)
    assert not [path for path in paths if not (ROOT / path).is_file()]
