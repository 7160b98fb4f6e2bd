"""Two processes that contrast pairs, for what each of them finds."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).parent / "clip_ranks.py"


@pytest.fixture(scope="session")
def clip_ranks():
    """The module clip_ranks.py: its pairs, and its loss on them."""
    spec = importlib.util.spec_from_file_location("clip_ranks", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """What each of its two processes wrote down."""
    folder = tmp_path_factory.mktemp("clip_ranks")
    subprocess.run(
        [sys.executable, str(PROGRAM), str(folder)], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
    )  # fmt: skip
    return [torch.load(folder / f"rank{rank}.pth", weights_only=False) for rank in range(2)]
