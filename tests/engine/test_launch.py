"""Processes that cannot be started, and the cores that they share."""

import os
import socket
import sys

import pytest
import torch

from clim.engine import launch
from clim.engine.launch import check_processes
from clim.errors import UserError


def test_processes_that_cannot_be_started(monkeypatch, arguments):
    check_processes(arguments())
    check_processes(arguments("--num-gpus", "2", "--dist-url", "auto"))
    with pytest.raises(UserError, match="--machine-rank"):
        check_processes(arguments("--num-machines", "2", "--machine-rank", "2"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="--num-gpus 2, but this machine has 1"):
        check_processes(arguments("--num-gpus", "2"))


@pytest.mark.parametrize("asked, expected", [(None, "3"), ("1", "1")])
def test_processes_share_the_cores_unless_a_number_is_set(monkeypatch, asked, expected, arguments):
    monkeypatch.setenv("OMP_NUM_THREADS", asked or "")
    if asked is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    seen = []
    start = lambda *_, **__: seen.append(os.environ["OMP_NUM_THREADS"])  # noqa: E731
    monkeypatch.setattr(sys.modules["clim.engine.launch"], "detectron2_launch", start)
    launch(print, arguments("--num-gpus", "2"))
    assert seen == [expected]


def test_a_port_that_is_taken(arguments):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UserError, match="is taken .*--dist-url auto"):
            check_processes(arguments("--num-gpus", "2", "--dist-url", url))
        check_processes(arguments("--num-machines", "2", "--machine-rank", "1", "--dist-url", url))
        check_processes(arguments("--dist-url", url))  # one process needs no port
    check_processes(arguments("--num-gpus", "2", "--dist-url", url))
