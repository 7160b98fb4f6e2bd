"""Run cases: python -m robustness.runner [--part WORDS] [--sample N] [--world FOLDER] [--json FILE]

A case damages a copy of the world (world.py), calls an entry point in a forked child and judges what it left: the
process that forks has imported all, so that a case takes as long as its work. The twin is the same call on the
undamaged world. What a case may do: tell the mistake (one sentence with the expected words, exit code 2), or handle it
(a result that ``handled`` accepts beside the twin's). All else has a name: BAD.
"""

import argparse
import functools
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

BAD = ("code", "lost", "hang", "traceback", "wrong", "vague", "refused", "silent", "no twin")
MEMORY = 3 << 30  # bytes that a child may take beyond its parent's
MARKER = "code_has_run"  # a file of this name in the world: a payload has run


class Entry(NamedTuple):
    """A call: ``function(world, *arguments)`` returns what is compared with the twin's. ``out``: what it may write."""

    name: str
    function: Callable
    arguments: tuple = ()
    seconds: int = 20
    out: tuple[str, ...] = ("out",)


class Case(NamedTuple):
    """See the module. ``told`` None: it must be handled; ``handled`` None: it must be told.

    ``told``: words of the sentence, "a|b": one of both. ``said``: the same of what is printed where it is handled.
    """

    kind: str
    name: str
    entry: Entry
    damage: Callable[[Path], object]
    told: tuple[str, ...] | None = ()
    handled: Callable[[object, object], bool] | None = None
    said: tuple[str, ...] = ()
    changed: Entry | None = None  # a call with other arguments, which the damage is

    @property
    def title(self) -> str:
        return f"{self.kind}: {self.entry.name}: {self.name}"


class Outcome(NamedTuple):
    code: int | None  # None: it did not end
    out: str
    err: str
    result: object
    lost: list[str]
    ran: bool
    seconds: float


def same(result, twin) -> bool:
    """The damage does no harm at all."""
    return result == twin


def without(*names: str) -> Callable[[dict, dict], bool]:
    """All but the damaged parts is as in the twin."""
    return lambda result, twin: (
        all(result.get(k) == v for k, v in twin.items() if k not in names) and (result.keys() <= twin.keys())
    )


def close(result, twin) -> bool:
    """Equal but for the order of sums."""
    return np.shape(result) == np.shape(twin) and np.allclose(result, twin, atol=1e-4)


def ends(result, twin) -> bool:
    """It goes on to the end; the numbers may differ, as another image stands for the damaged one."""
    return result is not None


def say(words: tuple[str, ...], text: str) -> bool:
    return all(any(word in text for word in either.split("|")) for either in words)


