"""The import graph has no circles, no room imports a higher one or tools/, and nothing is imported before its use."""

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


# Each takes from half a second to seconds.
OF_SOME_TASKS = {
    "av", "gradio", "matplotlib", "open_clip", "pandas", "scipy", "skimage", "supervision", "tensorboard", "timm",
    "transformers",
}  # fmt: skip
OF_WORK = OF_SOME_TASKS | {"detectron2", "torch", "torchvision"}
HELPS = """
import contextlib, io, runpy, sys
from pathlib import Path
from clim_commands.main import COMMANDS, main

scripts = [file for file in map(Path, sys.argv[1:]) if "__main__" in file.read_text()]
helps = [(str(file), lambda file=file: runpy.run_path(str(file), run_name="__main__")) for file in scripts]
helps += [(f"clim {name}", lambda name=name: main([*name.split(), "--help"])) for name in ["", *COMMANDS]]
for name, run in helps:
    sys.argv = [name, "--help"]
    sys.path[:0] = [str(Path(name).parent)]  # as Python does for a script
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            run()
        except SystemExit as end:
            assert end.code == 0, name
    del sys.path[0]
    assert said.getvalue().startswith("usage: "), name
    print(name, *sys.modules)
"""
FIRST_WORK = """
import sys
from detectron2.config import get_cfg
from clim.config import add_clim_config
add_clim_config(get_cfg())  # all that a program with Detectron2's own trainer imports of clim
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, ROI_HEADS_REGISTRY
methods = sys.modules['clim.methods'].METHOD_REGISTRY
registries = META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, BACKBONE_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, methods
print(*(name for registry in registries for name, kind in registry if kind.__module__.startswith("clim.")))
import clim.engine
from clim import Detector
print(*sys.modules)
"""


def lines_of(code: str, *arguments) -> list[list[str]]:
    """The words of each line that a new process prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line.split(" ") for line in done.stdout.splitlines()]


def test_help_imports_neither_torch_nor_what_takes_as_long():
    files = [ROOT / "train_net.py", *ROOT.glob("tools/*.py"), *ROOT.glob("datasets/*.py")]
    loaded = {words[0]: OF_WORK & set(words) for words in lines_of(HELPS, *files)}
    assert len(loaded) > 15 and not {name: found for name, found in loaded.items() if found}


def test_detector_and_trainer_import_what_they_use_alone_and_registries_are_full():
    registered, loaded = lines_of(FIRST_WORK)
    assert not OF_SOME_TASKS & set(loaded) and "torch" in loaded
    assert {"OpenVocabRCNN", "FVLM", "CenterNet", "Detic", "VLDet", "Baron", "ClipContrast"} <= set(registered)


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
