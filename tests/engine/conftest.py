"""Command lines and random numbers, as several parts of the engine meet them."""

import random

import numpy as np
import pytest
import torch
from detectron2.engine import default_argument_parser


@pytest.fixture(scope="session")
def arguments():
    """``arguments("--num-gpus", "2")``: what train_net.py makes of a command line."""
    return lambda *argv: default_argument_parser().parse_args(list(argv))


@pytest.fixture(scope="session")
def drawn():
    """``drawn()``: the next random numbers of Python, NumPy (two kinds) and torch."""
    return lambda: (random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist())
