"""Word lists, captions, tables, YOLO's and VOC's files, shards and their index."""

import io
import os
import tarfile

from .damage import BYTES, broken, contents, edited, edits, entry, written
from .entries import CAPTION_IMAGES, CAPTIONS, INDEX, OWN, SHARDS, TRAIN, WORDS
from .runner import Case, cases, ends, same, without

KEPT = {
    "a byte-order mark": lambda data: b"\xef\xbb\xbf" + data,
    "Windows' lines": lambda data: data.replace(b"\n", b"\r\n"),
    "UTF-16": lambda data: data.decode().encode("utf-16"),
}
LATIN, NUL = (
    {"another encoding": lambda data: data + b"\ncaf\xe9 \xff"},
    {"a NUL": lambda data: data[:3] + b"\0" + data[3:]},
)
# (file, contents that are no list of words)
WRONG_WORDS = {
    "words.json": ("", "{", "5", "null", "[]", '[["dog"]]', "[1, null]", '{"names": 3}', "[" * 5000, '["  "]',
                   '[{"id": "x", "name": "dog"}, {"id": 2, "name": "cat"}]', '[{"id": null, "name": "dog"}]'),
    "words.yaml": ("", "a: [", "- [dog, cat]\n", "5", "- &a [*a]\n", "- dog\n- \t x: 1\n", "? [a, b]\n: c\n",
                   "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"),
    "words.txt": ("", "\n\n \n"), "words.csv": ("", "\n", ",,\n"),
}  # fmt: skip
CODE = {
    "a tag of Python": written("words/words.yaml", "!!python/object/apply:os.system ['touch {world}/code_has_run']\n")
}
YOLO = {
    "a word": "dog 0.5 0.5 0.2 0.2\n", "pixels": "0 30 20 10 10\n", "nan": "0 nan 0.5 0.2 0.2\n", "no box": "0\n",
    "negative size": "0 0.5 0.5 -0.2 0.2\n", "unknown class": "9 0.5 0.5 0.2 0.2\n", "inf": "0 0.5 inf 0.2 0.2\n",
    "negative class": "-1 0.5 0.5 0.2 0.2\n", "part of a class": "0.5 0.5 0.5 0.2 0.2\n",
    "three numbers": "0 0.5 0.5\n",
    "commas": "0,0.5,0.5,0.2,0.2\n", "huge class": f"{10**30} 0.5 0.5 0.2 0.2\n",
}  # fmt: skip
BOX = "<xmin>{}</xmin><ymin>4</ymin><xmax>20</xmax><ymax>20</ymax>"
OBJECT = f"<annotation><object>{{}}<bndbox>{BOX}</bndbox></object></annotation>"
DOG = "<name>dog</name>"
VOC = {
    "no name": OBJECT.format("", 4), "no box": f"<annotation><object>{DOG}</object></annotation>",
    "nan": OBJECT.format(DOG, "nan"), "a word": OBJECT.format(DOG, "left"), "corners turned": OBJECT.format(DOG, 40),
    "unknown class": OBJECT.format("<name>yeti</name>", 4),
    "entities": '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>',
    "a file by entity": '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
}  # fmt: skip
TABLE = {
    "one column": "0.jpg\n1.jpg\n", "three columns": "0.jpg\ta dog\n1.jpg\ta\tdog\n",
    "an open quote": 'image,caption\n0.jpg,"a dog\n',
    "a huge field": "0.jpg\t" + "x" * 200_000 + "\n1.jpg\ta dog\tx\n",
}  # fmt: skip
TEXTS = {
    "half an emoji": "a \ud83d dog", "a NUL": "a\0dog", "newlines": "a\ndog\r\n", "500 kB": "dog " * 125_000,
    "control characters": "a\x07 dog\x1b[31m", "other direction": "\u202egod a",
}  # fmt: skip
GUESSED = ("a third of it", "all but the last byte", "html", "a git-lfs pointer")  # other text, which nothing can tell


def words() -> list[Case]:
    found = cases("code", WORDS["words.yaml"], CODE, "words.yaml", handled=ends)
    for file, run in WORDS.items():
        path, wrong = f"words/{file}", {text[:30]: text for text in WRONG_WORDS[file]}
        places = broken(path, "missing", "a folder", "a FIFO", "a link to itself", "/dev/zero")
        found += cases("words", run, contents(path, wrong) | edits(path, LATIN | NUL) | places, file)
        found += cases("words", run, edits(path, KEPT), handled=same)
    return found


