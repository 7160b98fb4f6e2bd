"""tools/demo.py: the arguments of the trainings, and (slow) the whole demo at a tiny size."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import demo
from clim.errors import UserError
from experiments.progress import Board

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {"AP50_novel": 1.25, "AP50_base": 2.0, "AP50_all": None}


@pytest.fixture
def trainings(monkeypatch):
    """The calls of run_training, in order: [(name, arguments)]."""
    asked = []

    def one(config, **arguments):
        asked.append((Path(config).stem, arguments))
        return FIGURES | {"seconds": 100.0}

    def together(jobs, *, at_once):
        asked.append(("at once", at_once))
        return {name: one(**arguments) for name, arguments in jobs.items()}

    monkeypatch.setattr(demo, "run_training", one)
    monkeypatch.setattr(demo, "run_together", together)
    return asked


@pytest.mark.parametrize("cores, at_once, threads", [(1, 1, [1, 1, 1]), (2, 2, [2, 1, 1]), (7, 2, [7, 3, 3])])
def test_fine_tuning_starts_from_the_base_stage_and_shares_the_cores(
    tmp_path, monkeypatch, trainings, cores, at_once, threads
):
    monkeypatch.setattr(demo, "cores", lambda: cores)
    results = demo.train(demo.parse(["--output", str(tmp_path), "--seed", "4"]), Board(io.StringIO()))
    assert list(results) == ["base", "detic", "detic_clim"]
    assert trainings.pop(1) == ("at once", at_once)
    assert [name for name, _ in trainings] == ["base_stage", "detic", "detic_clim"]
    assert [arguments["threads"] for _, arguments in trainings] == threads
    weights = str(tmp_path / "base" / "model_final.pth")
    expected = ["SEED", "4"], *[["SEED", "4", "MODEL.WEIGHTS", weights]] * 2
    assert [arguments["overrides"] for _, arguments in trainings] == list(expected)


def test_total_counts_what_runs_side_by_side_once(monkeypatch):
    seconds = {"data": 10, "base": 100, "detic": 50, "detic_clim": 70, "report": 5}
    for cores, total in ((1, 235), (2, 185)):
        monkeypatch.setattr(demo, "cores", lambda cores=cores: cores)
        assert demo.total_seconds(seconds) == total


def test_fresh_removes_only_what_the_demo_makes(tmp_path):
    made = {"base/results.json", "base/model_final.pth", "examples/1.jpg", "results.json", "report.html"}
    mine = {"mine.txt", "notes/mine.txt", "detic/thesis.tex", "examples/photo.jpg"}
    for name in made | mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")

    def found():
        return {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}

    demo.forget(tmp_path)
    assert found() == made | mine  # without its note, the folder is somebody else's
    with pytest.raises(UserError, match="holds files, but no data.json of this command"):
        demo.main(["--output", str(tmp_path)])
    (tmp_path / "data.json").write_text("")
    demo.forget(tmp_path)
    assert found() == mine | {"data.json"}
    demo.forget(tmp_path / "nowhere")


@pytest.mark.slow
def test_the_whole_demo_at_a_tiny_size_and_again(tmp_path):
    output = tmp_path / "demo"
    command = [sys.executable, "tools/demo.py", "--output", str(output)]
    command += ["--iterations", "3", "--sizes", "12", "6", "20"]
    environment = os.environ | {"DETECTRON2_DATASETS": str(tmp_path / "datasets")}

    def call():
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    printed = call()
    results = json.loads((output / "results.json").read_text())
    assert [run["name"] for run in results["runs"]] == ["base", "detic", "detic_clim"]
    assert all(set(run) == {"name", "seed", *demo.FIGURES} for run in results["runs"])
    assert list(results["seconds"]) == ["data", "base", "detic", "detic_clim", "report", "total"]
    page = (output / "report.html").read_text()
    more = page.count("data:image/jpeg") - (3 * 6 + 3)  # images where one model finds what the other misses
    assert 0 <= more <= 3 * 6 and more % 3 == 0 and "<svg" in page and "OpenMoji" in page
    assert len(list((output / "examples").glob("*.jpg"))) == 6
    assert "clim predict" in printed.splitlines()[-1] and str(output / "report.html") in printed.splitlines()[-1]

    models = {path: path.stat().st_mtime_ns for path in output.glob("*/model_final.pth")}
    assert len(models) == 3
    assert call().count("kept") == 3
    assert models == {path: path.stat().st_mtime_ns for path in output.glob("*/model_final.pth")}
    again = json.loads((output / "results.json").read_text())
    assert again["runs"] == results["runs"]
    assert again["seconds"]["base"] == results["seconds"]["base"]
