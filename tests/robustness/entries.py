"""Entry points as calls that return plain values, equal for equal behaviour."""

import contextlib
import io
import json
import logging
import os
from pathlib import Path

import numpy as np
import torch

import clim_commands.eval  # noqa: F401  what children need is imported before they are forked
import clim_commands.export  # noqa: F401
import clim_commands.inspect  # noqa: F401
import clim_commands.predict  # noqa: F401
import clim_commands.train  # noqa: F401
from clim.detector import Detector
from clim.engine import Trainer, load_config  # noqa: F401
from clim.evaluation import evaluate  # noqa: F401
from clim_commands.main import run as command

from .damage import put
from .runner import Entry
from .world import CONFIGS, TINY

torch.set_num_threads(1)
CLIM = str(CONFIGS / "mini/detic_clim.yaml")


def plain(value, world: Path):
    """``value`` in json's types, without the world's own path."""
    if isinstance(value, dict):
        return {str(k): plain(v, world) for k, v in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str | Path):
        return str(value).replace(str(world), "")
    if isinstance(value, list | tuple | set) or (hasattr(value, "__getitem__") and hasattr(value, "__len__")):
        return [plain(v, world) for v in (value[i] for i in range(len(value)))]
    return value


def own(world: Path, data: str, masks: bool = False) -> dict:
    """The records of a data.yaml's sets: {set/image: record}."""
    from detectron2.data import DatasetCatalog

    from clim.data.own_data import read_data
    from clim.data.own_sets import register_data

    logging.basicConfig(level=logging.INFO)
    content = read_data(world / "own" / data)
    register_data(content, masks=masks)
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
    """The records of a set of DATASETS.OWN."""
    from detectron2.data import DatasetCatalog

    from clim.data.datasets import register_own_set

    logging.basicConfig(level=logging.INFO)
    register_own_set("case", kind, str(world / file), str(world / images))
    return {Path(record["file_name"]).name: plain(record, world) for record in DatasetCatalog.get("case")}


def caption_images(world: Path) -> dict:
    """{image: its size} of the images of a set of pairs, which are decoded."""
    from detectron2.data import DatasetCatalog

    from clim.data.images import UnreadableImage, read_image

    registered(world, "captions", "own/captions.json")
    found = {}
    for record in DatasetCatalog.get("case"):
        try:
            found[Path(record["file_name"]).name] = read_image(record["file_name"]).image.shape
        except UnreadableImage as error:
            print(error)
    return found


def train(world: Path, *opts: str, config: str = CLIM) -> list:
    """Losses of all steps."""
    keys = [*TINY, "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()", "OUTPUT_DIR", "out", "SOLVER.CHECKPOINT_PERIOD", "0"]
    flags = [word for word in opts if word.startswith("--")]
    command(["train", *flags, "--config-file", config, *keys, *(word for word in opts if not word.startswith("--"))])
    out = Path(dict(zip(opts[::2], opts[1::2], strict=False)).get("OUTPUT_DIR", "out"))
    lines = map(json.loads, (out / "metrics.json").read_text().splitlines())
    return [{k: v for k, v in line.items() if "loss" in k or k == "iteration"} for line in lines]


def evaluation(world: Path, *opts: str, weights: str = "run/model_final.pth") -> dict:
    """The figures and detections of ``clim eval``."""
    with contextlib.redirect_stdout(io.StringIO()):
        command(["eval", "--weights", weights, "--output", "out", *opts])
    files = sorted(Path("out").rglob("*.json"))
    return {str(file): json.loads(file.read_text()) for file in files}


def predict(world: Path, *words: str, source: str = "own/images", weights: str = "run/model_final.pth") -> dict:
    """{image: its detections} of ``clim predict``."""
    command(["predict", "--weights", weights, "--threshold", "0", "--output", "out", "--input", source, *words])
    output = words[words.index("--output") + 1] if "--output" in words else "out"
    content = json.loads(Path(output, "predictions.json").read_text())
    return {os.path.basename(image["file_name"]): image["detections"] for image in content["images"]}


def photos(world: Path) -> dict:
    """:func:`predict` of the photos that own/photos.yaml lists."""
    return predict(world, source="own/photos")


def detector(world: Path, source="own/images", weights: str = "run/model_final.pth", classes=None, **options) -> dict:
    """{image: its detections} of the Python API."""
    found = Detector(weights, classes=classes, device="cpu").predict(source, threshold=0.0, **options)
    print(found.skipped)
    return {Path(result.file_name).name: result.to_dict()["detections"] for result in found}


def config(world: Path, file: str = "", *opts: str) -> str:
    """The config that a run would have."""
    return load_config(str(file), list(opts)).dump().replace(str(world), "")


def inspect(world: Path, *words: str) -> str:
    """The tables of ``clim inspect``."""
    with contextlib.redirect_stdout(out := io.StringIO()):
        command(["inspect", *words])
    print(out.getvalue())
    return out.getvalue().replace(str(world), "")


def index(world: Path) -> list:
    """The records of a new index of the shards."""
    import index_pairs

    words = ["--shards", "own/shards", "--output", "out/index", "--tag-rule", "none", "--workers", "1"]
    index_pairs.main(["shards", *words])
    return registered(world, "shards", "out/index", "own/shards")


def ovcoco(world: Path) -> str:
    """The report of datasets/prepare_ovcoco.py."""
    import prepare_ovcoco

    made = prepare_ovcoco.prepare(world / "datasets/source", world / "datasets")
    return json.dumps(made)


def pairs_json(world: Path, output: str = "out/pairs.json") -> dict:
    """tools/index_pairs.py json."""
    import index_pairs

    words = ["--json", "own/captions.json", "--output", output, "--tag-rule", "released", "--keep-untagged"]
    index_pairs.main(["json", *words])
    return json.loads(Path(output).read_text())


