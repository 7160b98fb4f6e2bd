"""``clim eval``: its table has the evaluator's figures."""

import json

import pytest

from clim.detector import Detector
from clim_commands.eval import print_report
from clim_commands.main import main


def cells(text):
    rows = [line.strip("│").split("│") for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row] for row in rows]


def test_a_row_for_each_group_of_each_task(capsys):
    summary = {"segm": {"AP": 30.0, "APr": 20.0, "AP_novel": 21.0, "AP_base": 31.0}, "bbox": {"AP": 40.0, "APr": None}}
    print_report({"dataset": "lvis", "summary": summary, "per_class": []}, per_class=True)
    assert cells(capsys.readouterr().out) == [
        ["segm all", "30.0", "20.0"], ["bbox all", "40.0", "–"], ["segm base", "31.0", "–"], ["segm novel", "21.0", "–"]
    ]  # fmt: skip


def test_a_checkpoint_is_scored_and_shown(tiny_mini, tiny_cfg, tiny_overrides, tmp_path, capsys):
    Detector(tiny_cfg()).freeze(weights := tmp_path / "model.pth")
    command = ["eval", "--weights", str(weights), "--output", str(tmp_path / "out")]
    main([*command, "--per-class", *tiny_overrides])
    report = json.loads((tmp_path / "out/evaluation.json").read_text())
    printed = capsys.readouterr()
    rows = {row[0]: row[1:] for row in cells(printed.out)}
    for group in ("all", "base", "novel"):
        expected = [report[f"{metric}_{group}"] for metric in ("AP50", "AP", "AR")]
        assert rows[group] == ["–" if value is None else f"{value:.1f}" for value in expected]
    assert {"dog", "car"} < set(rows) and rows["dog"][0] == "novel"
    assert "evaluating, set 1" in printed.err
    for noise in ("Warning", "Skip loading", "not found in the checkpoint"):
        assert noise not in printed.err
    assert not list((tmp_path / "out").glob("log*"))  # it is no training
    with pytest.raises(SystemExit) as stopped:
        main([*command, "DATASETS.TEST", "()", *tiny_overrides])
    assert stopped.value.code == 2 and "nothing to evaluate on" in capsys.readouterr().err
