"""Entry points as calls that return plain values, equal for equal behaviour."""

import contextlib
import io
import json
import logging
import os
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog

import build_neighbours
import clim_commands.eval  # noqa: F401  what children need is imported before they are forked
import clim_commands.export  # noqa: F401
import clim_commands.inspect  # noqa: F401
import clim_commands.train  # noqa: F401
import index_pairs
import parse_nouns
import prepare_ovcoco
from clim.data.datasets import register_own_set
from clim.data.images import UnreadableImage, read_image
from clim.data.own_data import read_data, register_data
from clim.detector import Detector
from clim.engine import Trainer, load_config  # noqa: F401
from clim.evaluation import evaluate  # noqa: F401
from clim.text import CaptionCache, LazyTower, build_text_tower
from clim_commands.main import run as command
from clim_commands.predict import read_classes
from experiments.training import open_record

from .damage import put
from .runner import Entry
from .world import CONFIGS, RECORD_SETTINGS, TINY

torch.set_num_threads(1)
CLIM, CACHE = str(CONFIGS / "mini/detic_clim.yaml"), "datasets/mini/metadata/captions_minilm"


def plain(value, world: Path):
    """``value`` in json's types, without the world's own path."""
    if isinstance(value, dict):
        return {str(k): plain(v, world) for k, v in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor | np.generic):
        return value.tolist()
    if isinstance(value, str | Path):
        return str(value).replace(str(world), "")
    if isinstance(value, list | tuple | set):
        return [plain(v, world) for v in value]
    return value


def own(world: Path, data: str, masks: bool = False) -> dict:
    """{set/image: record} of a data.yaml's sets."""
    logging.basicConfig(level=logging.INFO)
    register_data(content := read_data(world / "own" / data), masks=masks)
    found = {}
    for one in content.sets:
        for record in DatasetCatalog.get(one.name):
            kept = plain(record, world)
            if one.kind in ("YOLO", "VOC", "table", "files"):
                del kept["image_id"]  # a place in the list
            for annotation in kept.get("annotations", ()):
                annotation["iscrowd"] = annotation.get("iscrowd", 0)
            found[f"{one.part}/{Path(record['file_name']).name}"] = kept
    return found


def registered(world: Path, kind: str, file: str, images: str = "own/images") -> dict:
    """{image: record} of a set of DATASETS.OWN."""
    logging.basicConfig(level=logging.INFO)
    register_own_set("case", kind, str(world / file), str(world / images))
    return {Path(record["file_name"]).name: plain(record, world) for record in DatasetCatalog.get("case")}


def caption_images(world: Path) -> dict:
    """{image: its size} of a set of pairs, whose images are decoded."""
    found = registered(world, "captions", "own/captions.json")
    for record in DatasetCatalog.get("case"):
        name = Path(record["file_name"]).name
        try:
            found[name] = read_image(record["file_name"]).image.shape
        except UnreadableImage as error:
            del found[name]
            print(error)
    return found


def train(world: Path, *opts: str, config: str = CLIM) -> list:
    """Losses of all steps."""
    flags, opts = [word for word in opts if word[:2] == "--"], [word for word in opts if word[:2] != "--"]
    keys = [*TINY, "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()", "OUTPUT_DIR", "out", "SOLVER.CHECKPOINT_PERIOD", "0"]
    command(["train", *flags, "--config-file", config, *keys, *opts])
    out = Path(dict(zip(opts[::2], opts[1::2], strict=True)).get("OUTPUT_DIR", "out"))
    lines = map(json.loads, (out / "metrics.json").read_text().splitlines())
    return [{k: v for k, v in line.items() if "loss" in k or k == "iteration"} for line in lines]


def resume(world: Path, pointer: str = "") -> list:
    """Losses of a run that continues after its first step, or from its last_checkpoint as it is."""
    if not pointer:
        put(world / "run/last_checkpoint", "model_0000000.pth")
    return train(world, "--resume", "OUTPUT_DIR", "run")


def evaluation(world: Path, *opts: str) -> dict:
    """The figures and detections of ``clim eval``."""
    with contextlib.redirect_stdout(io.StringIO()):
        command(["eval", "--weights", "run/model_final.pth", "--output", "out", *opts])
    return {str(file): json.loads(file.read_text()) for file in sorted(Path("out").rglob("*.json"))}


def predict(world: Path, *words: str, source: str = "own/images") -> dict:
    """{image: its detections} of ``clim predict``."""
    fixed = ["--weights", "run/model_final.pth", "--threshold", "0", "--input", source]
    command(["predict", *fixed, "--output", "out", *words])
    output = words[words.index("--output") + 1] if "--output" in words else "out"
    content = json.loads(Path(output, "predictions.json").read_text())
    return {os.path.basename(image["file_name"]): image["detections"] for image in content["images"]}


def detector(world: Path) -> dict:
    """{image: its detections} of the Python API."""
    found = Detector("run/model_final.pth", device="cpu").predict("own/images", threshold=0.0)
    print(found.skipped)
    return {Path(result.file_name).name: result.to_dict()["detections"] for result in found}


def inspect(world: Path, *words: str) -> str:
    """The tables of ``clim inspect``."""
    with contextlib.redirect_stdout(out := io.StringIO()):
        command(["inspect", *words])
    print(out.getvalue())
    return out.getvalue().replace(str(world), "")


