"""Overrides, files, names and numbers of a command line."""

import argparse
import os
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from clim.config import add_clim_config
from clim.errors import UserError
from clim_commands.inputs import (
    KEY,
    Parser,
    add_model_options,
    count,
    model_overrides,
    number,
    output_file,
    output_folder,
    read_names,
    require_other,
)


@pytest.fixture
def parser():
    parser = Parser(prog="x")
    parser.add_argument("--input", nargs="+")
    add_model_options(parser)
    return parser


def leaves(node, prefix=""):
    for key, value in node.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]


def test_every_key_of_the_config_begins_the_overrides_and_files_do_not(parser, tmp_path, monkeypatch):
    cfg = get_cfg()
    add_clim_config(cfg)
    assert [key for key in leaves(cfg) if not KEY.fullmatch(key)] == []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TEST.JPG").touch()
    args = parser.parse_args(["--input", "DSC_01.JPG", "TEST.JPG", "model.pth", "MODEL.DEVICE", "cpu", "SEED", "--1"])
    assert (args.input, args.opts) == (["DSC_01.JPG", "TEST.JPG", "model.pth"], ["MODEL.DEVICE", "cpu", "SEED", "--1"])
    assert parser.parse_args(["--input", "a"]).opts == []


@pytest.mark.parametrize(
    "words, message",
    [
        (["MODEL.DEVICE"], "MODEL.DEVICE has no value"),
        (["--data", "a", "MODE.DEVICE", "cpu"], "MODE.DEVICE is no option here and no config key"),
        (["SEED", "1", "--data", "a"], "--data is no option here and no config key"),
        (["--inputs", "a"], "unknown option: --inputs"),
    ],
)
def test_a_wrong_command_line_is_one_line(parser, words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith(f"error: {message}")


def test_overrides_are_refused_where_a_command_takes_none(capsys):
    with pytest.raises(SystemExit):
        Parser(prog="x").parse_args(["SEED", "1"])
    assert capsys.readouterr().err.startswith("error: SEED: this command takes no KEY VALUE pairs")


def test_files_of_a_model_are_checked_and_stand_for_keys(parser, tmp_path):
    weights, data = tmp_path / "w.pth", tmp_path / "data.yaml"
    weights.touch()
    words = ["--weights", f"{weights}?matching_heuristics=True", "--data", str(data)]
    with pytest.raises(UserError, match=r"--data .*data.yaml does not exist"):
        model_overrides(parser.parse_args(words))
    data.touch()
    read = model_overrides(parser.parse_args([*words, "MODEL.WEIGHTS", "y.pth"]))
    assert read == ["MODEL.WEIGHTS", "y.pth", "DATASETS.DATA", str(data), "MODEL.WEIGHTS", words[1]]
    assert model_overrides(parser.parse_args(["--weights", "https://x.org/y.pth"]))[1] == "https://x.org/y.pth"
    assert model_overrides(parser.parse_args([])) == []


def test_names_and_numbers(tmp_path):
    assert read_names(" dog, fire hydrant,,dog ,", option="--names") == ["dog", "fire hydrant"]
    file = tmp_path / "names.txt"
    file.write_text("dog\n\nknife, fork\n")
    assert read_names(str(file), option="--names") == ["dog", "knife, fork"]
    for wrong in (" , ", str(tmp_path / "none.txt")):
        with pytest.raises(UserError, match=f"--names '?{wrong}"):
            read_names(wrong, option="--names")
    assert count("3") == 3
    for text in ("0", "-1", "1.5", "many", "", "4294967296", "9" * 5000):
        with pytest.raises(argparse.ArgumentTypeError, match="not a whole number from 1 to 4294967295"):
            count(text)


def test_numbers_and_places_are_checked_before_any_work(tmp_path, monkeypatch):
    assert number(-1, 1)("-0.5") == -0.5 and number(0)("64") == 64
    for text in ("nan", "inf", "1.5", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="not a number from 0 to 1"):
            number(0, 1)(text)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    assert output_file("new/file.json") == Path("new/file.json") and output_file("file") == Path("file")
    assert output_folder("new/folder") == Path("new/folder") and output_folder(".") == Path(".")
    for read, text, message in (
        (output_file, "", "empty"), (output_folder, " ", "empty"), (output_file, str(tmp_path), "is a folder"),
        (output_file, "/dev/null", "no regular file"), (output_file, "file/x", "is no folder"),
        (output_folder, "file", "is no folder"), (output_folder, "loop", "is no folder"),
    ):  # fmt: skip
        with pytest.raises(argparse.ArgumentTypeError, match=message):
            read(text)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(argparse.ArgumentTypeError, match="is read-only"):
        output_folder("new")


def test_an_output_is_no_input(tmp_path):
    (tmp_path / "in.json").write_text("")
    os.link(tmp_path / "in.json", tmp_path / "link.json")
    require_other(tmp_path / "new.json", tmp_path / "in.json", None, "")
    with pytest.raises(UserError, match="is .*in.json, which is an input"):
        require_other(tmp_path / "link.json", None, tmp_path / "in.json")
