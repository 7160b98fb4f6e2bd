"""VLDet's nouns, panoptic regions, weights handed from one stage to the next, embeddings that a command writes."""

import io
import json
import os
import shutil

import numpy as np
from PIL import Image

import build_text_embeddings

from .damage import MISSING, broken, contents, edited, entry
from .entries import BOXES_ALONE, CACHE, evaluation, train
from .images import encoded
from .jsons import fields
from .runner import Entry, cases, ends, same
from .weights import ARRAYS, LISTS, NAN, WRONG, changed, npy
from .world import CONFIGS, SMALL

FOLDER = "panoptic/coco/annotations/panoptic_val2017"
SEGMENTS, PNG, ROWS = f"{FOLDER}.json", f"{FOLDER}/000000000001.png", "panoptic/coco/classes.npy"
NOUNS, PAIRS = "datasets/mini/metadata/nouns_minilm.npy", "datasets/mini/annotations/captions_pairs_nouns.json"
WORDS, ENCODER, CLIP = "words_run/model_final.pth", "clip_run/model_final.pth", "clip_run/clip.pt"


def step(world, config: str, *opts: str) -> list:
    """The losses of a step with a config of the mini benchmark."""
    return train(world, "SOLVER.MAX_ITER", "1", *opts, config=str(CONFIGS / f"mini/{config}.yaml"))


def regions(world, *opts: str) -> dict:
    """The figures of a dual encoder for the segments of COCO's panoptic images."""
    os.environ["DETECTRON2_DATASETS"] = str(world / "panoptic")
    keys = "MODEL.ROI_HEADS.NUM_CLASSES=133 MODEL.TEXT.CACHE= MODEL.VOCABULARY.EMBEDDINGS=coco/classes.npy"
    keys = [part for pair in f"{keys} INPUT.REGIONS.MIN_AREA=1".split() for part in pair.split("=")]
    model = ["--weights", ENCODER, "--config-file", str(CONFIGS / "mini/clip_clim.yaml")]
    return evaluation(world, *model, "DATASETS.TEST", "('coco_panoptic_val_regions',)", *SMALL[2:], *keys, *opts)


def rows(world, *words: str) -> list:
    """The embeddings that tools/build_text_embeddings.py writes for classes."""
    tower = ["--tower", "minilm", "--pretrained", "", "--device", "cpu", "--prompt", "a"]
    build_text_embeddings.main(["classes", *tower, "--output", "out/rows.npy", *words])
    return np.load("out/rows.npy").tolist()


def as_image(change):
    """The PNG of the segments as another image."""
    return edited(PNG, lambda data: change(Image.open(io.BytesIO(data))))


def arrays(file: str) -> dict:
    base = file.rpartition("/")[2]
    return {
        f"{base}: {why}": edited(file, lambda data, change=change: npy(change(np.load(io.BytesIO(data)))))
        for why, change in ARRAYS.items()
    }


def one_less(result, twin) -> bool:
    """The figures of one image less, which is named."""
    (report, before), name = (
        (r["out/inference/coco_panoptic_val_regions/region_results.json"] for r in (result, twin)),
        "num_pictures",
    )
    return report[name] == before[name] - 1 and [PNG] == [path[-len(PNG) :] for path, _ in report["unreadable"]]


VLDET = Entry("VLDet", step, ("vldet_clim",), out=("out", CACHE))
GROUNDING = Entry(
    "OV-RCNN's second stage", step, ("ovrcnn_clim", "MODEL.WEIGHTS", WORDS, *BOXES_ALONE), 30, ("out", CACHE)
)
AGAIN = Entry("CLIP from a checkpoint", step, ("clip_clim", *SMALL, "MODEL.WEIGHTS", ENCODER), 30, ("out", CACHE))
FVLM = Entry("F-VLM", step, ("fvlm", "MODEL.IMAGE_ENCODER.PRETRAINED", CLIP, *BOXES_ALONE), 30, ("out", CACHE))
REGIONS = Entry("eval of segments", regions)
MASKS = REGIONS.given("TEST.REGIONS", "['boxes', 'masks', 'crops']", name="eval of masks")
TEXTS = {file: Entry(f"build_text_embeddings {option}", rows, (option, file))
         for option, file in (("--dataset", "own/boxes.json"), ("--names", "words/words.json"))}  # fmt: skip
