"""Jsons of boxes, captions, regions, categories: each field missing, null, of another type, senseless; broken files."""

from .damage import BYTES, MISSING, PLACES, edited, entry
from .entries import MASKS, OWN, REGISTERED
from .runner import Case, same

NAN, INF = float("nan"), float("inf")
# (place, {name: value}); a * before the name: sound, the result is that of the twin
BOXES = (
    ("images", {"missing": MISSING, "null": None, "text": "x", "number": 3, "object": {}, "of numbers": [1, 2]}),
    ("annotations", {"missing": MISSING, "null": None, "text": "x", "object": {}, "of lists": [[1]]}),
    ("categories", {"missing": MISSING, "null": None, "text": "x", "of names": ["dog", "kite"], "empty": []}),
    ("images.1", {"null": None, "list": [], "empty": {}}),
    ("images.1.id", {"missing": MISSING, "null": None, "twice": 1, "list": [2], "nan": NAN, "part": 2.5, "huge": 1e300}),
    ("images.1.file_name", {"missing": MISSING, "null": None, "number": 7, "empty": "", "list": ["1.jpg"]}),
    ("images.1.height", {"text": "high", "negative": -60, "nan": NAN, "list": [60], "inf": INF, "part": 60.5}),
    ("images.1.width", {"text": "wide", "negative": -48, "huge": 10**30, "object": {}, "true": True}),
    ("annotations.2", {"null": None, "list": [1], "text": "box", "empty": {}}),
    ("annotations.2.id", {"*missing": MISSING, "twice": 10}),
    ("annotations.2.image_id", {"missing": MISSING, "null": None, "list": [3], "object": {}, "text": "three"}),
    ("annotations.2.category_id", {"missing": MISSING, "null": None, "unknown": 99, "list": [1], "part": 1.5}),
    ("annotations.2.bbox", {
        "missing": MISSING, "null": None, "text": "1 2 3 4", "three": [1, 2, 3], "five": [1, 2, 3, 4, 5],
        "texts": ["1", "2", "3", "4"], "null inside": [1, 2, None, 4], "nan": [1, NAN, 3, 4], "inf": [1, 2, INF, 4],
        "negative size": [1, 2, -20, 24], "lists": [[1], 2, 3, 4], "object": {"x": 1}, "huge": [1, 2, 1e300, 4],
        "true": [True, 2, 3, 4],
    }),
    ("annotations.2.iscrowd", {"null": None, "text": "no", "two": 2, "list": [0], "*missing": MISSING, "*false": False}),
    ("annotations.2.area", {"*missing": MISSING}),
    ("categories.1.id", {"missing": MISSING, "null": None, "twice": 1, "text": "two", "nan": NAN}),
    ("categories.1.name", {"missing": MISSING, "null": None, "empty": "", "list": ["kite"], "twice": "dog"}),
)  # fmt: skip
SHAPES = (
    ("annotations.2.segmentation", {
        "text": "x", "number": 5, "of texts": [["a", "b"]], "flat": [1, 2, 3, 4, 5, 6], "nan": [[1, 2, NAN, 4, 5, 6]],
        "RLE of another size": {"size": [5, 5], "counts": [25]}, "RLE without counts": {"size": [64, 64]},
        "broken RLE": {"size": [64, 64], "counts": "zzzz€"}, "RLE of a negative run": {"size": [64, 64], "counts": [-3]},
        "null": None,
    }),
)  # fmt: skip
CAPTIONS = (
    ("images", {"missing": MISSING, "null": None, "object": {}, "empty": []}),
    ("images.1", {"null": None, "text": "x", "empty": {}}),
    ("images.1.id", {"missing": MISSING, "null": None, "twice": 1}),
    ("images.1.file_name", {"missing": MISSING, "null": None, "number": 5}),
    ("images.1.captions", {
        "number": 5, "of numbers": [1, 2], "of null": [None], "object": {"a": 1}, "of lists": [["a"]],
    }),
    ("images.1.pos_category_ids", {"text": "12", "unknown": [99], "null inside": [None], "number": 2, "lists": [[1]]}),
    ("images.1.height", {"negative": -3, "text": "x"}),
    ("categories.1.id", {"missing": MISSING, "null": None, "twice": 1}),
)  # fmt: skip


def fields(kind: str, run, file: str, table) -> list[Case]:
    """A case for each row of ``table``."""
    cases, base = [], file.rpartition("/")[2]
    for place, values in table:
        *_, last = place.split(".")
        where = f"[{last}]|{last}" if last.isdecimal() else last
        if last in ("file_name", "id", "name") or last.isdecimal():
            where += f"|[{place.split('.')[1]}]" if "." in place else ""
        for name, value in values.items():
            sound = name.startswith("*")
            told, handled = (None, same) if sound else ((base, where), None)
            cases.append(
                Case(kind, f"{base}: {place} {name.lstrip('*')}", run, entry(file, place, value), told, handled)
            )
    return cases


def bytes_of(kind: str, run, file: str) -> list[Case]:
    """The file broken, and other things in its place."""
    base = file.rpartition("/")[2]
    damages = {name: edited(file, change) for name, change in BYTES.items()}
    damages |= {name: place(file) for name, place in PLACES.items()}
    return [Case(kind, f"{base}: {name}", run, damage, (base,)) for name, damage in damages.items()]


def encodings(kind: str, run, file: str) -> list[Case]:
    """Other encodings of the same json are read."""
    base = file.rpartition("/")[2]
    codes = {"byte-order mark": "utf-8-sig", "UTF-16": "utf-16"}
    return [
        Case(
            kind,
            f"{base}: {name}",
            run,
            edited(file, lambda data, code=code: data.decode().encode(code)),
            (base,),
            same,
        )
        for name, code in codes.items()
    ]


OWN_BOXES, REGIONS, LVIS = OWN["coco"], REGISTERED["regions"], REGISTERED["lvis"]
CASES = [
    *fields("jsons", OWN_BOXES, "own/boxes.json", BOXES),
    *fields(
        "jsons", REGIONS, "own/boxes.json", [row for row in BOXES if row[0].startswith(("images.1.", "annotations.2."))]
    ),
    *fields("jsons", MASKS, "own/boxes.json", SHAPES),
    *fields("jsons", LVIS, "own/lvis.json", [row for row in BOXES if row[0].startswith("annotations.2.")]),
    *fields("jsons", REGISTERED["captions"], "own/captions.json", CAPTIONS),
    *bytes_of("jsons", OWN_BOXES, "own/boxes.json"),
    *bytes_of("jsons", REGISTERED["captions"], "own/captions.json"),
    *encodings("jsons", OWN_BOXES, "own/boxes.json"),
    *encodings("jsons", REGISTERED["captions"], "own/captions.json"),
]
