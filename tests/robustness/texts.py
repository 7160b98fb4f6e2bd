"""Word lists, captions, tables, YOLO's and VOC's files, shards and their index."""

import io
import os
import tarfile

from .damage import BYTES, PLACES, edited, entry, written
from .entries import CAPTION_IMAGES, CAPTIONS, INDEX, OWN, SHARDS, TRAIN, WORDS
from .jsons import bytes_of
from .runner import Case, ends, same, without

UTF16 = {"UTF-16": lambda data: data.decode().encode("utf-16")}
BOM = {
    "a byte-order mark": lambda data: b"\xef\xbb\xbf" + data,
    "Windows' lines": lambda data: data.replace(b"\n", b"\r\n"),
}
LATIN = {"another encoding": lambda data: data + b"\ncaf\xe9 \xff"}
NUL = {"a NUL": lambda data: data[:3] + b"\0" + data[3:]}

# (file, content): what is told of a word list
WRONG_WORDS = {
    "words.json": ("", "{", "5", "null", "[]", '[["dog"]]', '[1, null]', '{"names": 3}', "[" * 5000, '[{"id": "x", "name": "dog"}, {"id": 2, "name": "cat"}]',
                   '[{"id": null, "name": "dog"}]', '["  "]'),
    "words.yaml": ("", "a: [", "- [dog, cat]\n", "5", "- &a [*a]\n", "- dog\n- \t x: 1\n", "? [a, b]\n: c\n",
                   "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"),
    "words.txt": ("", "\n\n \n"),
    "words.csv": ("", "\n", ",,\n"),
}  # fmt: skip


def words() -> list[Case]:
    cases = []
    for file, contents in WRONG_WORDS.items():
        for content in contents:
            name = f"{file} is {content[:40]!r}"
            cases.append(Case("words", name, WORDS[file], written(f"words/{file}", content), (file,)))
    for file, run in WORDS.items():
        for name, change in (BOM | UTF16).items():
            cases.append(Case("words", f"{file}: {name}", run, edited(f"words/{file}", change), None, same))
        for name, change in (LATIN | NUL).items():
            cases.append(Case("words", f"{file}: {name}", run, edited(f"words/{file}", change), (file,)))
        for name in ("missing", "a folder", "a FIFO", "a link to itself", "/dev/zero"):
            cases.append(Case("words", f"{file}: {name}", run, PLACES[name](f"words/{file}"), (file,)))
    code = written("words/words.yaml", "!!python/object/apply:os.system ['touch {world}/code_has_run']\n")
    cases.append(Case("code", "a tag of Python", WORDS["words.yaml"], code, ("words.yaml",), ends))
    twice = edited("words/words.txt", lambda data: data + b"\nDOG\n dog \n\n")
    cases.append(Case("words", "a word twice and in capitals", WORDS["words.txt"], twice, ("dog|DOG",), ends))
    return cases


GUESSED = ("a third of it", "all but the last byte", "html", "a git-lfs pointer")  # other text, which nothing can tell
ABSENT = ("empty", "missing", "a folder", "a FIFO", "a link to itself", "a link to nothing", "/dev/zero")


def broken(kind: str, run, file: str, *, lone: bool = False, **special: str) -> list[Case]:
    """Bytes and things in a text file's place; ``special``: {name: another content}, all told.

    ``lone``: the file of one image, which may be an image without one.
    """
    name = file.rpartition("/")[2]
    cases = [c for c in bytes_of(kind, run, file) if c.name.partition(": ")[2] not in GUESSED]
    if lone:
        image = name.partition(".")[0] + ".jpg"
        parts = without(*(f"{part}/{image}" for part in ("train", "val", "captions")))
        cases = [
            c._replace(handled=parts, said=("without|unreadable",)) if c.name.endswith(ABSENT) else c for c in cases
        ]
        cases = [c._replace(handled=parts) if c.name.endswith("zeros") else c for c in cases]
    cleaned = parts if lone else ends
    cases.append(
        Case(kind, f"{name}: a NUL", run, edited(file, NUL["a NUL"]), (name,), cleaned, () if lone else ("unreadable",))
    )
    cases += [Case(kind, f"{name}: {why}", run, edited(file, change), (name,)) for why, change in LATIN.items()]
    return cases + [
        Case(kind, f"{name}: {why.replace('_', ' ')}", run, written(file, content), (name,))
        for why, content in special.items()
    ]