LIST = {"missing": MISSING, "null": None, "object": {}, "of numbers": [1]}
SEGMENT = "annotations.1.segments_info"
FIELDS = (
    ("images", LIST), ("annotations", LIST), (SEGMENT, LIST),
    ("images.1.id", {"missing": MISSING, "null": None, "twice": 1, "text": "x"}),
    ("images.1.file_name", {"missing": MISSING, "null": None, "number": 5, "empty": ""}),
    ("annotations.1.image_id", {"missing": MISSING, "null": None, "twice": 1, "list": [1]}),
    ("annotations.1.file_name", {"missing": MISSING, "null": None, "empty": "", "number": 5}),
    (f"{SEGMENT}.0.id", {"missing": MISSING, "null": None, "text": "x", "twice": 263}),
    (f"{SEGMENT}.0.category_id", {"missing": MISSING, "null": None, "unknown": 999, "part": 1.5}),
    (f"{SEGMENT}.0.bbox", {"missing": MISSING, "null": None, "three": [1, 2, 3], "nan": [NAN, 1, 2, 3],
                           "negative": [1, 2, -5, 6]}),
    (f"{SEGMENT}.0.iscrowd", {"null": None, "two": 2, "text": "x"}),
)  # fmt: skip
TAGS = (
    ("images.1.pos_category_ids", {"unknown": [9999], "text": "12", "null inside": [None], "*null": None}),
    ("categories.0.id", {"missing": MISSING, "twice": 2, "null": None}),
)
ABSENT = {
    f"segment {key} is not shown": entry(SEGMENTS, "annotations.0.segments_info.0.id", key) for key in (77, -9, 2**40)
}
OTHER_IMAGES = {
    "grey": as_image(lambda image: encoded(image.convert("L"), "PNG")),
    "as JPEG": as_image(lambda image: encoded(image, "JPEG")),
    "smaller": as_image(lambda image: encoded(image.resize((40, 32), Image.Resampling.NEAREST), "PNG")),
    "of 16 bits": as_image(lambda image: encoded(Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16)), "PNG")),
}
CLIP_WEIGHTS = {why: lambda d, change=change: d | {"state_dict": change(d["state_dict"])} for why, change in {
    "nan": lambda d: {k: v * NAN if v.is_floating_point() else v for k, v in d.items()}, "empty": lambda d: {},
    "a list": lambda d: [1], "a number": lambda d: 5, "texts": lambda d: dict.fromkeys(d, "x"),
    "other names": lambda d: {f"{k}.z": v for k, v in d.items()},
    "names that are numbers": lambda d: dict(enumerate(d.values())),
    "other shapes": lambda d: {k: v.reshape(-1)[:1] for k, v in d.items()},
}.items()}  # fmt: skip
BUT_HALF = {why: change for why, change in WRONG.items() if why != "half of the weights"}  # which a training may lack
OF_NAMES = {name: json.dumps(value) for name, value in LISTS.items()}
TURNED = {"as RGBA": as_image(lambda image: encoded(image.convert("RGBA"), "PNG"))}
BEYOND = {"a box beyond its image": entry(SEGMENTS, f"{SEGMENT}.0.bbox", [500, 500, 20, 20])}
CASES = [
    *cases("nouns", VLDET, arrays(NOUNS) | broken(NOUNS, but=("a block of zeros",)), "nouns_minilm"),  # it has two rows
    *cases("nouns", VLDET, broken(PAIRS), "captions_pairs_nouns.json"), *fields("nouns", VLDET, PAIRS, TAGS),
    *cases("segments", REGIONS, broken(SEGMENTS), "panoptic_val2017.json"),
    *fields("segments", REGIONS, SEGMENTS, FIELDS),
    *cases("segments", REGIONS, contents(SEGMENTS, {"no image": '{"images": [], "annotations": []}'}), SEGMENTS[-21:]),
    *cases("segments", MASKS, broken(PNG, but=("all but the last byte",)), handled=one_less, said=(PNG[-16:],)),
    *cases("segments", REGIONS, ABSENT | OTHER_IMAGES, handled=one_less, said=(PNG[-16:],)),
    *cases("segments", REGIONS, {"no folder of PNGs": lambda world: shutil.rmtree(world / FOLDER)}, "panoptic_val2017"),
    *cases("segments", REGIONS, TURNED, handled=same),
    *cases("segments", REGIONS, BEYOND, handled=ends, said=("reach beyond", "000000000002.jpg")),
    *cases("segments", REGIONS, {"another image": entry(SEGMENTS, "annotations.1.image_id", 77)},
           handled=ends, said=("image_id is not among",)),
    *cases("segments", REGIONS, arrays(ROWS) | broken(ROWS), "classes"),
    *cases("segments", REGIONS, contents("panoptic/coco/classes.names.json", OF_NAMES), "classes.names.json"),
    *cases("stages", GROUNDING, broken(WORDS) | changed(WORDS, BUT_HALF), "model_final.pth|MODEL.WEIGHTS"),
    *cases("stages", AGAIN, broken(ENCODER) | changed(ENCODER, BUT_HALF), "model_final.pth"),
    *cases("stages", FVLM, broken(CLIP) | changed(CLIP, CLIP_WEIGHTS), "clip.pt"),
    *(case for file, run in TEXTS.items() for case in cases("texts", run, broken(file), file.rpartition("/")[2])),
]  # fmt: skip
