"""Commands of tools/ and datasets/: their jsons, records, word lists and folders."""

from .damage import BYTES, MISSING, PLACES, a_file, edited, written
from .entries import EXPORT, NEIGHBOURS, NOUNS, OVCOCO, PAIRS, RECORD, TABLE_PAIRS
from .jsons import fields
from .runner import Case, Entry, same

COCO = "datasets/source/annotations/instances_train2017.json"
TRAIN2017 = (
    ("images", {"missing": MISSING, "null": None, "text": "x", "of numbers": [1]}),
    ("images.0.id", {"missing": MISSING, "null": None, "list": [1]}),
    ("annotations", {"missing": MISSING, "null": None, "object": {}}),
    ("annotations.0.image_id", {"missing": MISSING, "null": None, "list": [1]}),
    ("annotations.0.category_id", {"missing": MISSING, "null": None, "list": [1]}),
    ("categories", {"missing": MISSING, "null": None, "short": [{"id": 1, "name": "person"}]}),
    ("categories.0.name", {"missing": MISSING, "null": None, "other": "yeti"}),
)
CAPTIONS2017 = (
    ("annotations", {"missing": MISSING, "null": None, "text": "x"}),
    ("annotations.0.caption", {"missing": MISSING, "null": None, "number": 5, "list": ["a"]}),
    ("annotations.0.image_id", {"missing": MISSING, "null": None, "list": [1]}),
    ("images.0.id", {"missing": MISSING, "null": None, "list": [1]}),
)
PAIR = (
    ("images", {"missing": MISSING, "null": None, "text": "x", "of numbers": [1]}),
    ("images.1.captions", {"number": 5, "of numbers": [1], "of null": [None], "object": {"a": 1}}),
    ("images.1.id", {"missing": MISSING, "null": None, "twice": 1}),
)


def broken(run: Entry, file: str, names=(*BYTES, *PLACES)) -> list[Case]:
    base = file.rpartition("/")[2]
    return [
        Case(
            "tools", f"{base}: {name}", run, edited(file, BYTES[name]) if name in BYTES else PLACES[name](file), (base,)
        )
        for name in names
    ]


CASES = [
    *fields("tools", OVCOCO, COCO, TRAIN2017),
    *fields("tools", OVCOCO, "datasets/source/annotations/captions_train2017.json", CAPTIONS2017),
    *broken(OVCOCO, COCO), *broken(OVCOCO, "datasets/source/annotations/captions_train2017.json"),
    *fields("tools", PAIRS, "own/captions.json", PAIR), *broken(PAIRS, "own/captions.json"),
    *fields("tools", NOUNS, "own/captions.json", PAIR[:2]), *broken(NOUNS, "own/captions.json"),
    *broken(TABLE_PAIRS, "own/captions.tsv", ("noise", "html", *PLACES)),
    *broken(EXPORT, "run/model_final.pth", ("empty", "noise", "html", "a folder", "missing")),
]  # fmt: skip
VALUES = {
    "empty": "", "half": '{"settings": {"conf', "a list": "[1]", "null": "null", "no settings": '{"seconds": 1, "results": null}',
    "settings a text": '{"settings": "x", "seconds": 1, "results": null}', "seconds a text": '{"settings": {"config": "", "inputs": {}}, "seconds": "x", "results": null}',
    "results a number": '{"settings": {"config": "", "inputs": {}}, "seconds": 1, "results": 5}', "noise": "\x00\x01",
}  # fmt: skip
CASES += [
    Case("lost", f"results.json {name}", RECORD, written("record/results.json", text), ("results.json",))
    for name, text in VALUES.items()
]
CASES += [
    Case("lost", f"results.json: {name}", RECORD, PLACES[name]("record/results.json"), ("results.json",))
    for name in ("a folder", "a FIFO", "a link to itself", "/dev/zero")
]
CASES.append(
    Case("lost", "files of no run", RECORD, lambda world: (world / "record/results.json").unlink(), ("record",))
)
for file in ("metadata/x.npy",):
    CASES.append(
        Case(
            "tools",
            "the .json beside --output is another",
            NEIGHBOURS,
            written("out/x.json", '{"my": "data"}'),
            ("x.json",),
        )
    )
CASES.append(
    Case(
        "lost",
        "index_pairs: --output is --json",
        PAIRS,
        lambda world: None,
        ("captions.json",),
        changed=Entry("index_pairs json", PAIRS.function, ("own/captions.json",)),
    )
)
CASES.append(
    Case(
        "lost",
        "parse_nouns: --output is --captions",
        NOUNS,
        lambda world: None,
        ("captions.json",),
        changed=Entry("parse_nouns", NOUNS.function, ("own/captions.json",)),
    )
)
theirs = written("datasets/coco/zero-shot/instances_train2017_seen_2.json", '{"mine": 1}')
CASES.append(
    Case("lost", "prepare_ovcoco: a file of the user is there", OVCOCO, theirs, ("instances_train2017_seen_2.json",))
)
CASES.append(
    Case(
        "lost",
        "prepare_ovcoco: the stamp is broken",
        OVCOCO,
        written("datasets/coco/.prepare_ovcoco.json", "{"),
        (".prepare_ovcoco.json",),
        same,
    )
)
for name, text in {
    "null": '{"files": null}',
    "outside": '{"files": ["../../own/boxes.json"]}',
    "a list": "[1]",
}.items():
    CASES.append(
        Case(
            "tools",
            f"prepare_ovcoco: stamp {name}",
            OVCOCO,
            written("datasets/coco/.prepare_ovcoco.json", text),
            (".prepare_ovcoco.json",),
            same,
        )
    )
CASES.append(
    Case("tools", "prepare_ovcoco: a file in the way", OVCOCO, a_file("datasets/coco/zero-shot"), ("zero-shot",))
)
