"""Progress bars and tables."""

import logging
import math

from clim_commands.terminal import evaluation_progress, print_table, track


def test_items_pass_through_and_are_counted(capsys):
    assert list(track(iter("abc"), "letters", total=3)) == ["a", "b", "c"]
    assert "letters" in (shown := capsys.readouterr().err) and "3/3" in shown


def test_detectron2s_log_of_an_evaluation_becomes_a_bar_for_each_set(capsys, caplog):
    logger = logging.getLogger("detectron2.evaluation.evaluator")
    before = (logger.level, list(logger.handlers), logger.propagate)
    with evaluation_progress():
        logger.info("Start inference on 4 batches")
        logger.info("Inference done 3/4. Dataloading: 0.1 s/iter")
        logger.info("Start inference on 7 batches")
        logger.info("Total inference time: 0:00:01")
    shown = capsys.readouterr().err
    assert "set 1" in shown and "3/4" in shown and "set 2" in shown and "7/7" in shown
    assert (logger.level, logger.handlers, logger.propagate) == before and not caplog.records


def test_a_table_has_dashes_for_missing_figures(capsys):
    print_table(["class", "AP", "objects"], [["dog", 12.345, 3], ["a[b]", None, 0], ["owl", math.nan, 7]])
    rows = [line.strip("│").split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells == [["dog", "12.3", "3"], ["a[b]", "–", "0"], ["owl", "–", "7"]]
