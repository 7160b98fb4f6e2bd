"""Command lines and random numbers for the tests of the engine."""

import argparse
import random

import numpy as np
import pytest
import torch

from clim.cli import add_train_options


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