def listing(folder: Path) -> dict[str, tuple]:
    """{file or folder: what changes when it is written}, links not followed."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            state = os.lstat(path := os.path.join(place, name))
            kept = (state.st_ino, state.st_size, state.st_mtime_ns) if name in files else ()
            found[os.path.relpath(path, folder)] = kept
    return found


def call(entry: Entry, world: Path, *, scratch: Path) -> Outcome:
    """Run ``entry`` in a forked child that is killed after its time, with all processes that it has started."""
    sys.stdout.flush()
    before, start = listing(world), time.monotonic()
    child = os.fork()
    if child == 0:
        _child(entry, world, scratch)
    code, limit = None, start + entry.seconds
    while time.monotonic() < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.005)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if code is None:
        os.waitpid(child, 0)
    after = listing(world)
    ran = any(Path(name).name == MARKER for name in after)
    lost = [
        name for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not any(f"{name}/".startswith(f"{part}/") for part in entry.out)
    ]  # fmt: skip
    file = scratch / "result"
    result = pickle.loads(file.read_bytes()) if file.is_file() else None
    out, err = ((scratch / name).read_text(errors="replace") for name in ("stdout", "stderr"))
    return Outcome(code, out, err, result, lost, ran, time.monotonic() - start)


def _child(entry: Entry, world: Path, scratch: Path) -> None:
    from clim.errors import run_cleanly

    code = 1
    try:
        os.setsid()
        os.chdir(world)
        os.environ["DETECTRON2_DATASETS"] = str(world / "datasets")
        for number, name in ((0, os.devnull), (1, scratch / "stdout"), (2, scratch / "stderr")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
        result = run_cleanly(entry.function, world, *entry.arguments)
        (scratch / "result").write_bytes(pickle.dumps(result))
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def copied(world: Path, folder: Path) -> Path:
    """A copy of the world whose files are links to the same data: damages replace files, they do not write into them."""
    shutil.copytree(world, folder, copy_function=os.link, symlinks=True)
    return folder


class Runner:
    """Runs cases beside their twins, each of which is run once."""

    def __init__(self, world: Path):
        self.world = world
        self.twin = functools.cache(self._twin)

    def _in_copy(self, entry: Entry, damage: Callable[[Path], object]) -> Outcome:
        with tempfile.TemporaryDirectory(dir=self.world.parent, ignore_cleanup_errors=True) as name:
            scratch = Path(name)
            folder = copied(self.world, scratch / "world")
            undo = damage(folder)
            try:
                return call(entry, folder, scratch=scratch)
            finally:
                if callable(undo):
                    undo()

    def _twin(self, entry: Entry):
        """The result; the outcome where the entry fails without any damage."""
        outcome = self._in_copy(entry, lambda folder: None)
        return outcome if outcome.code or outcome.lost or outcome.result is None else outcome.result

    def verdict(self, case: Case) -> tuple[str, Outcome]:
        """ "told", "handled" or one of BAD."""
        twin = self.twin(case.entry) if case.handled else None
        if isinstance(twin, Outcome):
            return "no twin", twin
        outcome = self._in_copy(case.changed or case.entry, case.damage)
        return judge(case, outcome, twin), outcome


def judge(case: Case, outcome: Outcome, twin) -> str:
    lines = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    text = outcome.out + outcome.err
    if outcome.ran or outcome.lost:
        return "code" if outcome.ran else "lost"
    if outcome.code is None:
        return "hang"
    if outcome.code not in (0, 2) or "Traceback (most recent" in text:
        return "traceback"
    if outcome.code == 2:
        if case.told is None:
            return "refused"
        return "told" if len(lines) == 1 and say(case.told, lines[0]) else "vague"
    if case.handled is None or not case.handled(outcome.result, twin):
        return "wrong"
    return "handled" if say(case.said, text) else "silent"


def run(cases: list[Case], world: Path, *, show=print) -> list[dict]:
    """The verdict of each case, with what it printed where it is bad."""
    runner, rows = Runner(world), []
    for number, case in enumerate(cases):
        if number % 50 == 49:
            show(f"… {number + 1} of {len(cases)}")
        verdict, outcome = runner.verdict(case)
        row = {"kind": case.kind, "entry": case.entry.name, "name": case.name, "verdict": verdict}
        row |= {"seconds": round(outcome.seconds, 2), "told": case.told, "said": case.said}
        if verdict in BAD:
            tail = [line for line in outcome.err.strip().splitlines() if line.strip()][-1:]
            error = next((line for line in outcome.err.splitlines() if line.startswith("error:")), "".join(tail))
            row |= {"lost": outcome.lost[:5], "code": outcome.code, "saw": error[:500]}
            trace = (outcome.out + outcome.err).rpartition("Traceback (most recent")
            row |= {"trace": trace[2][-1500:] if trace[1] else ""}
            show(f"{verdict:9} {case.title}\n          {error[:300]} {outcome.lost[:5] or ''}")
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """Counts by kind."""
    counts = {kind: Counter(r["verdict"] for r in rows if r["kind"] == kind) for kind in {r["kind"]: 0 for r in rows}}
    counts["all"] = Counter(r["verdict"] for r in rows)
    shown = ["told", "handled", *(name for name in BAD if counts["all"][name])]
    lines = [f"{'kind':24} cases  good  " + "  ".join(f"{name:>9}" for name in shown)]
    for kind, of in counts.items():
        good, total = of["told"] + of["handled"], sum(of.values())
        lines.append(f"{kind:24} {total:5}  {good:4}  " + "  ".join(f"{of[name] or '':>9}" for name in shown))
    return "\n".join(lines)


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", default="", help="only cases whose title holds one of these words, parted by |")
    parser.add_argument("--sample", type=int, default=0, help="so many of the quick cases")
    parser.add_argument("--self-test", action="store_true", help="a case of each verdict")
    parser.add_argument("--world", type=Path, help="its folder, made where it is not there")
    parser.add_argument("--json", type=Path, help="write the rows")
    args = parser.parse_args()
    from train_net import quiet_warnings

    quiet_warnings()
    from .corpus import CASES, QUICK
    from .selftest import CASES as OF_EACH_KIND
    from .world import build

    cases = OF_EACH_KIND if args.self_test else QUICK if args.sample else CASES
    cases = [case for case in cases if any(word in case.title for word in args.part.split("|"))]
    cases = random.Random(0).sample(cases, args.sample) if args.sample else cases
    with tempfile.TemporaryDirectory() as scratch:
        rows = run(cases, build(args.world or Path(scratch, "twin")), show=functools.partial(print, flush=True))
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    sys.exit(any(row["verdict"] in BAD for row in rows))


if __name__ == "__main__":
    main()
