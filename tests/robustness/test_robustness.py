"""The corpus of damaged inputs: every case is told in a sentence, or handled and right (runner.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("tests", ".", "projects/CLIM", "tools", "datasets")


def verdicts(folder, *words):
    """The rows of a run of the runner, in a process that has not trained, so that it may fork; and what it printed."""
    rows = folder / "rows.json"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in PARTS),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "robustness.runner", "--json", str(rows), "--world", str(folder / "twin"), *words]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert rows.is_file(), ran.stderr[-3000:]
    print(ran.stdout)
    return json.loads(rows.read_text()), ran.stdout


def bad(rows):
    return [f"{r['verdict']}: {r['kind']}: {r['entry']}: {r['name']}: {r['saw']}" for r in rows if "saw" in r]


def test_sample(tmp_path):
    rows, _ = verdicts(tmp_path, "--sample", "40")
    assert len(rows) == 40 and not bad(rows)


@pytest.mark.slow
def test_whole_corpus(tmp_path):
    rows, _ = verdicts(tmp_path)
    assert len(rows) >= 400 and not bad(rows)


def test_runner_sees_what_is_bad(tmp_path):
    """A case of each bad kind, which the runner must name."""
    rows, _ = verdicts(tmp_path, "--self-test")
    assert {row["name"]: row["verdict"] for row in rows} == {
        name: name
        for name in ("told", "handled", "code", "lost", "hang", "traceback", "wrong", "vague", "refused", "silent")
    }
