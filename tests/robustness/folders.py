"""Output folders: something in the way, read-only, full; input as output; two runs in one; signals and kills."""

import os
import signal
import subprocess
import time
from pathlib import Path

from .damage import a_file, a_link, put
from .entries import EVAL, INSPECT, PREDICT, RESUME, TRAIN, train
from .runner import Case, Entry, same

STEPS = ("SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "3")


def mounted(folder: str, *options: str):
    """``folder`` as a mount, which is undone after the case."""

    def damage(world: Path):
        (world / folder).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", *options, str(world / folder)], check=True)
        return lambda: subprocess.run(["umount", "-l", str(world / folder)], check=True)

    return damage


def read_only(folder: str):
    def damage(world: Path):
        path = world / folder
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", str(path), str(path)], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", str(path)], check=True)
        return lambda: subprocess.run(["umount", "-l", str(path)], check=True)

    return damage


def can_mount() -> bool:
    """Whether this process may mount, as root of its own machine."""
    return os.geteuid() == 0 and subprocess.run(
        "d=$(mktemp -d) && mount -t tmpfs -o size=4k tmpfs $d && umount $d; rmdir $d", shell=True, capture_output=True
    ).returncode == 0  # fmt: skip


def second(world: Path) -> list:
    """A training in the folder of a training that runs."""
    child = os.fork()
    if child == 0:
        try:
            train(world, "SOLVER.MAX_ITER", "4000")
        finally:
            os._exit(0)
    while not Path("out/metrics.json").is_file():
        time.sleep(0.05)
    return train(world)


def stopped(world: Path, number: int = 0, code: int = 0) -> list:
    """Losses of a run that gets a signal after its third step, ends with ``code`` and is resumed."""
    for resumed in (False, True) if number else (False,):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                train(world, *(("--resume",) if resumed else ()), *STEPS)
                status = 0
            except SystemExit as error:
                status = error.code
            except KeyboardInterrupt:
                status = 130
            finally:
                os._exit(status)
        metrics = Path("out/metrics.json")
        while number and not resumed and not (metrics.is_file() and '"iteration": 2,' in metrics.read_text()):
            time.sleep(0.01)
            assert os.waitpid(child, os.WNOHANG)[0] == 0, "it ended before the signal"
        if number and not resumed:
            os.kill(child, number)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended == (0 if resumed else code), f"exit code {ended}"
        if not resumed and number in (signal.SIGTERM, signal.SIGINT):
            assert list(Path("out").glob("model_000000*.pth")), "nothing was saved"
    import json

    lines = map(json.loads, metrics.read_text().splitlines())
    losses = {}
    for line in lines:
        losses.setdefault(line["iteration"], {}).update({k: v for k, v in line.items() if "loss" in k})
    return sorted(losses.items())


IN_THE_WAY = {
    TRAIN: ("out", "out/metrics.json", "out/model_final.pth", "out/rank_states", "out/log.txt", "out/config.yaml", "out/last_checkpoint"),
    EVAL: ("out", "out/inference", "out/evaluation.json", "out/inference/mini_ov_val"),
    PREDICT: ("out", "out/predictions.json", "out/1.jpg"),
}  # fmt: skip
CASES = []
for run, places in IN_THE_WAY.items():
    for place in places:
        base = place.rpartition("/")[2]
        folder = place in ("out", "out/inference", "out/rank_states", "out/inference/mini_ov_val")
        damage = a_file(place) if folder else lambda world, place=place: (world / place).mkdir(parents=True)
        what = "a file" if folder else "a folder"
        CASES.append(Case("folders", f"{place} is {what}", run, damage, (base,)))
    CASES.append(Case("folders", "out is a link to itself", run, a_link("out", "out"), ("out",)))
    CASES.append(
        Case(
            "folders",
            "out is a link to nothing",
            run,
            a_link("out", "nowhere/deep"),
            ("out|nowhere",),
            same,
            changed=run._replace(out=(*run.out, "nowhere")),
        )
    )
LONG = "x" * 300
for run, option in ((TRAIN, "OUTPUT_DIR"), (EVAL, "--output"), (PREDICT, "--output"), (INSPECT, "--output")):
    changed = run._replace(arguments=(option, LONG, *run.arguments))
    CASES.append(Case("folders", "a name that is too long", run, lambda world: None, ("xxx",), changed=changed))
    changed = run._replace(arguments=(option, "/proc/nowhere", *run.arguments))
    CASES.append(Case("folders", "below /proc", run, lambda world: None, ("/proc",), changed=changed))
if can_mount():
    for run in (
        TRAIN,
        EVAL,
        PREDICT,
        INSPECT._replace(arguments=("own/coco.yaml", "--output", "out"), name="inspect --output"),
    ):
        CASES.append(Case("folders", "out is read-only", run, read_only("out"), ("out", "read-only|Read-only")))
        for size in ("4k", "8k", "300k", "4m"):
            full = mounted("out", "-t", "tmpfs", "-o", f"size={size}", "tmpfs")
            CASES.append(Case("disk", f"out of {size}", run, full, ("space",), same))
    keep = RESUME._replace(arguments=("kept",))
    CASES.append(
        Case("folders", "run is read-only", RESUME, read_only("run"), ("run", "read-only|Read-only"), changed=keep)
    )
for output in ("own/images", "own/images/deep"):
    changed = PREDICT._replace(arguments=("--output", output), out=("own/images/deep",))
    handled = same if "deep" in output else None
    CASES.append(
        Case("lost", f"output is the input: {output}", PREDICT, lambda world: None, (output,), handled, changed=changed)
    )
jpegs = PREDICT._replace(arguments=("--save-json", "own/images/1.jpg"))
CASES.append(Case("lost", "--save-json is an image", PREDICT, lambda world: None, ("1.jpg",), changed=jpegs))
CASES.append(
    Case("lost", "two trainings in one folder", Entry("train twice", second, seconds=60), lambda world: None, ("out",))
)
STOP = Entry("train eight steps", stopped, seconds=60, out=TRAIN.out)
for name, code in (("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 143), ("SIGKILL", -9)):
    changed = STOP._replace(arguments=(int(getattr(signal, name)), code), name=f"stopped by {name}")
    CASES.append(Case("signals", f"{name}, then --resume", STOP, lambda world: None, None, same, changed=changed))


def stale(world: Path) -> None:
    """What a kill leaves: half a file, and a lock that nobody holds."""
    put(world / "out/model_final.pth.partial", b"half")
    put(world / "out/.lock", b"")


CASES.append(Case("signals", "files of a killed run", TRAIN, stale, None, same))
