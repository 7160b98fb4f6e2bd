"""Word lists of texts and files."""

import os

import pytest

from clim.errors import UserError
from clim_commands.words import read_words, with_synonyms

PLAIN = {"bee": [], "sheep": []}


@pytest.mark.parametrize("name, content, expected", [
    ("a.txt", b"bee\n\nsheep\nbee\n", PLAIN),
    ("a.TXT", b"\xef\xbb\xbfbee\r\n sheep \r\n", PLAIN),
    ("a.txt", "bee\r\nsheep".encode("utf-16"), PLAIN),
    ("coco.names", b"bee\nsheep, black\n", {"bee": [], "sheep, black": []}),
    ("a.csv", b"\xef\xbb\xbfbee,3\r\nsheep,2\r\n", PLAIN),
    ("a.csv", b'"bee",sheep\n', PLAIN), ("a.txt", b"bee, sheep\r\n", PLAIN),
    ("a.csv", b"id,Name\n1,bee\n2,\"sheep, black\"\n\n", {"bee": [], "sheep, black": []}),
    ("a.CSV", b"class;count\nbee;1\nsheep;2", PLAIN),
    ("a.json", b"\xef\xbb\xbf[\"bee\", \"sheep\"]", PLAIN),
    ("a.json", b'{"bee": ["wasp", "fly"], "ewe": "ram", "10": []}', {"bee": ["wasp", "fly"], "ewe": ["ram"], "10": []}),
    ("a.json", b'{"categories": [{"id": 7, "name": "sheep"}, {"id": 3, "name": "bee"}], "images": []}', PLAIN),
    ("a.json", b'[{"name": "bee"}, {"name": "sheep"}]', PLAIN),
    ("a.json", b'{"10": "sheep", "9": "bee"}', PLAIN),
    ("a.yaml", b"- bee\n- sheep\n", PLAIN),
    ("a.yml", b"path: x\nnames: {10: sheep, 9: bee}\n", PLAIN),
    ("a.yaml", b"classes: [bee, 10, yes, 007]", {"bee": [], "10": [], "yes": [], "007": []}),
    ("a.json", b"[10, 1.50, \"x\"]", {"10": [], "1.50": [], "x": []}),
    ("a.yaml", b"bee: [wasp]\nsheep:\n", {"bee": ["wasp"], "sheep": []}),
])  # fmt: skip
def test_files(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    found = read_words(str(tmp_path / name), option="--names")
    assert found == expected and list(found) == list(expected)


def test_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dog").write_text("not a word list")
    for text, expected in (
        (" dog, fire hydrant,,dog ,", ["dog", "fire hydrant"]),
        ("dog", ["dog"]),
        ("cafe\u0301", ["caf\u00e9"]),
        ("St. Bernard", ["St. Bernard"]),
        ("a/b,c.txt", ["a/b", "c.txt"]),
        ("black/white", ["black/white"]),
    ):
        assert list(read_words(text, option="--names")) == expected


@pytest.mark.parametrize("name, content, message", [
    ("a.txt", None, "is not there"), ("a.xlsx", None, "is not there"), ("a", None, "is not there"),
    ("a.txt", b"\n \n", "holds no name"), ("a.csv", b"name\n", "holds no name"), ("a.json", b"[]", "holds no name"),
    ("a.npy", b"\x93NUMPY", "cannot be read"), ("a.json", b"[\"bee\"", "cannot be read"),
    ("a.yaml", b"a: [", "is not valid YAML"), ("a.json", b'{"a": {"b": 1}}', "neither a list of names"),
    ("a.json", b"[[\"bee\"]]", "neither a list of names"), ("a.json", b"null", "neither a list of names"),
    ("a.json", b'[{"id": 1}]', "neither a list of names"), ("a.yaml", b"a: {b: c}", "neither a list of names"),
])  # fmt: skip
def test_what_is_no_word_list(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^--names .*{name}.*{message}") as caught:
        read_words(str(tmp_path / name), option="--names")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("w.txt", b"dog\nc\0t\n", "control character"), ("w.txt", b"dog\n" + b"a" * 10_000, "10000 letters"),
        ("w.txt", "dog\n".encode("utf-16-le"), "control character"), ("w.txt", bytes(range(256)), "cannot be read"),
        ("w.csv", b'name\n"dog\ncat\n', "unexpected end of data"), ("w.csv", b"id,name\n1\n", "no cell below 'name'"),
        ("w.csv", b"name\n" + b"a" * 200_000, "field larger than"), ("w.json", b"[" * 100_000, "recursion"),
        ("w.json", b'["dog", "\\ud83d"]', "half a character"),
        ("w.json", b'{"categories": null}', "categories are no list"),
        ("w.json", b'[{"name": "dog", "id": []}, {"name": "cat"}]', "id that is no number"),
        ("w.yaml", b"- !!python/name:os.system\n- dog\n", "could run code"),
        ("w.yaml", b"[" * 20_000, "levels"),
        ("w.yaml", b"a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\n", "neither a list of names"),
    ],
)  # fmt: skip
def test_damage_is_told_with_the_file(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"--names {path}.*{message}"):
        read_words(str(path), option="--names")


def test_what_is_no_regular_file_is_told(tmp_path):
    os.mkfifo(tmp_path / "fifo.txt")
    for path in ("/dev/zero", tmp_path, tmp_path / "fifo.txt"):
        with pytest.raises(UserError, match=f"--names {path} is no regular file"):
            read_words(str(path), option="--names")
    assert len(read_words(", ".join(f"word {i}" for i in range(400)), option="--names")) == 400  # no name of a file
    with pytest.raises(UserError, match="control character"):
        with_synonyms("dog: a\x07b")