def tower(world: Path, name: str, pretrained: str = "") -> list:
    """Embeddings of two texts."""
    return build_text_tower(name=name, pretrained=pretrained).encode(["a dog", "kites"]).tolist()


def cached(world: Path) -> list:
    """Embeddings of the pairs' captions from the cache on disk."""
    pairs = json.loads((world / "datasets/mini/annotations/captions_pairs_tags.json").read_bytes())["images"]
    found = CaptionCache(LazyTower(name="minilm", pretrained="", directory=world / CACHE), world / CACHE)
    return found.encode([caption for image in pairs for caption in image["captions"]]).tolist()


def index(world: Path) -> dict:
    """The records of a new index of the shards."""
    words = ["--shards", "own/shards", "--output", "out/index", "--tag-rule", "none", "--workers", "1"]
    index_pairs.main(["shards", *words])
    return registered(world, "shards", "out/index", "own/shards")


def written(main, *words: str):
    """A call of a tool whose json is the result; an argument is another --output."""

    def function(world: Path, output: str = "out/written.json"):
        main([*words, "--output", output])
        return json.loads(Path(output).read_text())

    return function


def neighbours(world: Path) -> list:
    """tools/build_neighbours.py."""
    words = ["--dataset", "mini_ov_captions", "--by", "text", "--name", "minilm", "--pretrained", "", "--cache", CACHE]
    build_neighbours.main([*words, "--k", "3", "--output", "out/x.npy", "--device", "cpu"])
    return np.load("out/x.npy").tolist()


def export(world: Path, *words: str) -> bool:
    """``clim export``."""
    command(["export", "--weights", "run/model_final.pth", "--output", "out/model.pt2", *words])
    return Path("out/model.pt2").is_file()


OWN = {kind: Entry(f"own {kind}", own, (f"{kind}.yaml",)) for kind in "coco lvis yolo voc json table files".split()}
MASKS = Entry("own masks", own, ("coco.yaml", True))
KINDS = {"boxes": "boxes", "lvis": "lvis", "regions": "boxes", "pseudo_labels": "boxes", "captions": "captions"}
REGISTERED = {kind: Entry(f"set of {kind}", registered, (kind, f"own/{file}.json")) for kind, file in KINDS.items()}
CAPTIONS, CAPTION_IMAGES = REGISTERED["captions"], Entry("images of pairs", caption_images)
SHARDS = Entry("set of shards", registered, ("shards", "own/index", "own/shards"))
KEYS = "MODEL.TEXT.CACHE= DATALOADER.CAPTIONS_PER_GPU=0 DATALOADER.MOSAICS_PER_GPU=0 MODEL.METHOD.NAME="
BOXES_ALONE = [part for pair in KEYS.split() for part in pair.split("=")]
TRAIN, RESUME = Entry("train", train, out=("out", CACHE)), Entry("resume", resume, out=("run", CACHE))
PHOTO_TRAIN = Entry("train on photos", train, ("DATASETS.DATA", "own/photos.yaml", *BOXES_ALONE))
EVAL = Entry("eval", evaluation, ("DATASETS.TEST", "('mini_ov_val',)"))
PHOTO_EVAL = Entry("eval of photos", evaluation, ("DATASETS.DATA", "own/photos.yaml"))
PREDICT, DETECTOR = Entry("predict", predict), Entry("Detector", detector)
PHOTO_PREDICT = Entry("predict photos", lambda world: predict(world, source="own/photos"))
INSPECT = Entry("inspect", inspect, ("own/coco.yaml",))
CONFIG = Entry("config", config := lambda world, file, *opts: load_config(file, list(opts)).dump(), (CLIM,))
FORMS = ("txt", "csv", "json", "yaml")
WORDS = {
    f"words.{form}": Entry("words", lambda world, file: read_classes(file), (f"words/words.{form}",)) for form in FORMS
}
CLIP, SAFE = (Entry("CLIP", tower, ("clip/tiny.json", f"clip/weights.{form}")) for form in ("pt", "safetensors"))
BERT, CACHED = Entry("BERT", tower, ("clip/bert",)), Entry("cache", cached, out=(CACHE,))
INDEX, NEIGHBOURS = Entry("index_pairs shards", index), Entry("build_neighbours", neighbours, out=("out", CACHE))
of_json, of_table = (
    ("json", "--json", "own/captions.json"),
    ("tsv", "--tsv", "own/captions.tsv", "--images", "own/images"),
)
PAIRS, TABLE_PAIRS = (
    Entry(f"index_pairs {words[0]}", written(index_pairs.main, *words, "--keep-untagged"))
    for words in (of_json, of_table)
)
NOUNS = Entry("parse_nouns", written(parse_nouns.main, "--captions", "own/captions.json", "--min-count", "1"))
RECORD = Entry("record of a run", lambda world: open_record(world / "record", RECORD_SETTINGS))
EXPORT = Entry("export", export)
OVCOCO = Entry(
    "prepare_ovcoco",
    lambda world: prepare_ovcoco.prepare(world / "datasets/source", world / "datasets"),
    out=("datasets/coco",),
)
