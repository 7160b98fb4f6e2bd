"""The device as command lines give it."""

import argparse

import pytest
import torch

from arguments import add_device


def test_devices(monkeypatch):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_device(parser)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parser.parse_args(["--device", "cpu"]).device == "cpu"
    for text in ("cuda:0", "gpu"):
        with pytest.raises(argparse.ArgumentError, match=f"'{text}' is not a device of this machine"):
            parser.parse_args(["--device", text])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert parser.parse_args(["--device", "cuda:0"]).device == "cuda:0"
