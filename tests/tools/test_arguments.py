"""Images and names as command lines give them."""

import argparse
import logging

import pytest
import torch

from arguments import add_device, count, find_images, quiet_logging, read_names
from clim.errors import UserError


def test_images_of_files_folders_and_globs(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", "sub/c.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    found = find_images([str(tmp_path), str(tmp_path / "**/*.jpg"), str(tmp_path / "missing.jpg")])
    assert [str(p.relative_to(tmp_path)) for p in found] == ["a.PNG", "b.jpg", "sub/c.jpg", "missing.jpg"]
    with pytest.raises(UserError, match="no image there"):
        find_images([str(tmp_path / "*.gif")])


def test_names_of_a_text_or_a_file(tmp_path):
    assert read_names(" dog, fire hydrant,,dog ,", option="--names") == ["dog", "fire hydrant"]
    file = tmp_path / "names.txt"
    file.write_text("dog\n\nknife, fork\n")
    assert read_names(str(file), option="--names") == ["dog", "knife, fork"]
    with pytest.raises(UserError, match="--names ' , ' holds no name"):
        read_names(" , ", option="--names")
    with pytest.raises(UserError, match="--names .*cannot be read"):
        read_names(str(tmp_path / "none.txt"), option="--names")


def test_numbers_above_0():
    assert count("3") == 3
    for text in ("0", "-1", "1.5", "many", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="not a whole number above 0"):
            count(text)


def test_a_quiet_log_leaves_out_what_torch_says_of_itself(monkeypatch):
    monkeypatch.setattr(logging.getLogger("torch.fx"), "level", logging.NOTSET)
    quiet_logging()
    assert logging.getLogger("torch.fx").getEffectiveLevel() == logging.ERROR


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
