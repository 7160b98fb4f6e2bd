"""Create ``.venv`` with everything CLIM needs. Run by ``make setup``; a second run brings it up to date.

Usage: python3.11 tools/set_up.py [--isolated] [--extras]

If the interpreter imports torch and detectron2, ``.venv`` uses all its packages and adds only missing ones. It also
keeps a Detectron2 that was built inside it. Otherwise it gets the pinned requirements and the Detectron2 wheel. This
script needs the standard library only.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

TRIED = ("3.11", "3.12", "3.13")
ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements.txt"
EXTRAS = ROOT / "requirements-extras.txt"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "setup.json"  # of a finished set-up
COMPILED_AGAINST = ("torch", "torchvision", "numpy")  # never changed under a Detectron2 that stays
QUIET = [] if sys.stdout.isatty() else ["--quiet"]  # pip's progress bars are for people
OFFLINE_SIGNS = ("connection", "timed out", "name resolution", "unreachable", "proxy")

# {distribution: [version, whether it is inside the environment]}; the first on the path is the one imported.
INSPECT = """
import importlib.metadata, json, os, re, sys
found, prefix = {}, os.path.realpath(sys.prefix) + os.sep
for distribution in importlib.metadata.distributions():
    name = re.sub("[-_.]+", "-", distribution.metadata["Name"] or "").lower()
    inside = os.path.realpath(str(distribution.locate_file(""))).startswith(prefix)
    found.setdefault(name, [distribution.version, inside])
print(json.dumps(found))
"""

SUMMARY = """
import platform, cv2, detectron2, torch, torchvision, clim
try:
    from detectron2 import _C
    kind = "compiled operators"
except ImportError:
    kind = "pure Python"
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"Python {platform.python_version()}, torch {torch.__version__} ({device}), "
      f"detectron2 {detectron2.__version__} ({kind}), OpenCV {cv2.__version__}")
"""


class SetupError(Exception):
    """One sentence for the user."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isolated", action="store_true", help="do not share the interpreter's packages")
    parser.add_argument("--extras", action="store_true", help="export, web page, tracks, event writers")
    options = parser.parse_args()
    check_version()

    seconds = {}
    with step("virtual environment", seconds):
        make_environment(isolated=options.isolated)
        there = json.loads(succeed([PYTHON, "-c", INSPECT]))
        ours = "detectron2" not in there and there.get("sal-detectron2", ["", False])[1]
        keep = not ours and works([PYTHON, "-c", "import torch, detectron2"])
    with step("packages", seconds):
        if keep:
            print("torch and detectron2 are there already: they stay, and what is missing is added.")
            add_missing(there)
        else:
            install(*QUIET, "-r", REQUIREMENTS)
        mend_opencv()
    if options.extras:
        with step("extras", seconds):
            install(*QUIET, "-r", EXTRAS)
    if not keep:
        with step("Detectron2", seconds):
            unpack_detectron2()
    with step("clim", seconds):
        install("--quiet", "--no-deps", "--no-build-isolation", "--editable", ROOT)
    with step("check", seconds):
        print(succeed([PYTHON, "-c", SUMMARY]), end="")
    STAMP.write_text(json.dumps({"seconds": seconds, "kept_detectron2": keep}, indent=2) + "\n")
    print(f"set-up: {sum(seconds.values()):.1f} s")


def check_version():
    """Raise SetupError for a Python without tests of the pinned packages."""
    if "{}.{}".format(*sys.version_info) not in TRIED:
        raise SetupError(
            f"{sys.executable} is Python {sys.version.split()[0]}, CLIM runs on Python {', '.join(TRIED)}: "
            "name one of these with `make setup PYTHON=/path/to/python3.11`."
        )


@contextmanager
def step(name, seconds):
    """Print a step and its time, and note the time."""
    print(f"{name} …", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)
    print(f"{name}: {seconds[name]} s", flush=True)