YOLO = {
    "a word": "dog 0.5 0.5 0.2 0.2\n", "pixels": "0 30 20 10 10\n", "nan": "0 nan 0.5 0.2 0.2\n",
    "negative_size": "0 0.5 0.5 -0.2 0.2\n", "unknown_class": "9 0.5 0.5 0.2 0.2\n", "no_box": "0\n",
    "negative_class": "-1 0.5 0.5 0.2 0.2\n", "part_of_a_class": "0.5 0.5 0.5 0.2 0.2\n", "inf": "0 0.5 inf 0.2 0.2\n",
    "commas": "0,0.5,0.5,0.2,0.2\n", "three_numbers": "0 0.5 0.5\n", "huge_class": f"{10**30} 0.5 0.5 0.2 0.2\n",
}  # fmt: skip
BOX = "<bndbox><xmin>{}</xmin><ymin>4</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
VOC = {
    "no_name": f"<annotation><object>{BOX.format(4)}</object></annotation>",
    "no_box": "<annotation><object><name>dog</name></object></annotation>",
    "nan": f"<annotation><object><name>dog</name>{BOX.format('nan')}</object></annotation>",
    "a_word": f"<annotation><object><name>dog</name>{BOX.format('left')}</object></annotation>",
    "corners_turned": f"<annotation><object><name>dog</name>{BOX.format(40)}</object></annotation>",
    "unknown_class": f"<annotation><object><name>yeti</name>{BOX.format(4)}</object></annotation>",
    "entities": '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>',
    "a_file_by_entity": '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
}  # fmt: skip
TABLE = {
    "one_column": "0.jpg\n1.jpg\n", "three_columns": "0.jpg\ta dog\n1.jpg\ta\tdog\n", "an_open_quote": 'image,caption\n0.jpg,"a dog\n',
    "a_huge_field": "0.jpg\t" + "x" * 200_000 + "\n1.jpg\ta dog\tx\n",
}  # fmt: skip
HALF = "a \\ud83d dog"  # half an emoji in json


def captions() -> list[Case]:
    """Captions that are no plain text are cleaned, or their image is left out and counted."""
    run, file = CAPTIONS, "own/captions.json"
    texts = {
        "half an emoji": "a \ud83d dog", "a NUL": "a\0dog", "newlines": "a\ndog\r\n", "control characters": "a\x07 dog\x1b[31m",
        "500 kB": "dog " * 125_000, "other direction": "\u202egod a",
    }  # fmt: skip
    cases = []
    for name, text in texts.items():
        change = entry(file, "images.1.captions.0", text)
        cases.append(Case("captions", f"records: {name}", run, change, ("captions.json",), without("1.jpg")))
        pairs = "datasets/mini/annotations/captions_pairs_tags.json"
        change = entry(pairs, "images.1.captions", [text])
        cases.append(Case("captions", f"training: {name}", TRAIN, change, ("captions_pairs_tags.json",), ends))
    one = entry(file, "images.1.captions", "a dog on a kite")

    def whole(result, twin):
        return result["1.jpg"]["captions"] == ["a dog on a kite"] and without("1.jpg")(result, twin)

    cases.append(Case("captions", "one string, no list", run, one, ("captions.json", "captions", "[1]|image 2"), whole))
    for name, value in {"blank": ["", " \t"], "none": []}.items():
        change = entry(file, "images.1.captions", value)
        cases.append(
            Case("captions", f"{name}", run, change, None, lambda r, t: "1.jpg" not in r and without("1.jpg")(r, t))
        )
    return cases


