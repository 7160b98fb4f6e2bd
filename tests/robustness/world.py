"""The undamaged world of all cases: a folder with small data of every format and a run of two steps of a tiny model.

Layout::

    datasets/mini/          the mini benchmark with a few images (DETECTRON2_DATASETS is datasets/)
    own/                    images, and their boxes and captions in all formats of a data.yaml
    run/                    OUTPUT_DIR of a training of Detic + CLIM: checkpoints, state, metrics
    words_run/ clip_run/    the same of OV-RCNN's first stage and of a dual encoder
    panoptic/               COCO's panoptic images, another DETECTRON2_DATASETS
    words/ clip/ record/    word lists; files of weights; a finished run of experiments
"""

import argparse
import json
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = [
    "MODEL.WEIGHTS", "", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "3", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8",
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96",
    "INPUT.MOSAIC.SIZE", "96", "INPUT.CAPTION.SHORT_SIDE", "48", "INPUT.CAPTION.LONG_SIDE", "48",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "10", "SOLVER.WARMUP_ITERS", "1",
    "SOLVER.STEPS", "()", "SOLVER.LOG_PERIOD", "1", "SOLVER.CHECKPOINT_PERIOD", "1", "DATALOADER.DETECTION_PER_GPU",
    "1",
    "DATALOADER.CAPTIONS_PER_GPU", "1", "DATALOADER.MOSAICS_PER_GPU", "1", "INPUT.MOSAIC.GRIDS", "(2,)",
]  # fmt: skip
SMALL = [  # image-text models, which begin with an encoder's own weights
    *TINY, "INPUT.CAPTION.CROP", "48", "INPUT.REGIONS.SIZE", "96", "DATALOADER.DETECTION_PER_GPU", "0",
    "DATALOADER.CAPTIONS_PER_GPU", "5", "DATALOADER.MOSAICS_PER_GPU", "0",
]  # fmt: skip
RUNS = (  # (config of the mini benchmark, OUTPUT_DIR, keys)
    ("detic_clim", "run", (*TINY, "SOLVER.MAX_ITER", "2")),
    ("ovrcnn_clim_pretrain", "words_run", (*SMALL, "SOLVER.MAX_ITER", "1")),
    ("clip_clim", "clip_run", (*SMALL, "SOLVER.MAX_ITER", "1")),
)
RECORD_SETTINGS = {"config": "SEED: 0\n", "inputs": {}}
CLASSES = ("dog", "fire hydrant", "kite")
SIZES = ((60, 48), (48, 60), (64, 64), (50, 40))  # width, height of the own images


def build(folder: Path) -> Path:
    """Make the world in a child, because a process that has trained must not fork."""
    if not (folder / "done").is_file():
        if not (child := os.fork()):
            code = 1
            try:
                write(folder / "made.log", "")
                for number in (1, 2):
                    os.dup2(os.open(folder / "made.log", os.O_WRONLY | os.O_APPEND), number)
                _build(folder)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0, f"{folder} could not be made: see made.log"
    return folder


def _build(folder: Path) -> None:
    import index_pairs
    import train_net
    from mini.generate import set_up_mini

    data, own = folder / "datasets", folder / "own"
    data.mkdir(parents=True)
    set_up_mini(data, seed=7, num_train=6, num_val=3, num_pairs=8, num_cluttered=2, workers=1)
    _own(own)
    _photos(own)
    _towers(folder / "clip")
    _coco(data / "source")
    write(folder / "words/words.txt", "\n".join(CLASSES))
    write(folder / "words/words.csv", "name,count\n" + "".join(f"{name},3\n" for name in CLASSES))
    write(folder / "words/words.json", CLASSES)
    write(folder / "words/words.yaml", "".join(f"- {name}\n" for name in CLASSES))
    record = {"settings": RECORD_SETTINGS, "seconds": 1.5, "results": {"AP50_novel": 30.0}}
    write(folder / "record/results.json", record)
    write(folder / "record/model_final.pth", "weights")
    index_pairs.main(["shards", "--shards", f"{own}/shards", "--output", f"{own}/index", "--tag-rule", "none"])
    os.environ["DETECTRON2_DATASETS"] = str(data)
    os.chdir(folder)
    _panoptic(folder / "panoptic/coco")
    for config, run, keys in RUNS:
        opts = [*keys, "DATASETS.TEST", "()", "OUTPUT_DIR", run]
        parser = argparse.ArgumentParser()
        train_net.add_train_options(parser)
        train_net.launch(parser.parse_args(["--config-file", str(CONFIGS / f"mini/{config}.yaml"), *opts]))
    write(folder / "done", "")


