"""What the tests of evaluators share: logs, COCO's own evaluation, a second process."""

import contextlib
import copy
import io
import logging
import subprocess
import sys

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


@pytest.fixture(autouse=True)
def logs_reach_caplog(monkeypatch):
    """Undo what Detectron2's setup_logger does if another test called it: it ends propagation."""
    for name in ("clim", "detectron2"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)


@pytest.fixture(scope="session")
def run_two():
    """``run_two(script, folder)`` runs ``script RANK folder`` as rank 0 and 1; both have to succeed."""

    def run(script, folder):
        workers = [subprocess.Popen([sys.executable, script, str(rank), str(folder)]) for rank in (0, 1)]
        try:
            assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
        finally:
            for worker in workers:
                worker.kill()

    return run


@pytest.fixture(scope="session")
def official():
    """``official(ground_truth, detections)``: precision (T, R, K) and recall (T, K) from pycocotools alone, by its
    documented steps: every area range, maxDets 1, 10, 100.
    """

    def precision_recall(ground_truth, detections):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = copy.deepcopy(ground_truth)
            coco.createIndex()
            evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(detections)), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation.eval["precision"][..., 0, -1], evaluation.eval["recall"][..., 0, -1]

    return precision_recall