def repacked(change):
    """The shard with other members: ``change`` of a list of (name, bytes)."""

    def damage(world):
        path = world / "own/shards/00000.tar"
        with tarfile.open(path) as tar:
            members = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]
        path.unlink()
        with tarfile.open(path, "w") as tar:
            for name, data in change(members):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    return damage


def shards() -> list[Case]:
    """The index is told; damaged pairs of a shard are left out of a new index and counted."""
    cases = []
    for file in ("facts.json", "pairs.npy", "texts.bin"):
        for name, change in BYTES.items():
            cases.append(
                Case("shards", f"{file}: {name}", SHARDS, edited(f"own/index/{file}", change), (file + "|own/index",))
            )
        for name in ("missing", "a folder", "a FIFO", "/dev/zero"):
            cases.append(
                Case("shards", f"{file}: {name}", SHARDS, PLACES[name](f"own/index/{file}"), (file + "|own/index",))
            )
    for place in ("version", "shards", "images", "text_bytes", "skipped", "shards.0.name", "shards.0.bytes"):
        for value in (None, "x", -1, [1]):
            change = entry("own/index/facts.json", place, value)
            cases.append(Case("shards", f"facts.json: {place} {value!r}", SHARDS, change, ("facts.json|own/index",)))
    for name, place in (("cut", 0.5), ("gone", None)):
        change = PLACES["missing"]("own/shards/00000.tar") if place is None else edited(
            "own/shards/00000.tar", lambda data: data[: len(data) // 2]
        )  # fmt: skip
        cases.append(Case("shards", f"the shard is {name}", SHARDS, change, ("00000.tar",)))
    for name, place in (("/dev/zero", "tar:///dev/zero?0+9999999999999#x"), ("a FIFO", "tar://{}?0+99#x")):

        def pointed(world, place=place):
            os.mkfifo(world / "fifo.tar")
            entry("own/captions.json", "images.1.file_name", place.format(world / "fifo.tar"))(world)

        cases.append(
            Case(
                "shards",
                f"an image of a json is in {name}",
                CAPTION_IMAGES,
                pointed,
                ("captions.json",),
                without("1.jpg"),
            )
        )
    one = lambda name, data: repacked(lambda members: [(n, data if n == name else d) for n, d in members])  # noqa: E731
    for name, change in {
        "no image": one("1.jpg", b"no image"), "cut image": one("1.jpg", b"\xff\xd8\xff\xe0" + bytes(40)),
        "caption in another encoding": one("1.txt", b"caf\xe9"), "no caption": one("1.txt", b""),
        "half a json": repacked(lambda members: [*members, ("1.json", b'{"caption": ')]),
        "names with ../": repacked(lambda members: [*members, ("../../x.jpg", members[0][1]), ("../../x.txt", b"a dog")]),
        "a pair twice": repacked(lambda members: [*members, *members[2:4]]),
    }.items():  # fmt: skip
        cases.append(Case("shards", f"new index: {name}", INDEX, change, ("00000.tar",), ends))
    for name in ("empty", "noise", "a third of it"):
        cases.append(
            Case(
                "shards",
                f"new index: shard {name}",
                INDEX,
                edited("own/shards/00000.tar", BYTES[name]),
                ("00000.tar",),
                ends,
            )
        )
    return cases


CASES = [
    *words(),
    *broken("formats", OWN["yolo"], "own/labels/1.txt", lone=True, **YOLO),
    *broken("formats", OWN["voc"], "own/voc/1.xml", lone=True, **VOC),
    *broken("captions", OWN["table"], "own/captions.tsv", **TABLE),
    *broken("captions", OWN["files"], "own/texts/1.txt", lone=True),
    *captions(),
    *shards(),
]
