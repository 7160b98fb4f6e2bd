"""Commands started as a user starts them: a mistake is one line on stderr and exit code 2, whichever it is."""

import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
MISTAKES = {
    "build_neighbours": (
        ["--dataset", "no_such_pairs", "--by", "text", "--output", "x.npy"],
        "--dataset no_such_pairs is not registered",
    ),
    "build_text_embeddings": (
        ["classes", "--dataset", "cocoa", "--output", "x.npy"],
        "--dataset cocoa is neither a known list of classes",
    ),
    "convert_checkpoint": (["x.pth", "--output", "y.pth"], "x.pth is not a file"),
    "make_mini": (["--train", "-1"], "the mini benchmark takes a seed and sizes of at least 0"),
    "parse_nouns": (["--captions", "no_such_set", "--output", "x.json"], "--captions"),
}


@pytest.mark.parametrize("tool", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(tool, monkeypatch, tmp_path, capsys):
    arguments, told = MISTAKES[tool]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{tool}.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TOOLS / f"{tool}.py"), run_name="__main__")
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {told}")