def write(path: Path, content) -> None:
    """A text, or anything else as json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    """Rectangles of few colours."""
    rng = np.random.default_rng(number)
    image = np.full((size[1], size[0], 3), rng.integers(256, size=3), np.uint8)
    for _ in range(3):
        x, y = rng.integers(0, size[0] - 12), rng.integers(0, size[1] - 12)
        image[y : y + 16, x : x + 20] = rng.integers(256, size=3)
    return Image.fromarray(image)


def instances(images: list[dict], categories: list[dict], boxes) -> dict:
    """COCO's json of (image id, category id, box) with a polygon for each box."""
    annotations = []
    for number, (image, category, (x, y, w, h)) in enumerate(boxes, start=10):
        shape = {"area": w * h, "iscrowd": 0, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        annotations.append({"id": number, "image_id": image, "category_id": category, "bbox": [x, y, w, h]} | shape)
    return {"images": images, "annotations": annotations, "categories": categories}


def _own(own: Path) -> None:
    """The same images with boxes as COCO's json, YOLO's and VOC's files, and captions as json, table, files, shard."""
    images, boxes, pairs = [], [], []
    (own / "images").mkdir(parents=True)
    for i, (width, height) in enumerate(SIZES):
        picture(i, (width, height)).save(own / f"images/{i}.jpg", quality=95)
        name, (x, y, w, h) = CLASSES[i % 3], (4.0 + i, 6.0, 20.0, 24.0)
        images.append({"id": i + 1, "file_name": f"{i}.jpg", "height": height, "width": width})
        boxes.append((i + 1, i % 3 + 1, (x, y, w, h)))
        parts = f"{(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}"
        write(own / f"labels/{i}.txt", f"{i % 3} {parts}\n")
        corners = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + w, y + h), strict=True)
        box = "".join(f"<{key}>{value:g}</{key}>" for key, value in corners)
        write(
            own / f"voc/{i}.xml", f"<annotation><object><name>{name}</name><bndbox>{box}</bndbox></object></annotation>"
        )
        texts = [f"a {name} in picture {i}", f"the {name}"]
        pairs.append(images[-1] | {"captions": texts, "pos_category_ids": [i % 3 + 1]})
        write(own / f"texts/{i}.txt", "\n".join(texts))
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    write(own / "boxes.json", instances(images, categories, boxes))
    judged = [image | {"not_exhaustive_category_ids": [], "neg_category_ids": []} for image in images]
    counted = [c | {"frequency": "r" if c["id"] == 3 else "f", "image_count": 2} for c in categories]
    write(own / "lvis.json", instances(judged, counted, boxes))
    write(own / "captions.json", {"images": pairs, "categories": categories})
    write(own / "captions.tsv", "".join(f"{i}.jpg\ta {CLASSES[i % 3]}\n" for i in range(len(SIZES))))
    (own / "shards").mkdir()
    with tarfile.open(own / "shards/00000.tar", "w") as tar:
        for i in range(len(SIZES)):
            tar.add(own / f"images/{i}.jpg", f"{i}.jpg")
            tar.add(own / f"texts/{i}.txt", f"{i}.txt")
    names = f"names: [{', '.join(CLASSES)}]\n"
    for kind, file in {"coco": "boxes.json", "lvis": "lvis.json", "yolo": "labels", "voc": "voc"}.items():
        sets = "".join(f"{part}: {{images: images, boxes: {file}}}\n" for part in ("train", "val"))
        write(own / f"{kind}.yaml", f"{names}novel: [kite]\n{sets}")
    for kind, file in {"json": "captions.json", "table": "captions.tsv", "files": "texts"}.items():
        write(own / f"{kind}.yaml", f"{names}captions: {{images: images, captions: {file}}}\n")


