"""Files are the old ones or the whole new ones; what is beside them; json and its mistakes."""

import multiprocessing
import os
import signal
from typing import Annotated

import msgspec
import pytest

from clim.errors import UserError
from clim.files import decode_json, nan_to_none, read_json, remove, replacing, write_json

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
    for before, after in ((None, "old"), ("old", "new")):
        with replacing(path, shared=shared) as partial:
            assert partial.parent == path.parent  # a rename moves nothing between disks
            partial.write_text(after)
            assert path.read_text() == before if before else not path.exists()
        assert path.read_text() == after and names(path.parent) == ["a.txt"]


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
    path = tmp_path / "a.txt"
    path.write_text("old")
    killed_while_writing(path)
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt", "a.txt.partial"]
    with replacing(path) as partial:
        assert not partial.exists()
        partial.write_text("new")
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]
    with replacing(path, shared=True) as partial:  # another process at the same time
        partial.write_text("mine")
        killed = killed_while_writing(path, shared=True)
    assert path.read_text() == "mine" and names(tmp_path) == ["a.txt", f"a.txt.{killed}.partial"]


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
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("link", "dangling", "folder/file", "nothing"):
        remove(tmp_path / name)
    assert names(tmp_path) == ["folder", "there"] and names(tmp_path / "there") == ["kept"]
    remove(tmp_path / "there")
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("shared", [False, True])
def test_json_appears_whole(tmp_path, shared):
    folder = tmp_path / "new"
    write_json(folder / "x.json", {"a": [1]}, shared=shared)
    with pytest.raises(TypeError):
        write_json(folder / "x.json", {"a": object()}, shared=shared)
    assert read_json(folder / "x.json", remedy="") == {"a": [1]} and names(folder) == ["x.json"]


def test_json_that_is_missing_or_broken(tmp_path):
    (tmp_path / "broken.json").write_text('{"images": [')
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for path in ("none.json", "broken.json/below.json", "broken.json", "binary.json"):
        with pytest.raises(UserError, match=f"{path} .*: make tea$"):
            read_json(tmp_path / path, remedy="make tea")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    irregular = "is a folder, a pipe or a device"
    for path, said in (("pipe.json", irregular), ("folder.json", irregular), ("a\0", "cannot be read")):
        with pytest.raises(UserError, match=f"{path} {said}.*: make tea$"):
            read_json(tmp_path / path, remedy="make tea")
    (tmp_path / "whole.json").write_text('{"é": 1}', "utf-8")
    assert read_json(str(tmp_path / "whole.json"), remedy="") == {"é": 1}
    row = {"AP": float("nan"), "AR": 1.5, "class": "nan", "n": 0}
    assert nan_to_none(row) == {"AP": None, "AR": 1.5, "class": "nan", "n": 0}
    assert row["AP"] != row["AP"]  # a copy


class Part(msgspec.Struct):
    id: int = 0
    size: Annotated[tuple[int, int], msgspec.Meta(description="[height, width]")] = (0, 0)
    name: str | None = None

    def __post_init__(self):
        if self.name == "odd":
            raise ValueError("has an odd name")


class Whole(msgspec.Struct):
    parts: list[Part]


@pytest.mark.parametrize(
    "content, said",
    [
        ("[]", "F is []: it must be an object"),
        ("{}", "F has no parts, so it is a file of another kind"),
        ('{"parts": null}', "parts of F is null: it must be a list"),
        (
            '{"parts": [{"id": 7, "size": [1, "x"]}]}',
            'parts[0].size of F (id 7) is [1, "x"]: it must be [height, width]',
        ),
        (
            '{"parts": [{"size": [NaN, 1], "id": 7}]}',
            "parts[0].size of F (id 7) is [NaN, 1]: it must be [height, width]",
        ),
        ('{"parts": [{"id": 7}, {"id": 8, "name": "odd"}]}', "parts[1] of F (id 8) has an odd name"),
        ('{"parts": [{"id": 7, "name": 5}]}', "parts[0].name of F (id 7) is 5: it must be a text or null"),
        ('{"parts": [' + "9" * 99 + "]}", "parts[0] of F is " + "9" * 60 + "…: it must be an object"),
    ],
)
def test_what_does_not_fit_is_told_with_place_id_and_value(content, said):
    with pytest.raises(UserError) as error:
        decode_json(content.encode(), source="F", remedy="make tea", kind=Whole)
    assert str(error.value) == f"{said}: make tea"