def of_images() -> list[Case]:
    """The file of one image, which may be an image without one; a table of all."""
    found, parts = [], without("train/1.jpg", "val/1.jpg", "captions/1.jpg")
    for run, file, wrong in (("yolo", "labels/1.txt", YOLO), ("voc", "voc/1.xml", VOC), ("files", "texts/1.txt", {})):
        kind, path, base = "captions" if run == "files" else "formats", f"own/{file}", os.path.basename(file)
        absent = broken(path, but=("a block of zeros", "noise", *GUESSED))
        found += cases(kind, OWN[run], absent, base, handled=parts, said=("without|unreadable",))
        found += cases(kind, OWN[run], broken(path, "a block of zeros") | edits(path, NUL), base, handled=parts)
        found += cases(kind, OWN[run], contents(path, wrong) | broken(path, "noise") | edits(path, LATIN), base)
    path, table = "own/captions.tsv", OWN["table"]
    found += cases(
        "captions", table, broken(path, but=GUESSED) | contents(path, TABLE) | edits(path, LATIN), "captions.tsv"
    )
    return found + cases("captions", table, edits(path, NUL), "captions.tsv", handled=ends, said=("unreadable",))


def captions() -> list[Case]:
    """Captions that are no plain text are cleaned, or their image is left out and counted."""
    file, pairs = "own/captions.json", "datasets/mini/annotations/captions_pairs_tags.json"
    records = {name: entry(file, "images.1.captions.0", text) for name, text in TEXTS.items()}
    trained = {name: entry(pairs, "images.1.captions", [text]) for name, text in TEXTS.items()}
    blank = {str(value): entry(file, "images.1.captions", value) for value in (["", " \t"], [])}
    one = {"one string, no list": entry(file, "images.1.captions", "a dog on a kite")}

    def whole(result, twin):
        return result["1.jpg"]["captions"] == ["a dog on a kite"] and without("1.jpg")(result, twin)

    def left_out(result, twin):
        return "1.jpg" not in result and without("1.jpg")(result, twin)

    return [
        *cases("captions", CAPTIONS, records, "captions.json", handled=without("1.jpg")),
        *cases("captions", TRAIN, trained, "captions_pairs_tags.json", handled=ends),
        *cases("captions", CAPTIONS, one, "captions.json", "[1]|image 2", handled=whole),
        *cases("captions", CAPTIONS, blank, handled=left_out),
    ]


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


def member(name: str, data: bytes):
    return repacked(lambda members: [(n, data if n == name else d) for n, d in members])


def pointed(name: str, make):
    """A json whose image lies in something that is no shard."""
    return lambda world: entry("own/captions.json", "images.1.file_name", f"tar://{make(world)}?0+{name}#x")(world)


def fifo(world) -> str:
    os.mkfifo(world / "fifo.tar")
    return str(world / "fifo.tar")


def shards() -> list[Case]:
    """Damages of an index are told; damaged pairs of a shard are left out of a new index and counted."""
    facts, shard = "own/index/facts.json", "own/shards/00000.tar"
    changes = {
        f"facts.json: {place} {value!r}": entry(facts, place, value) for value in (None, "x", -1, [1])
        for place in ("version", "shards", "images", "text_bytes", "skipped", "shards.0.name", "shards.0.bytes")
    }  # fmt: skip
    for file in ("facts.json", "pairs.npy", "texts.bin"):
        changes |= broken(f"own/index/{file}", *BYTES, "missing", "a folder", "a FIFO", "/dev/zero")
    halves = broken(shard, "a third of it", "missing")
    pointers = {"/dev/zero": pointed("9999999999999", lambda world: "/dev/zero"), "a FIFO": pointed("99", fifo)}
    added = {"half a json": ("1.json", b'{"caption": '), "../": ("../../x.txt", b"a dog")}
    members = {
        "no image": member("1.jpg", b"no image"), "cut image": member("1.jpg", b"\xff\xd8\xff\xe0" + bytes(40)),
        "another encoding": member("1.txt", b"caf\xe9"), "no caption": member("1.txt", b""),
        "a pair twice": repacked(lambda members: [*members, *members[2:4]]),
    } | {name: repacked(lambda members, more=more: [*members, more]) for name, more in added.items()}  # fmt: skip
    return [
        *cases("shards", SHARDS, changes, "facts.json|pairs.npy|texts.bin|own/index"),
        *cases("shards", SHARDS, halves, "00000.tar"),
        *cases("shards", CAPTION_IMAGES, pointers, "captions.json", handled=without("1.jpg")),
        *cases("shards", INDEX, members | broken(shard, "empty", "noise", "a third of it"), "00000.tar", handled=ends),
    ]  # fmt: skip


TWICE = {"a word twice": edited("words/words.txt", lambda data: data + b"\nDOG\n dog \n\n")}
CASES = [
    *words(),
    *of_images(),
    *captions(),
    *shards(),
    *cases("words", WORDS["words.txt"], TWICE, "dog|DOG", handled=ends),
]
