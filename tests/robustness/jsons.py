"""Jsons of boxes, captions, regions, categories: each field missing, null, of another type, senseless; broken files."""

from .damage import MISSING, broken, edits, entry
from .entries import MASKS, OWN, REGISTERED
from .runner import Case, cases, same

NAN, INF = float("nan"), float("inf")
# (place, {name: value}); a * before the name: sound, the result is that of the twin
BOXES = (
    ("images", {"missing": MISSING, "null": None, "text": "x", "number": 3, "object": {}, "of numbers": [1, 2]}),
    ("annotations", {"missing": MISSING, "null": None, "text": "x", "object": {}, "of lists": [[1]]}),
    ("categories", {"missing": MISSING, "null": None, "text": "x", "of names": ["dog", "kite"], "empty": []}),
    ("images.1", {"null": None, "list": [], "empty": {}}),
    ("images.1.id", {"missing": MISSING, "null": None, "twice": 1, "list": [2], "nan": NAN, "part": 2.5}),
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
    ("annotations.2.iscrowd", {"null": None, "text": "no", "two": 2, "list": [0], "*missing": MISSING}),
    ("annotations.2.area", {"*missing": MISSING}),
    ("annotations.2.segmentation", {"*text": "x", "*flat": [1, 2], "*missing": MISSING}),  # no mask is learned
    ("categories.1.id", {"missing": MISSING, "null": None, "twice": 1, "text": "two", "nan": NAN}),
    ("categories.1.name", {"missing": MISSING, "null": None, "empty": "", "list": ["kite"], "twice": "dog"}),
)  # fmt: skip
SHAPES = (
    ("annotations.2.segmentation", {
        "text": "x", "number": 5, "of texts": [["a", "b"]], "flat": [1, 2, 3, 4, 5, 6], "nan": [[1, 2, NAN, 4, 5, 6]],
        "RLE of another size": {"size": [5, 5], "counts": [25]}, "RLE without counts": {"size": [64, 64]},
        "broken RLE": {"size": [64, 64], "counts": "zzzz€"},
        "RLE of a negative run": {"size": [64, 64], "counts": [-3]},
        "null": None,
    }),
)  # fmt: skip
CAPTIONS = (
    ("images", {"missing": MISSING, "null": None, "object": {}, "empty": []}),
    ("images.1", {"null": None, "text": "x", "empty": {}}),
    ("images.1.id", {"missing": MISSING, "null": None, "twice": 1}),
    ("images.1.file_name", {"missing": MISSING, "null": None, "number": 5}),
    ("images.1.captions", {"number": 5, "of numbers": [1, 2], "of null": [None], "object": {"a": 1}, "lists": [["a"]]}),
    ("images.1.pos_category_ids", {"text": "12", "unknown": [99], "null inside": [None], "number": 2, "lists": [[1]]}),
    ("images.1.height", {"negative": -3, "text": "x"}),
    ("categories.1.id", {"missing": MISSING, "null": None, "twice": 1}),
)


def fields(kind: str, run, file: str, table) -> list[Case]:
    """A case for each value of ``table``. What is told names the file, and the key or the index."""
    found, base = [], file.rpartition("/")[2]
    for place, values in table:
        parts = place.split(".")
        where = f"{parts[-1]}|[{parts[1]}]" if len(parts) > 1 else place.removesuffix("s")
        for name, value in values.items():
            told, handled = (None, same) if name.startswith("*") else ((base, where), None)
            name = f"{base}: {place} {name.lstrip('*')}"
            found.append(Case(kind, name, run, entry(file, place, value), told, handled))
    return found


def of(table, *starts: str):
    return [row for row in table if row[0].startswith(starts)]


COCO, PAIRS, FILE = OWN["coco"], REGISTERED["captions"], "own/boxes.json"
ENCODINGS = {"byte-order mark": "utf-8-sig", "UTF-16": "utf-16"}
CODED = {name: lambda data, code=code: data.decode().encode(code) for name, code in ENCODINGS.items()}
CASES = [
    *fields("jsons", COCO, FILE, BOXES), *fields("jsons", MASKS, FILE, SHAPES),
    *fields("jsons", REGISTERED["regions"], FILE, of(BOXES, "images.1.", "annotations.2.b", "annotations.2.c")),
    *fields("jsons", REGISTERED["lvis"], "own/lvis.json", of(BOXES, "annotations.2.b", "annotations.2.im")),
    *fields("captions", PAIRS, "own/captions.json", CAPTIONS),
    *cases("jsons", COCO, broken(FILE), "boxes.json"),
    *cases("jsons", PAIRS, broken("own/captions.json"), "captions.json"),
    *cases("jsons", COCO, edits(FILE, CODED), "boxes.json", handled=same),
    *cases("jsons", PAIRS, edits("own/captions.json", CODED), "captions.json", handled=same),
]  # fmt: skip
