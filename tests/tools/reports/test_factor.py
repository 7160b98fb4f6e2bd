"""The page of when mosaics win: cells of its tables, and that what is measured on a row is measured once."""

import json

import pytest

from experiments.rows import config_of_run, datasets_of
from mini.factor import FACTORS
from reports import factor
from reproduce.factor import ROWS, TABLES, entry

STACKED, SCALED = "21 captions, stacked", "21 captions, scaled down as tiles"


@pytest.fixture
def output(tmp_path):
    """CLIM and the stacked row with two seeds at factor 4, of which CLIM has one at factor 1."""
    for name, value, seed, figure in (
        ("CLIM", 4.0, 0, 30.0), ("CLIM", 4.0, 1, 40.0), (STACKED, 4.0, 0, 29.0), (STACKED, 4.0, 1, 33.0),
        ("CLIM", 1.0, 1, 7.0),
    ):  # fmt: skip
        row = entry(name, value).mini
        row.folder(tmp_path, seed).mkdir(parents=True)
        figures = {"AP50_novel": figure, "AP50_base": 1.0, "AP50_all": 2.0}
        settings = {"config": config_of_run(row, tmp_path, seed), "inputs": {}}
        (row.folder(tmp_path, seed) / "results.json").write_text(
            json.dumps({"settings": settings, "seconds": 1.0, "results": figures})
        )
    return tmp_path


def cells(lines):
    return {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines}


def test_differences_are_those_of_the_same_seed(output):
    found = cells(factor.curve_table(output, [0, 1, 2]))
    assert found["CLIM"] == ["7.0", "not run", "not run", "35.0 ± 7.1 (2)"]
    gains = {name: row for name, row in found.items() if ": " in name}
    assert len(gains) == len(factor.DIFFERENCES)
    # 1 and 7 have mean 4 and deviation √18; t of one degree of freedom is 12.706.
    gain = "+4.0 ± 4.2 (95 %: -34.1 to +42.1)"
    assert found[f"mosaics in place of as many single images: CLIM − {STACKED}"] == ["not run"] * 3 + [gain]
    assert all(one in ROWS and other in ROWS for _, one, other in factor.DIFFERENCES)


def test_a_row_is_measured_once_on_the_data_of_its_seed(output, monkeypatch):
    calls = []

    def measured(result):
        def measure(*arguments):
            calls.append((factor.os.environ["DETECTRON2_DATASETS"], arguments))
            return result

        return measure

    counts = {"tiles": 8, "right": 6, "right alone": 8, "another": 1, "another alone": 0}
    monkeypatch.setattr(factor, "ap50_by_size", measured({"smallest": 1.0, "middle": None, "largest": 9.0}))
    monkeypatch.setattr(factor, "company", measured({"2 x 2": counts}))
    monkeypatch.setattr(factor, "held_out", lambda root, value: ("held out", value))
    for _ in range(2):
        thirds = cells(factor.third_table(output, [0, 1, 2]))
        company = cells(factor.company_table(output, [0, 1, 2]))
    assert thirds["CLIM"] == ["1.0 / – / 9.0", "– / – / –", "– / – / –", "1.0 / – / 9.0"]
    assert company["4, 2 x 2"] == ["16", "75.0", "100.0", "50.0", "–"]
    roots = [str(datasets_of(output, seed)) for seed in (0, 1)]
    assert sorted(root for root, _ in calls) == [roots[0]] * 3 + [roots[1]] * 5
    assert {a[1] for _, a in calls if a[1] != "mini_ov_val"} == {("held out", 1.0), ("held out", 4.0)}


def test_the_figure_and_the_page_need_no_whole_run(output, monkeypatch):
    seconds = dict.fromkeys(ROWS, 0.5) | {"CLIM": 1.0}
    monkeypatch.setattr(factor, "step_seconds", lambda configs, **_: {name: seconds[name] for name in configs})
    monkeypatch.setattr(factor, "ap50_by_size", lambda *_: dict.fromkeys(factor.THIRDS))
    monkeypatch.setattr(factor, "company", lambda *_: {})
    monkeypatch.setattr(factor, "held_out", lambda *_: [])
    monkeypatch.setattr(factor, "read_json", lambda *_, **__: {})
    monkeypatch.setattr(factor, "shown_sides", lambda cfg, pairs, steps: [10.0 * len(cfg.INPUT.CAPTION.SCALES)] * 3)
    monkeypatch.setattr(factor, "sides_at_test", lambda name: [1.0, 2.0, 3.0])
    *_, table = TABLES
    page = output / "page.md"
    page.write_text("Words stay.\n")
    for name, write in table.drawings.items():
        write(output, [0, 1], page if name.endswith(".md") else output / name)
    text = page.read_text()
    assert text.startswith("Words stay.") and text.count("<!-- table: ") == 5
    assert "| CLIM | 1.00 | 2.00 |" in text and "| test scenes | " + " | ".join(["2 (1–3)"] * len(FACTORS)) in text
    assert f"| {SCALED} | " + " | ".join(["320 (320–320)"] * len(FACTORS)) in text
    assert (output / "mosaics_win.png").stat().st_size > 10_000
    assert json.loads((output / "step_seconds.json").read_text()) == seconds
