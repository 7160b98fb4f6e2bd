"""Command lines and random numbers for the tests of the engine."""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from train_net import add_train_options


@pytest.fixture(scope="session")
def arguments():
    """``arguments("--num-gpus", "2")``: the options that ``clim train`` reads from a command line."""
    parser = argparse.ArgumentParser()
    add_train_options(parser)
    return lambda *argv: parser.parse_args(list(argv))


@pytest.fixture(scope="session")
def drawn():
    """``drawn()``: the next random numbers of Python, NumPy (two kinds) and torch."""
    return lambda: (random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist())


@pytest.fixture(scope="session")
def metrics_of():
    """``metrics_of(folder)``: {iteration: entries} of metrics.json.

    ``metrics_of(folder, *parts)``: only the entries with one of ``parts`` in their names, each of which must be unique.
    """

    def read(folder, *parts):
        by_iteration = {}
        for line in (Path(folder) / "metrics.json").read_text().splitlines():
            entry = json.loads(line)
            found = by_iteration.setdefault(entry.pop("iteration"), {})
            entry = {k: v for k, v in entry.items() if not parts or any(part in k for part in parts)}
            assert not parts or not entry.keys() & found.keys(), "a line is there twice"
            found.update(entry)
        return by_iteration

    return read
