"""Files are the old ones or the whole new ones; what is beside them; json and its mistakes."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from clim.errors import UserError
from clim.files import nan_to_none, read_json, read_json_or_none, remove, replacing, write_array, write_json

FORK = multiprocessing.get_context("fork")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def killed_while_writing(path, **options):
    """A process that dies (SIGKILL) in the middle of replacing ``path``; returns its id."""

    def child():
        with replacing(path, **options) as partial:
            partial.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return process.pid


@pytest.mark.parametrize("shared", [False, True])
def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path, shared):
    path = tmp_path / "new" / "folder" / "a.txt"
    with replacing(path, shared=shared) as partial:
        assert partial.parent == path.parent  # a rename moves nothing between disks
        partial.write_text("old")
        assert not path.exists()
    with replacing(path, shared=shared) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, None])
def test_an_error_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error or FileNotFoundError), replacing(path) as partial:  # None: nothing is written
        if error:
            partial.write_text("half")
            raise error
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_the_next_attempt_overwrites_what_a_kill_left(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    killed_while_writing(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "old" and names(tmp_path) == ["a.txt", "a.txt.partial"]
    with replacing(tmp_path / "a.txt") as partial:
        assert not partial.exists()
        partial.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new" and names(tmp_path) == ["a.txt"]


def test_processes_that_share_a_file_do_not_meet(tmp_path):
    with replacing(tmp_path / "a.txt", shared=True) as partial:
        partial.write_text("mine")
        killed = killed_while_writing(tmp_path / "a.txt", shared=True)
    assert (tmp_path / "a.txt").read_text() == "mine"
    assert names(tmp_path) == ["a.txt", f"a.txt.{killed}.partial"]


def test_links_and_folders_take_a_place_too(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "kept").touch()
    (tmp_path / "link.partial").symlink_to(tmp_path / "there")  # left by a kill
    (tmp_path / "folder.partial" / "below").mkdir(parents=True)
    with replacing(tmp_path / "link") as partial:
        partial.symlink_to(tmp_path / "there")
    with replacing(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "file").touch()
    assert names(tmp_path) == ["folder", "link", "there"]
    assert names(tmp_path / "folder") == ["file"] and names(tmp_path / "link") == ["kept"]


def test_remove(tmp_path):
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("link", "dangling", "file", "nothing"):
        remove(tmp_path / name)
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["below"]
    remove(tmp_path / "folder")
    assert names(tmp_path) == []


def test_arrays(tmp_path):
    rows = np.arange(6, dtype=np.float16).reshape(2, 3)
    write_array(tmp_path / "new" / "rows", rows)
    assert names(tmp_path / "new") == ["rows"]
    found = np.load(tmp_path / "new" / "rows")
    assert found.dtype == np.float16 and np.array_equal(found, rows)


@pytest.mark.parametrize("shared", [False, True])
def test_json_appears_whole(tmp_path, shared):
    path = tmp_path / "new" / "x.json"
    write_json(path, {"a": [1]}, shared=shared)
    with pytest.raises(TypeError):
        write_json(path, {"a": object()}, shared=shared)
    assert read_json(path, remedy="") == {"a": [1]} and names(path.parent) == ["x.json"]


def test_nan_becomes_null():
    row = {"AP": float("nan"), "AR": 1.5, "class": "nan", "n": 0}
    assert json.dumps(nan_to_none(row)) == '{"AP": null, "AR": 1.5, "class": "nan", "n": 0}'
    assert row["AP"] != row["AP"]  # a copy


def test_json_that_is_missing_or_broken(tmp_path):
    (tmp_path / "broken.json").write_text('{"images": [')
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for path in ("none.json", "broken.json/below.json", "broken.json", "binary.json"):
        with pytest.raises(UserError, match=f"{path} .*: make tea$"):
            read_json(tmp_path / path, remedy="make tea")
        assert read_json_or_none(tmp_path / path) is None
    assert read_json_or_none(tmp_path) is None
    (tmp_path / "whole.json").write_text('{"é": 1}', "utf-8")
    assert read_json_or_none(str(tmp_path / "whole.json")) == read_json(Path(tmp_path / "whole.json"), remedy="")
