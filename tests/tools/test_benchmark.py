"""The stopwatch adds up, arms take turns, and every section of tools/benchmark.py measures what it names.

No figure of time is tested, only what was called and counted.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import benchmark as tool
from benchmarks import (
    coco_evaluation,
    inputs,
    lvis_evaluation,
    mosaics,
    networks,
    reading,
    sections,
    shards,
    shortlist,
    sides,
    startup,
    steps,
    stopwatch,
    summary,
)  # fmt: skip
from benchmarks.stopwatch import Run, Spread, Stages
from clim.errors import UserError

ROOT = Path(__file__).parents[2]
MINI = str(ROOT / "configs/mini/detic_clim.yaml")


def here(function, *args):
    """In place of ``fresh``: the call in this process."""
    return function(*args)


@pytest.fixture(scope="module")
def records(make_photos):
    sizes = [(60, 80), (80, 60), (64, 64), (48, 96), (90, 70)]
    return inputs.records_of([Path(r["file_name"]) for r in make_photos(sizes, ext="jpg")])


@pytest.fixture
def settings(tmp_path):
    return inputs.Settings(
        repeats=2, canvases=3, threads=1, device="cpu", config_file=MINI, scale=0.25, folder=str(tmp_path),
        overrides=(), evaluated=(3, 5), pairs=(),
    )  # fmt: skip


@pytest.fixture
def tower(monkeypatch, hash_tower):
    """The text tower of all sections: embeddings come from a hash of the text."""
    tower = hash_tower(384)
    for module in ("clim.text.build", "benchmarks.steps"):
        monkeypatch.setattr(f"{module}.build_text_tower", lambda **_: tower)
    return tower


def test_a_moment_counts_for_the_innermost_stage():
    now = [0.0]

    def spend(seconds):
        now[0] += seconds

    stages = Stages(lambda: now[0])
    inner = stages.timed("inner", spend)
    spend(1)
    with stages.stage("outer"):
        spend(2)
        inner(4)
        with stages.stage("outer"):
            spend(8)
    spend(16)
    assert stages.take() == {"rest": 17, "outer": 10, "inner": 4}
    with pytest.raises(ZeroDivisionError), stages.stage("fails"):
        spend(1 / 0)
    spend(2)
    assert stages.take() == {"fails": 0, "rest": 2}
    waits = []
    spend(5)
    run = stopwatch.measure(lambda: inner(3), stages=stages, synchronise=lambda: waits.append(now[0]))
    assert run.stages == {"inner": 3, "rest": 0}  # what came before is left out
    assert waits == [now[0] - 3, now[0]]  # the device is waited for on both sides


def test_arms_take_turns_and_runs_become_figures():
    calls = []

    def arm(name):
        return lambda: calls.append(name) or Run(len(calls), 0.0, {})

    runs = stopwatch.interleaved({"a": arm("a"), "b": arm("b")}, repeats=2, title="test")
    assert calls == ["a", "b"] * 3
    assert {name: [r.wall for r in taken] for name, taken in runs.items()} == {"a": [3, 5], "b": [4, 6]}
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == (2.5, 1.0, 10.0)
    # The machine is three times slower in the second round: the ratio does not notice.
    assert stopwatch.paired_ratio([2.0, 6.0], [1.0, 3.0]) == (2.0, 2.0, 2.0)
    assert str(Spread(0.12345, 1.0, 123456.0)) == "0.123 (1–123,456)"
    assert stopwatch.compared({"a": lambda: 1}, repeats=2, title="test", clock="wall")[1] == {"a": 1}
    runs = [Run(0, 0, {"a": 1.0, "rest": 3.0}), Run(0, 0, {"rest": 2.0}), Run(0, 0, {"a": 2.0, "rest": 2.0})]
    assert stopwatch.shares(runs, ("a", "rest")) == {"a %": 25, "rest %": 75}


def test_a_fresh_process_does_not_inherit_the_peak():
    block = np.ones(60 * 2**17)  # 60 MiB
    here = stopwatch.peak_resident_bytes()
    assert here > block.nbytes
    assert stopwatch.fresh(stopwatch.peak_resident_bytes) < here / 2


def test_each_way_decodes_what_its_name_says(settings, records, monkeypatch):
    asked, real = [], mosaics.read_image

    def read(file_name, *, at_least=None, **options):
        asked.append(at_least)
        return real(file_name, at_least=at_least, **options)

    monkeypatch.setattr(mosaics, "read_image", read)
    counts = {}
    for name, arm in mosaics.mosaic_arms(settings, records, 2).items():
        arm()
        asked.clear()
        run = arm()
        counts[name] = len(asked)
        assert set(run.stages) == {"decode", "resize", "rest"}, name
        assert (None in asked) == (
            name not in ("CLIM, decoded afresh", "CLIM, shrunk copies", "CLIM, tiles in memory")
        ), name
    tiles = 4 * settings.canvases
    assert counts == {
        "CLIM, decoded afresh": tiles,
        "CLIM, shrunk copies": tiles,
        "CLIM, full-size decode": tiles,
        "CLIM, tiles in memory": 0,
        "released order, decoded afresh": tiles,
        "released order, partners in memory": settings.canvases,
    }
    assert mosaics.mappers.read_image is real  # measuring leaves the mapper as it was
    rows = mosaics.measure_mosaics(settings, records)
    assert [r["grid"] for r in rows[::6]] == ["2 x 2", "3 x 3", "4 x 4", "2, 3, 4"]
    assert all(row["ratio"] == (1, 1, 1) for row in rows[::6])


@pytest.mark.parametrize("n", [2, 3, 4])
def test_released_order_lays_every_tile_in_its_cell(tmp_path, n):
    """Images of one colour: after both resizes each cell holds its own colour and grey, nothing else."""
    paths = [tmp_path / f"{i}.png" for i in range(n * n)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), np.full((60, 80, 3), 10 * i + 5, np.uint8))
    make = mosaics.ReleasedOrder([{"file_name": str(path)} for path in paths], n=n)
    canvas = make(index=0, epoch=0).numpy()
    first = make.boxes[0].int().tolist()
    assert (canvas[:, first[1] : first[3], first[0] : first[2]] == 5).mean() > 0.98  # the box of image 0
    assert canvas.shape == (3, 800, 800)
    side, colours = 800 // n, set()
    for cell in (canvas[:, y * side : (y + 1) * side, x * side : (x + 1) * side] for y in range(n) for x in range(n)):
        colour, count = np.unique(cell[cell != 114], return_counts=True)
        colours.add(int(colour[count.argmax()]))
        assert count.max() / cell.size == pytest.approx(0.75, abs=0.03)  # 4:3 in a square
    assert colours <= {10 * i + 5 for i in range(n * n)} and canvas[0, side // 2, side // 2] == 5


def test_step_config_scales_sides_and_takes_overrides(settings):
    full = steps.step_config(replace(settings, scale=1.0), (2, 4, 0))
    assert full.INPUT.MIN_SIZE_TRAIN == (256,) and full.MODEL.ANCHOR_GENERATOR.SIZES == [[24, 40, 64, 104]]
    cfg = steps.step_config(replace(settings, overrides=("MODEL.TEXT.DIM", "8")), (2, 20, 0))
    assert cfg.INPUT.MIN_SIZE_TRAIN == (64,) and cfg.INPUT.MAX_SIZE_TRAIN == 64
    assert (cfg.INPUT.CAPTION.SHORT_SIDE, cfg.INPUT.MOSAIC.SIZE) == (32, 64)
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[6, 10, 16, 26]]
    assert cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION == 2 and cfg.MODEL.TEXT.DIM == 8
    assert cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE == full.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    loader = cfg.DATALOADER
    assert (loader.DETECTION_PER_GPU, loader.CAPTIONS_PER_GPU, loader.MOSAICS_PER_GPU) == (2, 20, 0)


def test_measure_steps_sees_every_part(settings, records, tower, monkeypatch):
    batches, real = [], steps.Trainer.run_step

    def run_step(trainer):
        batch = next(trainer.loader)
        batches.append(tuple(len(batch[source]) for source in ("detection", "captions", "mosaics")))
        trainer.loader = iter([batch])
        real(trainer)

    monkeypatch.setattr(steps.Trainer, "run_step", run_step)
    monkeypatch.setitem(steps.STEPS, "stacked 2+20", (1, 3, 0))
    monkeypatch.setitem(steps.STEPS, "stacked 2+32", (1, 5, 0))
    monkeypatch.setattr(steps, "fresh", here)
    backward, clip = torch.Tensor.backward, torch.nn.utils.clip_grad_norm_
    steps.prefill_captions(settings, records)
    tower.asked.clear()
    rows = steps.measure_steps(settings, records)
    expected = steps.STEPS | steps.SINGLE
    assert batches == list(expected.values()) * (settings.repeats + 1)
    assert tower.asked == []  # the warm cache answers
    for row in rows:
        parts = {part: row[f"{part} %"] for part in steps.PARTS}
        assert min(parts.values()) > 0 or row["step"] == "2 box images", parts  # which have no texts
        assert sum(parts.values()) == pytest.approx(100, abs=5)  # each a median over runs
        assert parts["rest"] < 25
    assert [row["step"] for row in rows] == list(expected) and rows[0]["ratio"] == (1, 1, 1)
    assert torch.Tensor.backward is backward and torch.nn.utils.clip_grad_norm_ is clip


def test_measure_text(settings, records, tower):
    rows = steps.measure_text(settings, records)
    assert [(r["tower"], r["way"]) for r in rows] == [(t, w) for t in steps.TOWERS for w in ("live", "cached")]
    # One prefill of 25 captions for each tower's folder; then only the live arms ask.
    live = [asked for asked in tower.asked if len(asked) == steps.CAPTIONS_A_STEP]
    assert steps.CAPTIONS_A_STEP == 21
    assert len(live) == len(steps.TOWERS) * (settings.repeats + 1) * settings.canvases
    assert len(tower.asked) - len(live) == len(steps.TOWERS)


def test_measure_shards(settings, records, tmp_path, monkeypatch):
    """Both arms decode the same images; small images have 1 kB; nothing is left in the scratch folder."""
    decoded, real = {"tar": [], "file": []}, shards.read_image

    def read(file_name, **options):
        image = real(file_name, **options)
        decoded["tar" if file_name.startswith("tar://") else "file"].append(image.image.tobytes())
        return image

    monkeypatch.setattr(shards, "read_image", read)
    monkeypatch.setattr(shards, "A_SHARD", 4)
    monkeypatch.setattr(
        shards, "memory_of_a_worker", lambda _: dict.fromkeys(("index", "open", "anonymous", "mapped"), 1e6)
    )
    monkeypatch.setattr(shards, "fresh", here)
    rows = shards.measure_shards(replace(settings, pairs=(10,)), records)
    assert [(row["images"], row["pairs"]) for row in rows] == [("photos", "5"), ("1 kB", "10")]
    assert len(decoded["tar"]) == (2 * 5 + 2 * 10) * (settings.repeats + 1) and decoded["tar"] == decoded["file"]
    assert all(700 < len(image) < 1400 for image, _ in shards.small_pairs(3)) and not list(tmp_path.iterdir())


def test_memory_of_a_worker_counts_the_index_and_its_samples(tmp_path):
    names = shards.write_shards(tmp_path / "s", shards.small_pairs(30), 30)
    shards.build_index(tmp_path / "s", names, tmp_path / "s" / "index")
    found = shards.memory_of_a_worker(tmp_path / "s")
    assert found["index"] > 30 * 60 and found["open"] > 0 and found["anonymous"] < 30e6


def test_lvis_evaluators_see_the_same_world(settings, monkeypatch):
    monkeypatch.setattr(lvis_evaluation, "fresh", here)
    rows = lvis_evaluation.measure_lvis(settings, [])
    expected = [(3, task, name) for task in ("bbox", "segm") for name in ("lvis", "CLIM")]
    expected += [(5, task, "CLIM") for task in ("bbox", "segm")]
    assert [(r["images"], r["task"], r["evaluator"]) for r in rows] == expected
    for other, ours in (rows[:2], rows[2:4]):
        assert ours["AP"] == pytest.approx(other["AP"], abs=1e-9) and 5 < ours["AP"] < 95
        assert other["times as fast"] == (1, 1, 1) and ours["CPU s"].low > 0
    detections = np.load(Path(settings.folder) / "lvis_5/detections.npy", allow_pickle=True)
    assert np.bincount(detections["image_id"]).tolist() == [300] * 5 and len(np.unique(detections["category_id"])) > 300


def test_shortlist_and_evaluation_compare_results(settings, monkeypatch):
    for name, value in {"NAMES": (5, 7), "MOST_NAMES": 5, "ROIS": 20}.items():
        monkeypatch.setattr(shortlist, name, value)
    rows = shortlist.measure_shortlist(settings, [])
    assert [(row["names"], row["search"]) for row in rows] == [("5", "CLIM"), ("5", "Detectron2"), ("7", "CLIM")]
    assert rows[0]["found"] == rows[1]["found"] > 5 and rows[0]["times as slow"] == (1, 1, 1)
    rows = coco_evaluation.measure_evaluation(settings, [])
    expected = [
        ("3", "CLIM"),
        ("3", "pycocotools"),
        ("3", "faster-coco-eval"),
        ("5", "CLIM"),
        ("5", "faster-coco-eval"),
    ]
    assert [(row["images"], row["evaluator"]) for row in rows] == expected and 5 < rows[0]["AP"] < 95
    monkeypatch.setattr(shortlist, "fast_rcnn_inference", lambda *_: shortlist.detect_best(*_[:5], 3))
    with pytest.raises(UserError, match="find different detections of 5 names"):
        shortlist.measure_shortlist(settings, [])
    monkeypatch.setitem(coco_evaluation.EVALUATORS, "pycocotools", lambda *_: 0.0)
    with pytest.raises(UserError, match="find different AP"):
        coco_evaluation.measure_evaluation(settings, [])


def test_networks_do_the_same_work(settings, records, tower, monkeypatch):
    (row,) = networks.measure_detection(settings, records)
    parts = {name: share for name, share in row.items() if name.endswith("%")}
    assert len(parts) == 7 and min(parts.values()) > 0 and sum(parts.values()) == pytest.approx(100, abs=5)
    assert (row["image"], row["names"]) == ("64 x 85 px", 80)
    monkeypatch.setattr(networks, "fresh", here)
    small = replace(settings, scale=1 / 16, repeats=1)
    rows = networks.measure_dense(small, records)
    ways = ["open_clip", "CLIM"] * 2 + ["CLIM, checkpointing"]
    assert [row["way"] for row in rows] == ways and {row["image"] for row in rows} == {"64 x 64 px"}
    monkeypatch.setattr(networks, "plain_features", lambda encoder, images: -encoder.features(images)["dense"])
    with pytest.raises(UserError, match="CLIM differ from open_clip's"):
        networks.measure_dense(small, records)


def test_records_are_the_same_ones_however_opened(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CAPTIONS", (30,))
    monkeypatch.setattr(reading, "READ", 100)
    monkeypatch.setattr(reading, "fresh", here)
    rows = reading.measure_records(settings, [])
    assert [row["way"] for row in rows] == list(reading.OPENED) and all(r["µs a record"].low > 0 for r in rows)
    ours, plain, serialised = (
        [dict(r) for r in opened(tmp_path / "captions.json")] for opened in reading.OPENED.values()
    )
    assert serialised == plain and len(plain) == 30 and len({r["captions"][0] for r in plain}) == 30
    folder = f"{tmp_path}/"
    assert ours == [r | {"file_name": folder + r["file_name"]} for r in plain]


def test_decode_startup_and_sides(settings, records, tower, monkeypatch):
    rows = reading.measure_decode(settings, records)
    assert [row["decoder"] for row in rows] == ["Detectron2 (PIL)", "CLIM", "OpenCV"]
    assert rows[1]["pixels that differ %"] == 0 and rows[0]["ratio"] == (1, 1, 1)
    monkeypatch.setattr(startup, "save_model", lambda *_: "model.pth")
    monkeypatch.setattr(startup, "fresh", here)
    monkeypatch.setattr(startup, "WORKS", {"idle": "", "busy": "assert MODEL == 'model.pth'; sum(range(20_000_000))"})
    idle, busy = startup.measure_startup(settings, records)
    assert idle["cpu s"].high < busy["cpu s"].low
    monkeypatch.setattr(sides, "SIDES", (40, 80))
    monkeypatch.setattr(sides, "SCALES", (0.25, 0.5))
    monkeypatch.setattr(sides, "fresh", here)
    rows = sides.measure_sides(settings, records)
    assert [(row["work"], row["px"]) for row in rows] == [("mosaic", 40), ("mosaic", 80), ("step", 64), ("step", 128)]


def test_summary_and_plot_of_written_results(tmp_path, capsys):
    """The last file with a section counts; ratios are above 1 where ours is better; text around tables stays."""

    def written(name, load, **results):
        path = tmp_path / name
        path.write_text(json.dumps({"machine": {"Python": "3", "load": load}, "results": results}))
        return str(path)

    def spread(value):
        return {"median": value, "low": value, "high": value}

    searches = [
        {"names": names, "search": search, "cpu s": spread(s)}
        for names, search, s in (("400", "CLIM", 0.5), ("400", "Detectron2", 2.0), ("20,000", "CLIM", 4.0))
    ]
    rate = {"decoder": "OpenCV", "images / s": spread(30.0)}
    decoders = [rate, rate | {"decoder": "CLIM", "images / s": spread(40.0)}]
    one = written("1.json", "0.1", shortlist=[], decode=[*decoders, rate | {"decoder": "Detectron2 (PIL)"}])
    two = written("2.json", "0.2", shortlist=searches)
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- table: All sections -->\nold\n<!-- end: All sections -->\nAfter\n")
    tool.main(["--read", one, two, "--markdown", str(page), "--plot", str(tmp_path / "a.png")])
    facts, results = summary.read_results([Path(one), Path(two)])
    assert (
        facts == {"Python": "3", "load": "0.1 (shortlist, decode); 0.2 (shortlist)"} and list(results)[0] == "shortlist"
    )
    rows = {row["work"]: row for row in summary.summary(results)}
    assert list(rows) == ["candidates + NMS, 400 names", "candidates + NMS, 20,000 names", "JPEG files"]
    assert rows["candidates + NMS, 400 names"]["times better"] == "4" and rows["JPEG files"]["times better"] == "1.33"
    assert rows["JPEG files"]["limit"] == "30, OpenCV" and rows["candidates + NMS, 20,000 names"]["anchor"] == ""
    text = page.read_text()
    assert text.startswith("Before\n") and "\nAfter\n" in text and "old" not in text and "| 20,000 " in text
    panel, *others = summary.curves(results).axes
    assert panel.get_xlabel() == "names" and [line.get_label() for line in panel.containers] == ["CLIM", "Detectron2"]
    assert not others and cv2.imread(str(tmp_path / "a.png")).shape[1] > 500
    with pytest.raises(UserError, match="--plot draws"):
        summary.curves({})


def test_command_line_prints_and_writes(settings, records, tmp_path, monkeypatch, capsys, tower):
    peaks = iter(range(1, 100))
    for module in (sections, steps):
        monkeypatch.setattr(module, "fresh", here)
    assert steps.peak_of_steps(settings, records, (1, 1, 1))["peak"] > 100 * 2**20  # torch alone
    monkeypatch.setattr(steps, "peak_of_steps", lambda *_: {"before": 2**20, "peak": next(peaks) * 2**20})
    folder = str(Path(records[0]["file_name"]).parent)
    tool.main(
        ["--only", "mosaics", "memory", "--images", folder, "--photos", "3", "--repeats", "3", "--canvases", "1"]
        + ["--config-file", MINI, "--json", str(tmp_path / "a/b.json")]
    )
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "a/b.json").read_text())
    assert list(content["results"]) == ["mosaics", "memory"] and content["settings"]["scale"] == 1
    assert content["machine"]["photos"].startswith("3 from ") and content["machine"]["threads"] == "1"
    stacked = content["results"]["memory"][2]
    assert stacked["step"] == "stacked 2+20"
    assert stacked["peak MiB"] == {"median": 7, "low": 3, "high": 11}  # one process of each row in turn
    assert stacked["ratio"]["median"] == pytest.approx(7 / 5)
    assert "| stacked 2+20 | 7 (3–11)" in printed and "released order" in printed
    for wrong in (["--repeats", "0"], ["--scale", "1.5"], ["--only", "speed"]):
        with pytest.raises(SystemExit):
            tool.parse_args(wrong)
        assert wrong[1] in capsys.readouterr().err


def test_photos(tmp_path):
    with pytest.raises(UserError, match="no .jpg or .png"):
        inputs.find_photos(str(tmp_path), count=3)
    paths = inputs.synthetic_photos(tmp_path, count=2)
    assert all(130_000 < path.stat().st_size < 200_000 for path in paths)  # COCO: 162 kB on average
    first, second = (cv2.imread(str(path)) for path in paths)
    assert first.shape == (480, 640, 3) and not np.array_equal(first, second)
    for i in range(10):
        (tmp_path / f"{i:06d}.jpg").write_bytes(b"no image")
    assert [p.stem[-1] for p in inputs.find_photos(str(tmp_path), count=4)] == ["0", "3", "6", "9"]
    with pytest.raises(UserError, match="000000.jpg"):
        inputs.records_of(inputs.find_photos(str(tmp_path), count=3))


@pytest.mark.slow
def test_in_real_processes():
    """The spawned processes find the tool's functions, and a mistake there ends in one line."""
    command = [sys.executable, "tools/benchmark.py", "--photos", "2", "--repeats", "1", "--canvases", "1"]
    done = subprocess.run([*command, "--only", "mosaics"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "| 4 x 4   | CLIM, tiles in memory" in done.stdout
    command += ["--only", "steps", "--config-file", "configs/mini/detic_clim.yaml", "MODEL.TEXT.NAME", "no"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: MODEL.TEXT.NAME 'no'")
