"""Run cases: python -m robustness.runner [--part WORDS] [--sample N] [--world FOLDER] [--json FILE]

A case damages a copy of the world (world.py), calls an entry point in a forked child and judges what it left. The twin
is the same call on the undamaged world. What a case may do: tell the mistake (one sentence with the expected words,
exit code 2), or handle it (a result that ``handled`` accepts beside the twin's). All else is one of BAD.
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
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

BAD = ("code", "lost", "hang", "traceback", "wrong", "vague", "refused", "silent", "no twin")
MEMORY = 3 << 30  # bytes that a child may take beyond its parent's
LARGE = 1 << 20  # bytes
MARKER = "code_has_run"  # a file of this name in the world: a payload has run


class Entry(NamedTuple):
    """A call: ``function(world, *arguments)`` returns what is compared with the twin's. ``out``: what it may write."""

    name: str
    function: Callable
    arguments: tuple = ()
    seconds: int = 20
    out: tuple[str, ...] = ("out",)

    def given(self, *arguments, **changes) -> "Entry":
        return self._replace(arguments=(*self.arguments, *arguments), **changes)


class Case(NamedTuple):
    """``told`` None: it must be handled; ``handled`` None: it must be told.

    ``told``: words of the sentence, "a|b": one of both. ``said``: the same of what is printed where it is handled.
    ``changed``: the damage is another call.
    """

    kind: str
    name: str
    entry: Entry
    damage: Callable[[Path], object] = lambda world: None
    told: tuple[str, ...] | None = ()
    handled: Callable[[object, object], bool] | None = None
    said: tuple[str, ...] = ()
    changed: Entry | None = None

    @property
    def title(self) -> str:
        return f"{self.kind}: {self.entry.name}: {self.name}"


class Outcome(NamedTuple):
    code: int | None  # None: it did not end
    text: str  # all that it printed
    errors: list[str]
    result: object
    lost: list[str]
    ran: bool
    seconds: float


def cases(kind: str, run: Entry, damages: dict[str, Callable], *told: str, **options) -> list[Case]:
    """A case for each of {name: damage}."""
    return [Case(kind, name, run, damage, told or None, **options) for name, damage in damages.items()]


def same(result, twin) -> bool:
    """The damage does no harm at all."""
    return result == twin


def close(result, twin) -> bool:
    """Equal but for the order of sums."""
    return np.shape(result) == np.shape(twin) and np.allclose(result, twin, atol=1e-4)


def ends(result, twin) -> bool:
    """It goes on to the end; the numbers may differ, as another image stands for the damaged one."""
    return result is not None


def without(*names: str) -> Callable[[dict, dict], bool]:
    """All but the parts ``names`` is as in the twin."""
    return lambda result, twin: (
        result.keys() <= twin.keys()
        and all(result.get(name) == value for name, value in twin.items() if name not in names)
    )


