"""Configs, their _BASE_, overrides at each entry point, data.yaml, and code that would run from them."""

from .damage import BYTES, PLACES, edited, put, written
from .entries import CLIM, CONFIG, EVAL, OWN, PREDICT, TRAIN, config, evaluation, predict, train
from .runner import Case, Entry, same

# {what a value must be: (senseless ones, keys)}
NUMBERS = ("-1", "nan", "inf", "'x'", "[1]", "None")
VALUES = (
    (("-1", "0", "nan", "inf", "'x'"), """
        MODEL.OPEN_VOCAB.TEMPERATURE MODEL.METHOD.DETIC.TEMPERATURE MODEL.METHOD.VLDET.TEMPERATURE
        MODEL.METHOD.BARON.TEMPERATURE MODEL.FVLM.TEMPERATURE SOLVER.LOG_PERIOD INPUT.MOSAIC.SIZE
        INPUT.CAPTION.SHORT_SIDE SOLVER.ACCUMULATE"""),
    (("-1", "nan", "inf", "'x'", "[]"), """
        SOLVER.BASE_LR SOLVER.WEIGHT_DECAY SOLVER.MAX_ITER SOLVER.CHECKPOINT_PERIOD SOLVER.WARMUP_ITERS SOLVER.EPOCHS
        SOLVER.CLIP_GLOBAL_NORM DATALOADER.NUM_WORKERS DATALOADER.DETECTION_PER_GPU DATALOADER.MOSAICS_PER_GPU
        MODEL.METHOD.DETIC.CAPTION_WEIGHT MODEL.METHOD.DETIC.TAG_WEIGHT MODEL.METHOD.DETIC.QUEUE_LENGTH
        SOLVER.KEEP_CHECKPOINTS TEST.EVAL_PERIOD MODEL.BACKBONE.FREEZE_AT SOLVER.GAMMA"""),
    (("-0.1", "1.1", "nan", "'x'"), """
        INPUT.MOSAIC.FLIP INPUT.CAPTION.FLIP SOLVER.WEIGHT_ENSEMBLE MODEL.METHOD.DETIC.TAG_MIN_IOF MODEL.FVLM.ALPHA
        MODEL.FVLM.BETA MODEL.ROI_HEADS.POSITIVE_FRACTION MODEL.ROI_HEADS.NMS_THRESH_TEST MODEL.RPN.NMS_THRESH
        MODEL.ROI_HEADS.SCORE_THRESH_TEST SOLVER.EMA"""),
    (("()", "(0,)", "(-2,)", "('x',)", "(2.5,)", "(1000,)"), "INPUT.MOSAIC.GRIDS"),
    (("(0.9,)", "(1.0, 0.5)", "(-1, 1)", "'x'"), "INPUT.MOSAIC.CROP_RATIO INPUT.CAPTION.CROP_SCALE INPUT.LSJ.SCALE"),
    (("'x'", "5", "''", "None"), """
        INPUT.FORMAT INPUT.MOSAIC.COMPOSE INPUT.MOSAIC.FILLING SOLVER.OPTIMIZER MODEL.OPEN_VOCAB.CLASSIFIER
        MODEL.METHOD.DETIC.CAPTION_NEGATIVES TEST.PROTOCOL MODEL.VOCABULARY.PROMPT SOLVER.AMP.DTYPE"""),
    (("5", "[1]", "'x'"), "DATASETS.OWN"),
    (("'nowhere'", "5"), "DATASETS.TRAIN DATASETS.CAPTIONS"),
    (("[127.0]", "'x'", "[nan, 1.0, 1.0]"), "MODEL.PIXEL_MEAN"), (("[0.0, 1.0, 1.0]", "[-1.0, 1.0, 1.0]"), "MODEL.PIXEL_STD"),
    (("0", "-1", "nan", "'x'"), "MODEL.ROI_HEADS.NUM_CLASSES MODEL.TEXT.DIM MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"),
    (("-5", "'x'", "nan"), "INPUT.MIN_SIZE_TEST INPUT.MAX_SIZE_TEST"),
)  # fmt: skip


