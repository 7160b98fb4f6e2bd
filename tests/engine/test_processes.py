"""Processes that cannot be started, and the cores that they share."""

import argparse
import socket

import pytest
import torch

from clim.engine import processes
from clim.engine.processes import check_processes
from clim.errors import UserError


def test_processes_that_cannot_be_started(monkeypatch, arguments):
    check_processes(arguments())
    check_processes(arguments("--num-gpus", "2", "--dist-url", "auto"))
    with pytest.raises(UserError, match="ranks go from 0 to 1"):
        check_processes(arguments("--num-machines", "2", "--machine-rank", "2"))
    with pytest.raises(UserError, match="auto is for one machine"):
        check_processes(arguments("--num-machines", "2", "--dist-url", "auto"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="--num-gpus 2, but this machine has 1"):
        check_processes(arguments("--num-gpus", "2"))


@pytest.mark.parametrize("asked, expected", [(None, "3"), ("1", "1")])
def test_processes_share_the_cores_unless_told_otherwise(monkeypatch, asked, expected, arguments):
    monkeypatch.setattr(processes.os, "environ", {} if asked is None else {"OMP_NUM_THREADS": asked})
    monkeypatch.setattr(processes.os, "cpu_count", lambda: 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    seen = []
    monkeypatch.setattr(processes, "detectron2_launch", lambda *_, **__: seen.append(dict(processes.os.environ)))
    processes.launch(print, arguments("--num-gpus", "2"))
    assert seen == [{"OMP_NUM_THREADS": expected}]


def test_a_port_that_is_taken(arguments):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UserError, match="is taken .*--dist-url auto"):
            check_processes(arguments("--num-gpus", "2", "--dist-url", url))
        check_processes(arguments("--num-machines", "2", "--machine-rank", "1", "--dist-url", url))
        check_processes(argparse.Namespace(**vars(arguments("--dist-url", url))))  # one process needs no port
    check_processes(arguments("--num-gpus", "2", "--dist-url", url))