def _photos(own: Path) -> None:
    """Two images without loss, one grey, and their boxes."""
    (own / "photos").mkdir()
    picture(8, (64, 52)).convert("L").save(own / "photos/grey.png")
    picture(9, (52, 64)).save(own / "photos/colour.png")
    sizes = {"grey.png": (52, 64), "colour.png": (64, 52)}
    images = [
        {"id": i, "file_name": n, "height": h, "width": w} for i, (n, (h, w)) in enumerate(sizes.items(), start=1)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    write(own / "photos.json", instances(images, categories, [(i, i, (8.0, 9.0, 30.0, 31.0)) for i in (1, 2)]))
    write(
        own / "photos.yaml", "".join(f"{part}: {{images: photos, boxes: photos.json}}\n" for part in ("train", "val"))
    )


def _coco(source: Path) -> None:
    """COCO 2017 with two images."""
    from clim.data.categories import COCO_CATEGORIES

    categories = [{"id": key, "name": name} for key, name in COCO_CATEGORIES]
    for part in ("train2017", "val2017"):
        (source / part).mkdir(parents=True)
        images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 40, "width": 50} for i in (1, 2)]
        for image in images:
            picture(image["id"], (50, 40)).save(source / part / image["file_name"])
        boxes = [(1 + i % 2, key, (3.0, 4.0, 20.0, 21.0)) for i, key in enumerate((1, 5, 18, 2))]
        write(source / f"annotations/instances_{part}.json", instances(images, categories, boxes))
        captions = [{"id": i, "image_id": i, "caption": "a dog beside a person on a bicycle"} for i in (1, 2)]
        write(source / f"annotations/captions_{part}.json", {"images": images, "annotations": captions})


def _panoptic(coco: Path) -> None:
    """COCO's panoptic validation set with two images, and random embeddings of its 133 classes."""
    from clim.data.categories import COCO_CATEGORIES, COCO_IDS, PANOPTIC_NAMES, STUFF_IDS

    (coco / "val2017").mkdir(parents=True)
    (coco / "annotations/panoptic_val2017").mkdir(parents=True)
    images, annotations, stuff = [], [], min(STUFF_IDS)
    for i in (1, 2):
        images.append({"id": i, "file_name": f"{i:012d}.jpg", "height": 64, "width": 80})
        picture(i, (80, 64)).save(coco / "val2017" / images[-1]["file_name"])
        ids = np.zeros((64, 80, 3), np.uint8)
        ids[:40], ids[10:30, 10:40] = (7, 1, 0), (9, 0, 0)
        Image.fromarray(ids).save(coco / f"annotations/panoptic_val2017/{i:012d}.png")
        things = {"id": 9, "category_id": COCO_IDS[i], "iscrowd": 0, "bbox": [10, 10, 30, 20], "area": 600}
        segments = [things, {"id": 263, "category_id": stuff, "iscrowd": 0, "bbox": [0, 0, 80, 40], "area": 2600}]
        annotations.append({"image_id": i, "file_name": f"{i:012d}.png", "segments_info": segments})
    categories = [{"id": key, "name": name} for key, name in COCO_CATEGORIES]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write(coco / "annotations/panoptic_val2017.json", content)
    write(coco / "classes.names.json", list(PANOPTIC_NAMES))
    rows = np.random.default_rng(0).normal(size=(len(PANOPTIC_NAMES), 384)).astype(np.float32)
    np.save(coco / "classes.npy", rows)


def _towers(folder: Path) -> None:
    """A CLIP of 12 dimensions, as a file of torch.save and of safetensors, and a BERT's folder; random weights."""
    import open_clip
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel, BertTokenizerFast

    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1}
    write(folder / "tiny.json", tiny := {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text})
    torch.manual_seed(0)
    weights = open_clip.CLIP(**tiny).state_dict()
    torch.save(weights, folder / "weights.pt")
    save_file({name: value.clone() for name, value in weights.items()}, folder / "weights.safetensors")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "kites"]
    write(folder / "bert/vocab.txt", "\n".join(words))
    BertTokenizerFast(str(folder / "bert/vocab.txt")).save_pretrained(folder / "bert")
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(words), **size)).save_pretrained(folder / "bert")
