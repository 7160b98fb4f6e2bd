"""Logs and a second process for the tests of evaluators."""

import logging
import subprocess
import sys

import pytest


@pytest.fixture(autouse=True)
def logs_reach_caplog(monkeypatch):
    """Undo Detectron2's setup_logger, which ends propagation, if another test called it."""
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
