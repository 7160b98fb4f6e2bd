"""Output folders: something in the way, read-only, full; input as output; two runs in one; signals and kills."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from .damage import a_file, a_link, put
from .entries import EVAL, INSPECT, PREDICT, RESUME, TRAIN, train
from .runner import Case, Entry, cases, same

STEPS = ("SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "3")


def mounted(folder: str, *commands: str):
    """``folder`` as a mount, which is undone after the case; "{}" in commands is its path."""

    def damage(world: Path):
        path = world / folder
        path.mkdir(parents=True, exist_ok=True)
        for command in commands:
            subprocess.run(command.format(path), shell=True, check=True)
        return lambda: subprocess.run(["umount", "-l", str(path)], check=True)

    return damage


def read_only(folder: str):
    return mounted(folder, "mount --bind {0} {0}", "mount -o remount,ro,bind {0}")


def can_mount() -> bool:
    """Whether this process may mount, as root of its own machine."""
    attempt = "d=$(mktemp -d) && mount -t tmpfs tmpfs $d && umount $d; rmdir $d"
    return os.geteuid() == 0 and subprocess.run(attempt, shell=True, capture_output=True).returncode == 0


def started(world: Path, *opts: str) -> int:
    """Train in another process: its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(world, *opts)
            status = 0
        except SystemExit as error:
            status = error.code
        except KeyboardInterrupt:
            status = 130
        finally:
            os._exit(status)
    return child


def wait_for(text: str) -> None:
    """Until metrics.json has this text."""
    metrics = Path("out/metrics.json")
    while not (metrics.is_file() and text in metrics.read_text()):
        time.sleep(0.01)


def second(world: Path) -> list:
    """A training in the folder of a training that runs."""
    started(world, "SOLVER.MAX_ITER", "4000")
    wait_for("iteration")
    return train(world)


def stopped(world: Path, number: int = 0, code: int = 0) -> list:
    """Losses of a run that gets a signal after its third step, ends with ``code`` and is resumed."""
    if number:
        child = started(world, *STEPS)
        wait_for('"iteration": 2,')
        os.kill(child, number)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended == code, f"exit code {ended}"
        saved = max(int(path.stem[6:]) for path in Path("out").glob("model_0*.pth"))
        assert code < 0 or saved > 1, f"the last checkpoint is of iteration {saved}"
    train(world, *(["--resume"] if number else []), *STEPS)
    losses = {}
    for line in map(json.loads, Path("out/metrics.json").read_text().splitlines()):
        losses.setdefault(line["iteration"], {}).update({k: v for k, v in line.items() if "loss" in k})
    return sorted(losses.items())


def stale(world: Path) -> None:
    """What a kill leaves: half a file, and a lock that nobody holds."""
    put(world / "out/model_final.pth.partial", b"half")
    put(world / "out/.lock", b"")


IN_THE_WAY = {  # files, then folders
    TRAIN: ("metrics.json model_final.pth log.txt config.yaml last_checkpoint", "rank_states"),
    EVAL: ("evaluation.json", "inference inference/mini_ov_val"),
    PREDICT: ("predictions.json 1.jpg", ""),
}
CASES = []
for run, (files, folders) in IN_THE_WAY.items():
    for name in files.split():
        damage = {f"out/{name} is a folder": lambda world, name=name: (world / "out" / name).mkdir(parents=True)}
        CASES += cases("folders", run, damage, name)
    CASES += [
        Case("folders", f"out/{name} is a file", run, a_file(f"out/{name}"), (name.split("/")[-1],))
        for name in folders.split()
    ]
    CASES += cases(
        "folders", run, {"out is a file": a_file("out"), "out is a link to itself": a_link(".")("out")}, "out"
    )
    changed = run._replace(out=(*run.out, "nowhere"))
    CASES += cases(
        "folders",
        run,
        {"out is a link to nothing": a_link("nowhere/deep")("out")},
        "out|nowhere",
        handled=same,
        changed=changed,
    )
for run, option in ((TRAIN, "OUTPUT_DIR"), (EVAL, "--output"), (PREDICT, "--output"), (INSPECT, "--output")):
    for folder in ("x" * 300, "/proc/nowhere"):
        changed = run._replace(arguments=(option, folder, *run.arguments))
        CASES.append(Case("folders", f"{option} {folder[:20]}", run, told=(folder[:20],), changed=changed))
if can_mount():
    for run in (TRAIN, EVAL, PREDICT, INSPECT.given("--output", "out", name="inspect --output")):
        CASES.append(Case("folders", "out is read-only", run, read_only("out"), ("out", "ead-only")))
        full = {
            f"out of {size}": mounted("out", f"mount -t tmpfs -o size={size} tmpfs {{}}")
            for size in ("4k", "8k", "300k", "4m")
        }
        CASES += cases("disk", run, full, "space", handled=same)
    CASES.append(
        Case("folders", "run is read-only", RESUME, read_only("run"), ("run", "ead-only"), changed=RESUME.given("kept"))
    )
for output, handled in (("own/images", None), ("own/images/deep", same)):
    changed = PREDICT.given("--output", output, out=("own/images/deep",))
    CASES.append(
        Case("lost", f"output is the input: {output}", PREDICT, told=(output,), handled=handled, changed=changed)
    )
CASES.append(
    Case(
        "lost",
        "--save-json is an image",
        PREDICT,
        told=("1.jpg",),
        changed=PREDICT.given("--save-json", "own/images/1.jpg"),
    )
)
CASES.append(Case("lost", "two trainings in one folder", Entry("train twice", second, seconds=60), told=("out",)))
STOP = Entry("train eight steps", stopped, seconds=60, out=TRAIN.out)
for name, code in (("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 143), ("SIGKILL", -9)):
    changed = STOP.given(int(getattr(signal, name)), code)
    CASES.append(Case("signals", f"{name}, then --resume", STOP, told=None, handled=same, changed=changed))
CASES.append(Case("signals", "files of a killed run", TRAIN, stale, None, same))
