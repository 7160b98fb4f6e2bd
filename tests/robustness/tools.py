"""Commands of tools/ and datasets/: their jsons, records, tables and folders."""

from .damage import MISSING, PLACES, a_file, broken, contents, instead, written
from .entries import EXPORT, NEIGHBOURS, NOUNS, OVCOCO, PAIRS, PREDICT, RECORD, TABLE_PAIRS
from .jsons import fields, of
from .runner import Case, cases, same

COCO, TEXTS = (f"datasets/source/annotations/{part}_train2017.json" for part in ("instances", "captions"))
INSTANCES = (
    ("images", {"missing": MISSING, "null": None, "text": "x", "of numbers": [1]}),
    ("images.0.id", {"missing": MISSING, "null": None, "list": [1]}),
    ("annotations", {"missing": MISSING, "null": None, "object": {}}),
    ("annotations.0.image_id", {"missing": MISSING, "null": None, "list": [1]}),
    ("annotations.0.category_id", {"missing": MISSING, "null": None, "list": [1]}),
    ("categories", {"missing": MISSING, "null": None, "short": [{"id": 1, "name": "person"}]}),
    ("categories.0.name", {"missing": MISSING, "null": None}),
)
CAPTION = {"annotations.0.caption": {"missing": MISSING, "null": None, "number": 5, "list": ["a"]}}
PAIR = (
    ("images", {"missing": MISSING, "null": None, "text": "x", "of numbers": [1]}),
    ("images.1.captions", {"number": 5, "of numbers": [1], "of null": [None], "object": {"a": 1}}),
    ("images.1.id", {"missing": MISSING, "null": None, "twice": 1}),
)
RECORDS = {
    "empty": "", "half": '{"settings": {"conf', "a list": "[1]", "null": "null", "noise": "\x00\x01",
    "no settings": '{"seconds": 1, "results": null}',
    "settings a text": '{"settings": "x", "seconds": 1, "results": null}',
    "seconds a text": '{"settings": {"config": "", "inputs": {}}, "seconds": "x", "results": null}',
    "results a number": '{"settings": {"config": "", "inputs": {}}, "seconds": 1, "results": 5}',
}  # fmt: skip
STAMP, SEEN = "datasets/coco/.prepare_ovcoco.json", "datasets/coco/zero-shot/instances_train2017_seen_2.json"
STAMPS = {"half": "{", "null": '{"files": null}', "a list": "[1]", "outside": '{"files": ["../../own/boxes.json"]}'}
SENSELESS = (  # options of predict, and what is told
    ("--device gpu", "gpu"), ("--device cuda:x", "cuda:x"), ("--slices 1", "from 32"), ("--slices -1", "--slices"),
    ("--output ", "--output"), ("--output own/boxes.json", "own/boxes.json"),
    ("--input webcam:" + "9" * 30, "webcam:9"),
    ("--input webcam:99", "None of the images"), ("--input -", "- does not exist"), ("--input ", "empty"),
    ("--input /dev/stdin", "None of the images"), ("--input own/none/**", "own/none"),
)  # fmt: skip
FILM = PREDICT.given("--input", "own/a.mp4")
FILMS = {  # no videos, whatever their names
    "empty": b"", "zeros": bytes(9999), "noise": bytes(range(256)) * 9, "gif": b"GIF89a", "header": b"\0\0\0 ftypisom",
    "playlist": "#EXTM3U\n#EXTINF:1,\n{world}/own/images/1.jpg\n",
    "concat": "ffconcat version 1.0\nfile images/1.jpg\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
}  # fmt: skip
IN_THE_WAY = {"a file in the way": a_file("datasets/coco/zero-shot")}
CASES = [
    *fields("tools", OVCOCO, COCO, INSTANCES), *cases("tools", OVCOCO, broken(COCO), "instances_train2017.json"),
    *fields("tools", OVCOCO, TEXTS, (*of(INSTANCES, "annotations.0.image_id", "images.0.id"), *CAPTION.items())),
    *cases("tools", OVCOCO, broken(TEXTS), "captions_train2017.json"),
    *fields("tools", PAIRS, "own/captions.json", PAIR),
    *cases("tools", PAIRS, broken("own/captions.json"), "captions.json"),
    *fields("tools", NOUNS, "own/captions.json", PAIR[:2]),
    *cases("tools", NOUNS, broken("own/captions.json"), "captions.json"),
    *cases("tools", TABLE_PAIRS, broken("own/captions.tsv", "noise", "html", *PLACES), "captions.tsv"),
    *cases("tools", EXPORT, broken("run/model_final.pth", "empty", "noise", "a folder", "missing"), "model_final.pth"),
    *cases("tools", NEIGHBOURS, {"another .json beside --output": written("out/x.json", '{"my": "data"}')}, "x.json"),
    *cases("tools", OVCOCO, IN_THE_WAY, "zero-shot"),
    *cases("tools", OVCOCO, contents(STAMP, STAMPS), ".prepare_ovcoco.json", handled=same),
    *(
        Case("tools", words, PREDICT, told=(told,), changed=PREDICT.given(*words.split(" ", 1)))
        for words, told in SENSELESS
    ),
    *cases("tools", FILM, contents("own/a.mp4", FILMS), "None of the images"),
    *cases("tools", FILM, {f"a.mp4: {name}": place("own/a.mp4") for name, place in PLACES.items()}, "own/a.mp4|None"),
    Case("tools", "--check of no image", EXPORT, told=("--check",), changed=EXPORT.given("--check", "own/boxes.json")),
    *cases("lost", OVCOCO, contents(SEEN, {"a file of the user": '{"mine": 1}'}), "instances_train2017_seen_2.json"),
    *cases("lost", RECORD, contents("record/results.json", RECORDS), "results.json"),
    *cases("lost", RECORD, broken("record/results.json", "a folder", "a FIFO", "a link to itself"), "results.json"),
    *cases("lost", RECORD, {"files of no run": instead(lambda path: None)("record/results.json")}, "record"),
    *(
        Case("lost", "--output is the input", run, told=("captions.json",), changed=run.given("own/captions.json"))
        for run in (PAIRS, NOUNS)
    ),
]  # fmt: skip