def changed(run: Entry, *opts: str) -> Entry:
    return run._replace(arguments=(*run.arguments, *opts))


def overrides(run: Entry, rows, kind: str) -> list[Case]:
    cases = []
    for values, keys in rows:
        for key in keys.split():
            for value in values:
                if run is CONFIG and key in ("DATASETS.TRAIN", "DATASETS.CAPTIONS") and value == "'nowhere'":
                    continue  # names of sets are asked where they are read
                cases.append(
                    Case(
                        kind, f"{key} {value}", run, lambda world: None, (key,), None, changed=changed(run, key, value)
                    )
                )
    return cases


AT_TEST = (
    (("-1", "0", "nan"), "MODEL.OPEN_VOCAB.TEMPERATURE"), (("1.5", "nan"), "MODEL.ROI_HEADS.NMS_THRESH_TEST"),
    (("'x'",), "INPUT.FORMAT TEST.PROTOCOL"), (("-2",), "TEST.DETECTIONS_PER_IMAGE"), (("nan",), "MODEL.FVLM.ALPHA"),
    (("[0.0, 1.0, 1.0]",), "MODEL.PIXEL_STD"), (("-64", "0"), "INPUT.MAX_SIZE_TEST"),
)  # fmt: skip
FILES = {
    "empty": "",
    "text": "only words", "a list": "- a\n- b\n", "a number": "5", "broken": "MODEL:\n  A: [1,\n", "a tab": "MODEL:\n\tDEVICE: cpu\n",
    "an unknown key": "MODEL:\n  DEVCIE: cpu\n", "a section that is a value": "MODEL: 5\n", "a value that is a section": "SEED:\n  A: 1\n",
    "a key twice": "SEED: 1\nSEED: 2\n", "null for a section": "MODEL:\n", "a date": "SEED: 2020-01-01\n", "a number as key": "5: 1\n",
    "a nan": "SOLVER:\n  BASE_LR: .nan\n", "aliases without end": "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
    ),
    "deep": "SEED: " + "[" * 20_000 + "\n", "an alias of itself": "MODEL: &a\n  WEIGHTS: *a\n",
    "_BASE_ of itself": "_BASE_: case.yaml\n", "_BASE_ that is gone": "_BASE_: gone.yaml\n", "_BASE_ a folder": "_BASE_: .\n",
    "_BASE_ a list": "_BASE_: [a.yaml]\n", "_BASE_ an address": "_BASE_: http://127.0.0.1:9/x.yaml\n", "_BASE_ null": "_BASE_:\n",
}  # fmt: skip
CODE = {
    "apply": "SEED: !!python/object/apply:os.system ['touch {world}/code_has_run']\n",
    "new": "SEED: !!python/object/new:os.system ['touch {world}/code_has_run']\n",
    "module": "SEED: !!python/module:antigravity\n",
    "eval": "OUTPUT_DIR: !!python/object/apply:eval [\"open('{world}/code_has_run', 'w')\"]\n",
    "a name": "SEED: !!python/name:os.system\n",
}
DATA = {
    "empty": "", "a list": "- images\n", "text": "images", "broken": "train: [a", "no set": "names: [dog]\n",
    "an unknown key": "trian: images\nnames: [dog]\n", "names a number": "names: 5\ntrain: {images: images, boxes: boxes.json}\n",
    "names twice": "names: [dog, dog]\ntrain: {images: images, boxes: boxes.json}\n",
    "an empty name": "names: [dog, '']\ntrain: {images: images, boxes: boxes.json}\n",
    "numbers with a gap": "names: {0: dog, 2: kite}\ntrain: {images: images, boxes: labels}\n",
    "names a list of lists": "names: [[dog]]\ntrain: {images: images, boxes: boxes.json}\n",
    "no folder": "train: {images: nowhere, boxes: boxes.json}\n", "a file as folder": "train: {images: boxes.json, boxes: boxes.json}\n",
    "no boxes": "train: {images: images, boxes: nowhere.json}\n", "a set that is a number": "train: 5\nnames: [dog]\n",
    "a set with an unknown key": "train: {images: images, bxes: boxes.json}\n", "novel that is no list": "novel: 5\ntrain: {images: images, boxes: boxes.json}\n",
    "no class of the file": "names: [yeti]\ntrain: {images: images, boxes: boxes.json}\n", "null": "train:\nval:\n",
    "a key twice": "train: {images: images, boxes: boxes.json}\ntrain: {images: images, boxes: boxes.json}\n",
    "aliases without end": FILES["aliases without end"], "an alias of itself": "train: &a [*a]\n", "deep": "train: " + "[" * 20_000,
    "a NUL": "train: {images: ima\0ges, boxes: boxes.json}\n", "tags of another kind": "captions: {images: images, captions: captions.json, tags: 7}\n",
}  # fmt: skip
FILE = Entry("config file", config, ("case.yaml",))
CASES = [
    *overrides(CONFIG, VALUES, "config"),
    *overrides(EVAL, AT_TEST, "config"),
    *overrides(PREDICT, AT_TEST, "config"),
]
CASES += [Case("config", name, FILE, written("case.yaml", text), ("case.yaml",)) for name, text in FILES.items()]
CASES += [
    Case("code", f"{name}", run, written("case.yaml", text), ("case.yaml",))
    for name, text in CODE.items()
    for run in (FILE,)
]
CASES += [
    Case("code", f"_BASE_ {name}", FILE, lambda world, text=text: (put(world / "case.yaml", "_BASE_: base.yaml\n"), written("base.yaml", text)(world)), ("base.yaml",))
    for name, text in CODE.items()
]  # fmt: skip
CASES += [
    Case("code", f"--config-file: {name}", run, written("case.yaml", CODE["apply"]), ("case.yaml",), changed=Entry(run.name, *call))
    for name, run, call in (
        ("train", TRAIN, (lambda world: train(world, config="case.yaml"),)),
        ("eval", EVAL, (lambda world: evaluation(world, "--config-file", "case.yaml"),)),
        ("predict", PREDICT, (lambda world: predict(world, "--config-file", "case.yaml"),)),
    )
]  # fmt: skip
CASES += [
    Case("config", f"bytes: {name}", FILE, written("case.yaml", change(open(CLIM, "rb").read())), ("case.yaml",))
    for name, change in BYTES.items()
    if name not in ("empty", "a third of it", "all but the last byte")
]
CASES += [
    Case(
        "config",
        f"{name}",
        FILE,
        PLACES[name]("case.yaml") if name != "missing" else lambda world: None,
        ("case.yaml",),
    )
    for name in PLACES
]
CASES += [
    Case("data.yaml", name, OWN["coco"], written("own/coco.yaml", text), ("coco.yaml",)) for name, text in DATA.items()
]
CASES += [
    Case("data.yaml", f"bytes: {name}", OWN["coco"], edited("own/coco.yaml", change), ("coco.yaml",))
    for name, change in BYTES.items()
    if "of it" not in name and "last" not in name and name != "empty"
]
CASES += [
    Case("data.yaml", name, OWN["coco"], place("own/coco.yaml"), ("coco.yaml",)) for name, place in PLACES.items()
]
CASES += [
    Case("data.yaml", "a byte-order mark", OWN["coco"], edited("own/coco.yaml", lambda data: b"\xef\xbb\xbf" + data), None, same),
    Case("code", "data.yaml", OWN["coco"], written("own/coco.yaml", f"{CODE['apply']}train: {{images: images, boxes: boxes.json}}\n"), ("coco.yaml",)),
]  # fmt: skip
