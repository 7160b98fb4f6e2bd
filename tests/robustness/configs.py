"""Configs, their _BASE_, overrides at each entry point, data.yaml, and code that would run from them."""

import re
from pathlib import Path

from .damage import BYTES, PLACES, broken, contents, edits, put, written
from .entries import CLIM, CONFIG, EVAL, OWN, PREDICT, TRAIN, config, evaluation, predict, train
from .runner import Case, Entry, cases, ends, same
from .weights import Payload, saved

# (senseless values, keys)
VALUES = (
    (("-1", "0", "nan", "'x'"), """MODEL.OPEN_VOCAB.TEMPERATURE MODEL.METHOD.DETIC.TEMPERATURE INPUT.MOSAIC.SIZE
        MODEL.METHOD.BARON.TEMPERATURE MODEL.FVLM.TEMPERATURE SOLVER.LOG_PERIOD SOLVER.ACCUMULATE MODEL.TEXT.DIM
        INPUT.CAPTION.SHORT_SIDE MODEL.ROI_HEADS.NUM_CLASSES MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"""),
    (("-1", "nan", "inf", "[]"), """SOLVER.BASE_LR SOLVER.WEIGHT_DECAY SOLVER.MAX_ITER SOLVER.CHECKPOINT_PERIOD
        SOLVER.WARMUP_ITERS SOLVER.EPOCHS SOLVER.CLIP_GLOBAL_NORM DATALOADER.NUM_WORKERS DATALOADER.DETECTION_PER_GPU
        MODEL.METHOD.DETIC.CAPTION_WEIGHT MODEL.METHOD.DETIC.QUEUE_LENGTH TEST.EVAL_PERIOD MODEL.BACKBONE.FREEZE_AT"""),
    (("-0.1", "1.1", "nan", "'x'"), """INPUT.MOSAIC.FLIP SOLVER.WEIGHT_ENSEMBLE MODEL.METHOD.DETIC.TAG_MIN_IOF
        MODEL.FVLM.ALPHA MODEL.ROI_HEADS.POSITIVE_FRACTION MODEL.RPN.NMS_THRESH SOLVER.EMA"""),
    (("()", "(0,)", "('x',)", "(2.5,)", "(1000,)"), "INPUT.MOSAIC.GRIDS"),
    (("(0.9,)", "(1.0, 0.5)", "(-1, 1)"), "INPUT.MOSAIC.CROP_RATIO INPUT.CAPTION.CROP_SCALE INPUT.LSJ.SCALE"),
    (("'x'", "5", "None"), """INPUT.FORMAT INPUT.MOSAIC.COMPOSE INPUT.MOSAIC.FILLING SOLVER.OPTIMIZER TEST.PROTOCOL
        MODEL.OPEN_VOCAB.CLASSIFIER MODEL.METHOD.DETIC.CAPTION_NEGATIVES MODEL.VOCABULARY.PROMPT SOLVER.AMP.DTYPE"""),
    (("(1, 1, 1)", "(0,)", "(5, 3)", "(2.5,)"), "SOLVER.STEPS"), (("(1.0, 1.0)", "(0.0,)"), "SOLVER.STEP_EPOCHS"),
    (("WarmupStepWithFixedGammaLR",), "SOLVER.LR_SCHEDULER_NAME"), (("gpu", "cuda:x", "meta"), "MODEL.DEVICE"),
    (("[1e-30]", "[[1e15]]"), "MODEL.ANCHOR_GENERATOR.SIZES MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"),
    (("''", "."), "INPUT.MOSAIC.PARTNERS"), (("5", "[1]", "'x'"), "DATASETS.OWN"),
    (("5",), "DATASETS.TRAIN DATASETS.CAPTIONS"), (("x",), "MODEL.FPN.FUSE_TYPE"),
    (("0", "7"), "MODEL.RESNETS.DEPTH MODEL.RESNETS.RES5_DILATION"), (("0",), "MODEL.RESNETS.NUM_GROUPS"),
    (("PanopticFPN", "FVLM"), "MODEL.META_ARCHITECTURE"), (("RRPN",), "MODEL.PROPOSAL_GENERATOR.NAME"),
    (("StandardROIHeads", "FVLMROIHeads", "OpenVocabRes5ROIHeads"), "MODEL.ROI_HEADS.NAME"),
    (("RotatedAnchorGenerator",), "MODEL.ANCHOR_GENERATOR.NAME"), (("build_resnet_backbone",), "MODEL.BACKBONE.NAME"),
    (("(1e15, 1e15)",), "INPUT.LSJ.SCALE INPUT.CAPTION.JITTER_SCALE"),
    (("1e15",), "SOLVER.EPOCHS SOLVER.REFERENCE_WORLD_SIZE DATALOADER.REPEAT_THRESHOLD"),
    (("[127.0]", "'x'", "[nan, 1.0, 1.0]"), "MODEL.PIXEL_MEAN"),
)  # fmt: skip
AT_TEST = (
    (("-1", "0", "nan"), "MODEL.OPEN_VOCAB.TEMPERATURE"), (("1.5", "nan"), "MODEL.ROI_HEADS.NMS_THRESH_TEST"),
    (("'x'",), "INPUT.FORMAT TEST.PROTOCOL"), (("-2",), "TEST.DETECTIONS_PER_IMAGE"), (("nan",), "MODEL.FVLM.ALPHA"),
    (("[0.0, 1.0, 1.0]", "[-1.0, 1.0, 1.0]"), "MODEL.PIXEL_STD"), (("-64", "0"), "INPUT.MAX_SIZE_TEST"),
)  # fmt: skip
OF_PARTS = (  # parts of a model that do not fit each other
    "MODEL.META_ARCHITECTURE GeneralizedRCNN", "MODEL.PROPOSAL_GENERATOR.NAME RPN",
    "MODEL.ROI_HEADS.NAME OpenVocabCascadeROIHeads", "MODEL.BACKBONE.NAME build_resnet_fpn_backbone",
    "MODEL.ROI_HEADS.IN_FEATURES ('res4','res4')",
    "INPUT.MIN_SIZE_TRAIN (300,100) INPUT.MIN_SIZE_TRAIN_SAMPLING range",
    "SOLVER.LR_SCHEDULER_NAME WarmupCosineLR SOLVER.BASE_LR 0.0",
)  # fmt: skip
AT_BOUNDS = (  # what a training takes
    "SOLVER.STEPS (2,)", "SOLVER.STEPS (1, 2)", "SOLVER.EPOCHS 1.0 SOLVER.STEP_EPOCHS (0.01, 0.02)",
    "SOLVER.EPOCHS 1e-30 SOLVER.STEP_EPOCHS (1e-30, 1e-29)", "--num-gpus=0", "SOLVER.WARMUP_ITERS 5",
)  # fmt: skip
FLAGS = """--num-gpus=-1 --num-gpus=100000 --num-machines=0 --num-machines=-1 --machine-rank=1 --machine-rank=-1
    --dist-url=x --dist-url=tcp://127.0.0.1 --dist-url=tcp://127.0.0.1:99999 --dist-url=tcp://h:x --dist-url=env://
    --dist-url=file:///no/folder/x"""
