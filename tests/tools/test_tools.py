"""Commands started as a user starts them: a mistake is one line on stderr and exit code 2."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

import arguments
from clim.errors import UserError
from clim.modeling.vocabulary import NAMED_LISTS
from clim.text import CLASS_FEATURES, PROMPTS
from clim_commands.classes import NAMED_CLASSES

TOOLS = Path(__file__).resolve().parents[2] / "tools"
MISTAKES = {
    "build_neighbours": (["--dataset", "no_such_set", "--by", "text", "--output", "x.npy"], "--dataset no_such_set"),
    "build_text_embeddings": (["classes", "--dataset", "cocoa", "--output", "x.npy"], "datasets/cocoa not found: --da"),
    "convert_checkpoint": (["x.pth", "--output", "y.pth"], "x.pth is not a file"),
    "index_pairs": (["shards", "--shards", "nowhere", "--output", "x"], "--shards nowhere: no file there"),
    "make_mini": (["--train", "-1"], "argument --train: '-1' is not a whole number from 0"),
    "parse_nouns": (["--captions", "no_such_set", "--output", "x.json"], "datasets/no_such_set not found: --captions"),
}


@pytest.mark.parametrize("tool", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(tool, monkeypatch, tmp_path, capsys):
    words, message = MISTAKES[tool]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{tool}.py", *words])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TOOLS / f"{tool}.py"), run_name="__main__")
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_choices_are_the_librarys(monkeypatch):
    import build_text_embeddings

    assert arguments.CLASS_LISTS == (*NAMED_CLASSES, "mini") and arguments.PROMPTS == tuple(sorted(PROMPTS))
    assert NAMED_LISTS.items() <= {names: name for name, names in NAMED_CLASSES.items()}.items()
    assert build_text_embeddings.FEATURES == tuple(sorted(CLASS_FEATURES))
    assert [len(arguments.known_classes(name)) for name in arguments.CLASS_LISTS] == [80, 65, 133, 1203, 59, 65]
    assert arguments.known_classes("objects365") is None
    for available in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda now=available: now)
        assert arguments.usable_device("cpu") == "cpu"
        assert arguments.usable_device(None) == ("cuda" if available else "cpu")
        for name in ("gpu",) if available else ("gpu", "cuda:0"):
            with pytest.raises(UserError, match=f"--device '{name}' is not a device"):
                arguments.usable_device(name)
    assert arguments.usable_device("cuda:0") == "cuda:0"
