"""The import graph has no circles, no room imports a higher one or tools/, and commands import torch late."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import clim
from clim.config import add_clim_config
from clim.detector import Detector

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "projects/CLIM"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (PACKAGE / "clim").rglob("*.py")
}
# Modules of a level may import those of the same level and below.
LEVELS = [
    {"", "errors", "files", "config", "config_files", "losses", "processes", "sources", "results"},
    {"data", "text", "checkpoints"},
    {"methods", "evaluation"},
    {"modeling", "config_values"},
    {"engine"},
    {"detector"},
]


def imported(module: str, body: list[ast.stmt]) -> set[str]:
    """Dotted names that the statements import when ``module`` is imported; functions import later."""
    names, parts = set(), module.split(".")
    package = parts if MODULES[module].name == "__init__.py" else parts[:-1]
    for statement in body:
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            above = package[: len(package) + 1 - statement.level] if statement.level else []
            owner = ".".join([*above, *filter(None, [statement.module])])
            found = {f"{owner}.{alias.name}" for alias in statement.names}
            names |= {name if name in MODULES else owner for name in found}
        elif isinstance(statement, ast.If | ast.Try | ast.ClassDef):
            names |= imported(module, statement.body)
    return names


GRAPH = {module: imported(module, ast.parse(path.read_text()).body) - {module} for module, path in MODULES.items()}


def level(module: str) -> int:
    room = (module.split(".") + [""])[1]
    (number,) = (i for i, rooms in enumerate(LEVELS) if room in rooms)
    return number


def test_imports_have_no_circles_and_go_down():
    list(graphlib.TopologicalSorter(GRAPH).static_order())  # CycleError names a circle
    inside = [(module, name) for module, names in GRAPH.items() for name in names if name in MODULES]
    assert len(inside) > 100 and not [pair for pair in inside if level(pair[0]) < level(pair[1])]
    recipes = {path.stem for folder in ("tools", "datasets", "tests") for path in (ROOT / folder).iterdir()}
    assert not [module for module, names in GRAPH.items() if recipes & {name.split(".")[0] for name in names}]


@pytest.mark.parametrize("module, folder", [("clim", PACKAGE), ("train_net", ROOT)])
def test_imports_without_torch(module, folder):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=folder).returncode == 0


@pytest.mark.parametrize("name", ["prepare_ovcoco", "prepare_ovlvis", "tags"])
def test_scripts_of_datasets_find_their_modules(name):
    """Python finds what lies beside a script, and packages; not the scripts of tools/."""
    body = ast.parse((ROOT / f"datasets/{name}.py").read_text()).body
    modules = {s.module if isinstance(s, ast.ImportFrom) else s.names[0].name for s in body
               if isinstance(s, ast.Import | ast.ImportFrom)}  # fmt: skip
    assert not modules & {path.stem for path in (ROOT / "tools").glob("*.py")}


def test_names_of_the_package_are_imported_when_they_are_used():
    assert clim.Detector is Detector and clim.add_clim_config is add_clim_config and clim.__version__
    with pytest.raises(AttributeError, match="module 'clim' has no attribute 'Nothing'"):
        clim.Nothing  # noqa: B018