OF_PREDICT = "--slices=1 --threshold=nan --overlap=2 --top=0 --batch=-1 --frames=0 --device=gpu --device=xpu:7".split()
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
)
FILES = {
    "empty": "", "text": "only words", "a list": "- a\n- b\n", "a number": "5", "broken": "MODEL:\n  A: [1,\n",
    "a tab": "MODEL:\n\tDEVICE: cpu\n", "an unknown key": "MODEL:\n  DEVCIE: cpu\n",
    "a value for a section": "MODEL: 5\n",
    "a section for a value": "SEED:\n  A: 1\n", "a key twice": "SEED: 1\nSEED: 2\n", "null for a section": "MODEL:\n",
    "a date": "SEED: 2020-01-01\n", "a number as key": "5: 1\n", "a nan": "SOLVER:\n  BASE_LR: .nan\n",
    "aliases without end": ALIASES, "deep": "SEED: " + "[" * 20_000 + "\n",
    "an alias of itself": "MODEL: &a\n  WEIGHTS: *a\n",
    "_BASE_ of itself": "_BASE_: case.yaml\n", "_BASE_ that is gone": "_BASE_: gone.yaml\n",
    "_BASE_ a folder": "_BASE_: .\n",
    "_BASE_ a list": "_BASE_: [a.yaml]\n", "_BASE_ an address": "_BASE_: http://127.0.0.1:9/x.yaml\n",
    "_BASE_ null": "_BASE_:\n",
}  # fmt: skip
APPLY = "SEED: !!python/object/apply:os.system ['touch {world}/code_has_run']\n"
CODE = {
    "apply": APPLY, "new": APPLY.replace("apply", "new"), "module": "SEED: !!python/module:antigravity\n",
    "eval": "OUTPUT_DIR: !!python/object/apply:eval [\"open('{world}/code_has_run', 'w')\"]\n",
    "a name": "SEED: !!python/name:os.system\n",
}  # fmt: skip
TRAIN_SET = "train: {images: images, boxes: boxes.json}\n"
DATA = {
    "empty": "", "a list": "- images\n", "text": "images", "broken": "train: [a", "no set": "names: [dog]\n",
    "an unknown key": "trian: images\nnames: [dog]\n", "names a number": f"names: 5\n{TRAIN_SET}",
    "names twice": f"names: [dog, dog]\n{TRAIN_SET}", "an empty name": f"names: [dog, '']\n{TRAIN_SET}",
    "numbers with a gap": "names: {0: dog, 2: kite}\ntrain: {images: images, boxes: labels}\n",
    "names a list of lists": f"names: [[dog]]\n{TRAIN_SET}",
    "no folder": "train: {images: nowhere, boxes: boxes.json}\n",
    "a file as folder": "train: {images: boxes.json, boxes: boxes.json}\n",
    "no boxes": "train: {images: images, boxes: no.json}\n",
    "a set that is a number": "train: 5\nnames: [dog]\n",
    "an unknown key of a set": "train: {images: images, bxes: boxes.json}\n",
    "novel no list": f"novel: 5\n{TRAIN_SET}", "no class of the file": f"names: [yeti]\n{TRAIN_SET}",
    "null": "train:\nval:\n",
    "a key twice": TRAIN_SET * 2, "aliases without end": ALIASES, "an alias of itself": "train: &a [*a]\n",
    "deep": "train: " + "[" * 20_000, "a NUL": "train: {images: ima\0ges, boxes: boxes.json}\n",
    "tags of another kind": "captions: {images: images, captions: captions.json, tags: 7}\n",
}  # fmt: skip