def says(text: str, words: tuple[str, ...]) -> bool:
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
    """Run ``entry`` in a forked child, which is killed after its time with all processes that it has started."""
    sys.stdout.flush()
    before, start, code = listing(world), time.monotonic(), None
    if not (child := os.fork()):
        _child(entry, world, scratch)
    while code is None and time.monotonic() < start + entry.seconds:
        done, status = os.waitpid(child, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if done else None
        time.sleep(0 if done else 0.005)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if code is None:
        os.waitpid(child, 0)
    after, file = listing(world), scratch / "result"
    lost = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    lost = [name for name in lost if not any(f"{name}/".startswith(f"{part}/") for part in entry.out)]
    result = pickle.loads(file.read_bytes()) if file.is_file() else None
    out, err = ((scratch / name).read_text(errors="replace") for name in ("stdout", "stderr"))
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    ran = any(Path(name).name == MARKER for name in after)
    return Outcome(code, out + err, errors, result, lost, ran, time.monotonic() - start)


def _child(entry: Entry, world: Path, scratch: Path) -> None:
    from clim.errors import run_cleanly

    code = 1
    try:
        os.setsid()
        os.chdir(world)
        os.environ["DETECTRON2_DATASETS"] = str(world / "datasets")
        for number, name in enumerate((os.devnull, scratch / "stdout", scratch / "stderr")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
        (scratch / "result").write_bytes(pickle.dumps(run_cleanly(entry.function, world, *entry.arguments)))
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def copied(file: str, place: str) -> None:
    """A copy; large files share their data, because nothing writes into them in place."""
    (os.link if os.path.getsize(file) > LARGE else shutil.copy2)(file, place)


class Runner:
    """Runs cases beside their twins, each of which is run once."""

    def __init__(self, world: Path):
        self.world, self.twin = world, functools.cache(lambda entry: self._run(entry, lambda world: None))

    def _run(self, entry: Entry, damage: Callable[[Path], object]) -> Outcome:
        """In a copy of the world."""
        with tempfile.TemporaryDirectory(dir=self.world.parent, ignore_cleanup_errors=True) as name:
            folder = Path(shutil.copytree(self.world, Path(name, "world"), copy_function=copied, symlinks=True))
            undo = damage(folder)
            try:
                return call(entry, folder, scratch=Path(name))
            finally:
                if callable(undo):
                    undo()

    def verdict(self, case: Case) -> tuple[str, Outcome]:
        """ "told", "handled" or one of BAD."""
        twin = self.twin(case.entry) if case.handled else None
        if twin and (twin.code or twin.lost or twin.result is None):
            return "no twin", twin
        outcome = self._run(case.changed or case.entry, case.damage)
        return judge(case, outcome, twin and twin.result), outcome


def judge(case: Case, outcome: Outcome, twin) -> str:
    if outcome.ran or outcome.lost:
        return "code" if outcome.ran else "lost"
    if outcome.code is None:
        return "hang"
    if outcome.code not in (0, 2) or "Traceback (most recent" in outcome.text:
        return "traceback"
    if outcome.code == 2 and case.told is None:
        return "refused"
    if outcome.code == 2:
        return "told" if len(outcome.errors) == 1 and says(outcome.errors[0], case.told) else "vague"
    if case.handled is None or not case.handled(outcome.result, twin):
        return "wrong"
    return "handled" if says(outcome.text, case.said) else "silent"


def run(chosen: list[Case], world: Path, rows: list[dict]) -> None:
    """Add a row for each case to ``rows``, with what it printed where it is bad."""
    runner = Runner(world)
    for case in chosen:
        verdict, outcome = runner.verdict(case)
        rows.append({"kind": case.kind, "entry": case.entry.name, "name": case.name, "verdict": verdict})
        rows[-1] |= {"seconds": round(outcome.seconds, 2), "told": case.told, "said": case.said}
        if verdict in BAD:
            rows[-1]["saw"] = f"{outcome.errors or outcome.text[-1500:]} {outcome.lost[:5] or ''}"
            print(f"{verdict:9} {case.title}\n          {rows[-1]['saw'][-300:]}", flush=True)


def table(rows: list[dict]) -> str:
    """Counts by kind."""
    kinds = dict.fromkeys(r["kind"] for r in rows)
    counts = {kind: Counter(r["verdict"] for r in rows if r["kind"] == kind) for kind in kinds}
    counts["all"] = Counter(r["verdict"] for r in rows)
    shown = ["told", "handled", *(name for name in BAD if counts["all"][name])]
    lines = [f"{'kind':12} cases  good  " + "  ".join(f"{name:>9}" for name in shown)]
    for kind, of in counts.items():
        good = f"{kind:12} {sum(of.values()):5}  {of['told'] + of['handled']:4}  "
        lines.append(good + "  ".join(f"{of[name] or '':>9}" for name in shown))
    return "\n".join(lines)


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    rows: list[dict] = []
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", default="", help="only cases whose title holds one of these words, parted by |")
    parser.add_argument("--sample", type=int, default=0, help="so many of the quick cases")
    parser.add_argument("--self-test", action="store_true", help="a case of each verdict")
    parser.add_argument("--world", type=Path, help="its folder, made where it is not there")
    parser.add_argument("--json", type=Path, help="write the rows")
    args = parser.parse_args()
    from train_net import quiet_warnings

    quiet_warnings()
    if args.self_test:
        from .selftest import CASES, build
    else:
        from .corpus import CASES, QUICK
        from .world import build

    chosen = QUICK if args.sample else CASES
    chosen = [case for case in chosen if any(word in case.title for word in args.part.split("|"))]
    chosen = random.Random(0).sample(chosen, args.sample) if args.sample else chosen
    with tempfile.TemporaryDirectory() as scratch, suppress(KeyboardInterrupt):
        run(chosen, build(args.world or Path(scratch, "twin")), rows)
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    sys.exit(any(row["verdict"] in BAD for row in rows))


if __name__ == "__main__":
    main()