def make_environment(*, isolated):
    """Make ``.venv`` if no working one exists. It sees the caller's packages if a Detectron2 is among them."""
    if works([PYTHON, "-c", "import pip"]):
        return
    if VENV.exists() and not STAMP.exists():
        raise SetupError(f"{VENV} has no pip, and no set-up has ended there: move it away, or call `make clean`.")
    share = not isolated and works([sys.executable, "-c", "import torch, detectron2"])
    command = [sys.executable, "-m", "venv", "--clear", VENV] + ["--system-site-packages"] * share
    if not works(command):
        raise SetupError(
            f"`{' '.join(map(str, command))}` failed; where Python's venv is a package of its own, as on "
            "Debian and Ubuntu, `apt install python{}.{}-venv` brings it.".format(*sys.version_info)
        )
    if share and sys.prefix != sys.base_prefix:
        # venv shares the packages of the base interpreter. If the caller is a virtual environment, its folders must be
        # named. addsitedir also follows links to source builds.
        folders = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        lines = [f"import site; site.addsitedir({folder!r})\n" for folder in folders]
        (site_packages() / "parent-environment.pth").write_text("".join(lines))


def add_missing(there):
    """Install the pins that the caller's packages lack. torch and NumPy stay."""
    kept = {name for name, (_, inside) in there.items() if not inside or name in COMPILED_AGAINST}
    kept -= {"setuptools", "ruff"}  # clim needs these versions
    if any(name.startswith("opencv") for name in kept):
        kept.add("opencv-python")  # all its builds are the same module
    pins = re.findall(r"^([\w.-]+)(==\S+)", REQUIREMENTS.read_text(), re.MULTILINE)
    missing = [name + pin for name, pin in pins if name.replace("_", "-") not in kept]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "kept.txt"
        constraints.write_text("".join(f"{n}=={there[n][0]}\n" for n in COMPILED_AGAINST if n in there))
        hint = (
            "if what it needs does not go with the torch or NumPy that are kept, `make clean` and "
            "`make setup SETUP_OPTIONS=--isolated` give CLIM an environment of its own."
        )
        install(*QUIET, "-c", constraints, *missing, hint=hint)


def mend_opencv():
    """Replace OpenCV by the headless build of the same version if libGL is missing."""
    if works([PYTHON, "-c", "import cv2"]):
        return
    pin = re.search(r"^opencv-python(==\S+)", REQUIREMENTS.read_text(), re.MULTILINE)[1]
    print("opencv-python does not import here, as without libGL: opencv-python-headless takes its place.")
    works([PYTHON, "-m", "pip", "uninstall", "--yes", "opencv-python"])
    install("--quiet", "--no-deps", "--force-reinstall", f"opencv-python-headless{pin}")


def unpack_detectron2():
    """Unpack the Detectron2 wheel. Its tag says Python 3.10, but its Python files run on later versions."""
    platform = ["--python-version", "3.10", "--implementation", "cp", "--only-binary=:all:"]
    wheel = ["--require-hashes", "-r", ROOT / "requirements-detectron2.txt"]
    install("--quiet", "--upgrade", "--no-deps", "--target", site_packages(), *platform, *wheel)


def site_packages():
    """The package folder of ``.venv``."""
    return Path(succeed([PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())


def install(*arguments, hint="pip's last lines above say why."):
    """``pip install`` in the environment. A failure becomes one sentence."""
    # No conflict warnings: the Detectron2 wheel asks for NumPy < 2, which its Python files do not need.
    command = [PYTHON, "-m", "pip", "install", "--no-warn-conflicts", *map(str, arguments)]
    if subprocess.run(command).returncode == 0:
        return
    if offline():
        raise SetupError(
            "no package registry answers; the first set-up needs the network, or a mirror set in pip's "
            "configuration. Call `make setup` again then."
        )
    raise SetupError(f"`pip install` failed: {hint}")


def offline():
    """Whether the download of one small package fails for lack of a connection."""
    with tempfile.TemporaryDirectory() as folder:
        command = [PYTHON, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--retries", "1"]
        probe = subprocess.run([*command, "-d", folder, "tabulate"], capture_output=True, text=True)
    return probe.returncode != 0 and any(sign in probe.stderr.lower() for sign in OFFLINE_SIGNS)


def works(command):
    """Whether a command exists and succeeds."""
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def succeed(command):
    """The standard output of a command. Raises SetupError if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SetupError("the environment is damaged (see above): call `make clean`, then `make setup`.")
    return done.stdout


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)  # .venv has to do without it
    os.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    try:
        main()
    except SetupError as error:
        sys.exit(f"error: {error}")