def overrides(run: Entry, rows) -> list[Case]:
    """A senseless value of a key is told with the key."""
    pairs = [(key, value) for values, keys in rows for key in keys.split() for value in values]
    return [Case("config", f"{key} {value}", run, told=(key,), changed=run.given(key, value)) for key, value in pairs]


def parted(words: str) -> list[str]:
    """Options and KEY VALUE pairs; a value may hold spaces."""
    return re.split(r" (?![^(]*\))", words)


def options(run: Entry, words: list[str]) -> list[Case]:
    """A senseless value of an option is told with the option, or with its key."""
    names = {word: word[2:].partition("=")[0] for word in words}
    return [
        Case("option", word, run, told=(f"{name}|{name.upper()}",), changed=run.given(word))
        for word, name in names.items()
    ]


def by_base(text: str):
    return lambda world: (written("base.yaml", text)(world), put(world / "case.yaml", "_BASE_: base.yaml\n"))


def trusting(world):
    """A config that trusts the weights that come with it."""
    put(world / "evil.pth", saved({"model": {}, "y": Payload(world)}))
    put(world / "case.yaml", f"_BASE_: {CLIM}\nMODEL:\n  WEIGHTS: evil.pth\n  TRUST_WEIGHTS: True\n")


FILE, COCO, CUT = (
    Entry("config file", config, ("case.yaml",)),
    OWN["coco"],
    ("empty", "a third of it", "all but the last byte"),
)
COMMANDS = {
    TRAIN: lambda world: train(world, config="case.yaml"),
    EVAL: lambda world: evaluation(world, "--config-file", "case.yaml"),
    PREDICT: lambda world: predict(world, "--config-file", "case.yaml"),
}
OF_BYTES = {name: change(Path(CLIM).read_bytes()) for name, change in BYTES.items() if name not in CUT}
DATA_CODE, BOM = (
    {"data.yaml": written("own/coco.yaml", APPLY + TRAIN_SET)},
    {"BOM": lambda data: b"\xef\xbb\xbf" + data},
)
CASES = [
    *overrides(CONFIG, VALUES), *overrides(EVAL, AT_TEST), *overrides(PREDICT, AT_TEST),
    *(Case("config", text, TRAIN, told=None, handled=ends, changed=TRAIN.given(*parted(text))) for text in AT_BOUNDS),
    *(Case("config", text, TRAIN, told=("MODEL|must be",), changed=TRAIN.given(*text.split())) for text in OF_PARTS),
    *options(TRAIN, FLAGS.split()), *options(PREDICT, OF_PREDICT),
    *cases("config", FILE, contents("case.yaml", FILES | OF_BYTES), "case.yaml"),
    *cases("config", FILE, {name: place("case.yaml") for name, place in PLACES.items()}, "case.yaml"),
    *cases("code", FILE, contents("case.yaml", CODE), "case.yaml"),
    *cases("code", FILE, {f"_BASE_: {name}": by_base(text) for name, text in CODE.items()}, "base.yaml"),
    *cases("code", COCO, DATA_CODE, "coco.yaml"),
    *cases("data.yaml", COCO, contents("own/coco.yaml", DATA), "coco.yaml"),
    *cases("data.yaml", COCO, broken("own/coco.yaml", but=CUT), "coco.yaml"),
    *cases("data.yaml", COCO, edits("own/coco.yaml", BOM), handled=same),
]  # fmt: skip
for run, function in COMMANDS.items():
    changed = Entry(run.name, function)
    CASES += cases("code", run, {"TRUST_WEIGHTS of a file": trusting}, "TRUST_WEIGHTS", changed=changed)
    CASES += cases("code", run, {"--config-file": written("case.yaml", APPLY)}, "case.yaml", changed=changed)
