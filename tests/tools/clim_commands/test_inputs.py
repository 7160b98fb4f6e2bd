"""Images, names and numbers of a command line."""

import argparse

import pytest

from clim.errors import UserError
from clim_commands.inputs import count, find_images, read_names


def test_images_of_files_folders_and_globs(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", "sub/c.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    found = find_images([str(tmp_path), str(tmp_path / "**/*.jpg"), str(tmp_path / "missing.jpg")])
    assert [str(p.relative_to(tmp_path)) for p in found] == ["a.PNG", "b.jpg", "sub/c.jpg", "missing.jpg"]
    with pytest.raises(UserError, match="no image there"):
        find_images([str(tmp_path / "*.gif")])


def test_names_and_numbers(tmp_path):
    assert read_names(" dog, fire hydrant,,dog ,", option="--names") == ["dog", "fire hydrant"]
    file = tmp_path / "names.txt"
    file.write_text("dog\n\nknife, fork\n")
    assert read_names(str(file), option="--names") == ["dog", "knife, fork"]
    for wrong in (" , ", str(tmp_path / "none.txt")):
        with pytest.raises(UserError, match=f"--names '?{wrong}"):
            read_names(wrong, option="--names")
    assert count("3") == 3
    for text in ("0", "-1", "1.5", "many", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="not a whole number above 0"):
            count(text)