def pairs_table(world: Path) -> dict:
    """tools/index_pairs.py tsv."""
    import index_pairs

    words = ["--tsv", "own/captions.tsv", "--images", "own/images", "--output", "out/pairs.json", "--keep-untagged"]
    index_pairs.main(["tsv", *words])
    return json.loads(Path("out/pairs.json").read_text())


def nouns(world: Path, output: str = "out/nouns.json") -> dict:
    """tools/parse_nouns.py."""
    import parse_nouns

    parse_nouns.main(["--captions", "own/captions.json", "--min-count", "1", "--output", output])
    return json.loads(Path(output).read_text())


def neighbours(world: Path) -> list:
    """tools/build_neighbours.py."""
    import build_neighbours

    words = ["--dataset", "mini_ov_captions", "--by", "text", "--name", "minilm", "--pretrained", "", "--cache", CACHE]
    build_neighbours.main([*words, "--k", "3", "--output", "out/x.npy", "--device", "cpu"])
    return np.load("out/x.npy").tolist()


def record(world: Path) -> str:
    """The record of a finished run in a folder of experiments, which must stay."""
    from experiments.training import open_record

    settings = {"config": "SEED: 0\n", "inputs": {}}
    return json.dumps(open_record(world / "record", settings))


def export(world: Path) -> str:
    """``clim export``."""
    command(["export", "--weights", "run/model_final.pth", "--output", "out/model.pt2", "MODEL.DEVICE", "cpu"])
    return "exported"


def resume(world: Path, pointer: str = "") -> list:
    """Losses of a run that continues after its first step."""
    if not pointer:
        put(world / "run/last_checkpoint", "model_0000000.pth")
    return train(world, "--resume", "OUTPUT_DIR", "run")


def tower(world: Path, name: str, pretrained: str = "") -> list:
    """Embeddings of two texts."""
    from clim.text import build_text_tower

    return build_text_tower(name=name, pretrained=pretrained).encode(["a dog", "kites"]).tolist()


def cached(world: Path) -> list:
    """Embeddings of the pairs' captions from the cache on disk."""
    from clim.text import CaptionCache, LazyTower

    folder = world / CACHE
    pairs = json.loads((world / "datasets/mini/annotations/captions_pairs_tags.json").read_bytes())["images"]
    found = CaptionCache(LazyTower(name="minilm", pretrained="", directory=folder), folder)
    return found.encode([caption for image in pairs for caption in image["captions"]]).numpy().round(4).tolist()


def vocabulary(world: Path, text: str) -> object:
    """What --vocabulary means."""
    from clim_commands.predict import read_classes

    return read_classes(text)


OWN = {kind: Entry(f"own {kind}", own, (f"{kind}.yaml",)) for kind in ("coco", "lvis", "yolo", "voc")}
OWN |= {kind: Entry(f"own captions {kind}", own, (f"{kind}.yaml",)) for kind in ("json", "table", "files")}
MASKS = Entry("own masks", own, ("coco.yaml", True))
REGISTERED = {
    kind: Entry(f"registered {kind}", registered, (kind, file))
    for kind, file in {
        "boxes": "own/boxes.json", "lvis": "own/lvis.json", "regions": "own/boxes.json",
        "pseudo_labels": "own/boxes.json", "captions": "own/captions.json",
    }.items()
}  # fmt: skip
CACHE = "datasets/mini/metadata/captions_minilm"
TRAIN = Entry("train", train, out=("out", "output", CACHE))
PHOTOS = ["DATASETS.DATA", "own/photos.yaml"]
CAPTIONS, SHARDS = REGISTERED["captions"], Entry("registered shards", registered, ("shards", "own/index", "own/shards"))
CAPTION_IMAGES = Entry("images of pairs", caption_images)
INDEX = Entry("index_pairs shards", index, out=("out",))
WORDS = {
    f"words.{kind}": Entry("words", vocabulary, (f"words/words.{kind}",)) for kind in ("txt", "csv", "json", "yaml")
}
PHOTO_EVAL = Entry("eval of photos", evaluation, tuple(PHOTOS))
PHOTO_TRAIN = Entry("training on photos", train, (
    *PHOTOS, "MODEL.TEXT.CACHE", "", "DATALOADER.CAPTIONS_PER_GPU", "0", "DATALOADER.MOSAICS_PER_GPU", "0", "MODEL.METHOD.NAME", "",
))  # fmt: skip
PHOTO_PREDICT = Entry("predict photos", photos)
EVAL = Entry("eval", evaluation, ("DATASETS.TEST", "('mini_ov_val',)"))
PREDICT = Entry("predict", predict)
DETECTOR = Entry("Detector", detector)
CONFIG = Entry("config", config, (CLIM,))
INSPECT = Entry("inspect", inspect, ("own/coco.yaml",))
CLIP = Entry("CLIP", tower, ("clip/tiny.json", "clip/weights.pt"))
SAFE = Entry("CLIP", tower, ("clip/tiny.json", "clip/weights.safetensors"))
BERT = Entry("BERT", tower, ("clip/bert",))
CACHED = Entry("cache", cached, out=(CACHE,))
RESUME = Entry("resume", resume, out=("run", "output", CACHE))
OVCOCO = Entry("prepare_ovcoco", ovcoco, out=("datasets/coco",))
PAIRS, TABLE_PAIRS = Entry("index_pairs json", pairs_json), Entry("index_pairs tsv", pairs_table)
NOUNS, NEIGHBOURS = Entry("parse_nouns", nouns), Entry("build_neighbours", neighbours)
RECORD, EXPORT = Entry("record of a run", record), Entry("export", export)
