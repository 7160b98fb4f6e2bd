"""The undamaged world of all cases: a folder with small data of every format and a run of two steps of a tiny model.

Layout::

    datasets/mini/          the mini benchmark with a few images (DETECTRON2_DATASETS is datasets/)
    own/                    images, and their boxes and captions in all formats of a data.yaml
    run/                    OUTPUT_DIR of a training of Detic + CLIM: checkpoints, state, metrics
    words/ photos/ clip/    word lists; photos of all formats; files of weights
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
    "SOLVER.STEPS", "()", "SOLVER.LOG_PERIOD", "1", "SOLVER.CHECKPOINT_PERIOD", "1", "DATALOADER.DETECTION_PER_GPU", "1",
    "DATALOADER.CAPTIONS_PER_GPU", "1", "DATALOADER.MOSAICS_PER_GPU", "1", "INPUT.MOSAIC.GRIDS", "(2,)",
]  # fmt: skip
CLASSES = ("dog", "fire hydrant", "kite")
SIZES = ((60, 48), (48, 60), (64, 64), (50, 40))  # width, height of the own images


def build(folder: Path) -> Path:
    """Make the world in a child, because a process that has trained must not fork."""
    if not (folder / "done").is_file():
        child = os.fork()
        if child == 0:
            code = 1
            folder.mkdir(parents=True, exist_ok=True)
            for number in (1, 2):
                os.dup2(os.open(folder / "made.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            try:
                _build(folder)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0, f"{folder} could not be made: see made.log"
    return folder


def _build(folder: Path) -> None:
    import index_pairs
    from mini.generate import set_up_mini

    data = folder / "datasets"
    data.mkdir(parents=True)
    set_up_mini(data, seed=7, num_train=6, num_val=3, num_pairs=8, num_cluttered=2, workers=1)
    _own(folder / "own")
    _words(folder / "words")
    _photos(folder / "own")
    _towers(folder / "clip")
    _coco(folder / "datasets/source")
    (folder / "record").mkdir()
    record = {"settings": {"config": "SEED: 0\n", "inputs": {}}, "seconds": 1.5, "results": {"AP50_novel": 30.0}}
    (folder / "record/results.json").write_text(json.dumps(record))
    (folder / "record/model_final.pth").write_bytes(b"weights")
    index_pairs.main(
        ["shards", "--shards", str(folder / "own/shards"), "--output", str(folder / "own/index"), "--tag-rule", "none"]
    )
    _run(folder)
    (folder / "done").touch()


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    """Rectangles of few colours."""
    rng = np.random.default_rng(number)
    image = np.full((size[1], size[0], 3), rng.integers(256, size=3), np.uint8)
    for _ in range(3):
        x, y = rng.integers(0, size[0] - 12), rng.integers(0, size[1] - 12)
        image[y : y + 16, x : x + 20] = rng.integers(256, size=3)
    return Image.fromarray(image)


def _own(own: Path) -> None:
    """The same images with boxes as COCO's json, YOLO's and VOC's files, and captions as json, table, files, shard."""
    for name in ("images", "labels", "voc", "texts", "shards"):
        (own / name).mkdir(parents=True)
    images, annotations, pairs = [], [], []
    for i, (width, height) in enumerate(SIZES):
        name = f"{i}.jpg"
        picture(i, (width, height)).save(own / "images" / name, quality=95)
        images.append({"id": i + 1, "file_name": name, "height": height, "width": width})
        box, category = [4.0 + i, 6.0, 20.0, 24.0], i % 3
        polygon = [box[0], box[1], box[0] + 20, box[1], box[0] + 20, box[1] + 24, box[0], box[1] + 24]
        annotations.append(
            {"id": 10 + i, "image_id": i + 1, "category_id": category + 1, "bbox": box, "area": 480.0, "iscrowd": 0,
             "segmentation": [polygon]}
        )  # fmt: skip
        x, y, w, h = (value / side for value, side in zip(box, (width, height) * 2, strict=True))
        (own / f"labels/{i}.txt").write_text(f"{category} {x + w / 2} {y + h / 2} {w} {h}\n")
        corners = zip(("xmin", "ymin", "xmax", "ymax"), (5 + i, 7, 24 + i, 30), strict=True)
        bndbox = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        xml = f"<object><name>{CLASSES[category]}</name><bndbox>{bndbox}</bndbox></object>"
        (own / f"voc/{i}.xml").write_text(f"<annotation>{size}{xml}</annotation>")
        texts = [f"a {CLASSES[category]} in picture {i}", f"the {CLASSES[category]}"]
        pairs.append(images[-1] | {"captions": texts, "pos_category_ids": [category + 1]})
        (own / f"texts/{i}.txt").write_text("\n".join(texts))
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    listed = {"images": images, "annotations": annotations, "categories": categories}
    (own / "boxes.json").write_text(json.dumps(listed))
    lvis = [c | {"frequency": "r" if c["id"] == 3 else "f", "image_count": 2} for c in categories]
    images = [i | {"not_exhaustive_category_ids": [], "neg_category_ids": []} for i in images]
    (own / "lvis.json").write_text(json.dumps(listed | {"images": images, "categories": lvis}))
    (own / "captions.json").write_text(json.dumps({"images": pairs, "categories": categories}))
    (own / "captions.tsv").write_text("".join(f"{i}.jpg\ta {CLASSES[i % 3]}\n" for i in range(len(SIZES))))
    with tarfile.open(own / "shards/00000.tar", "w") as tar:
        for i in range(len(SIZES)):
            tar.add(own / f"images/{i}.jpg", f"{i}.jpg")
            tar.add(own / f"texts/{i}.txt", f"{i}.txt")
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(CLASSES))
    kinds = {"coco": "boxes.json", "lvis": "lvis.json", "yolo": "labels", "voc": "voc"}
    for kind, boxes in kinds.items():
        sets = "".join(f"{part}: {{images: images, boxes: {boxes}}}\n" for part in ("train", "val"))
        (own / f"{kind}.yaml").write_text(f"names:\n{names}novel: [kite]\n{sets}")
    for kind, texts in {"json": "captions.json", "table": "captions.tsv", "files": "texts"}.items():
        line = f"captions: {{images: images, captions: {texts}}}\n"
        (own / f"{kind}.yaml").write_text(f"names:\n{names}{line}")


def _photos(own: Path) -> None:
    """Two images without loss, one grey, and their boxes."""
    (own / "photos").mkdir()
    picture(8, (64, 52)).convert("L").save(own / "photos/grey.png")
    picture(9, (52, 64)).save(own / "photos/colour.png")
    images = [
        {"id": 1, "file_name": "grey.png", "height": 52, "width": 64},
        {"id": 2, "file_name": "colour.png", "height": 64, "width": 52},
    ]
    boxes = [
        {"id": i, "image_id": i, "category_id": i, "bbox": [8, 9, 30, 31], "area": 930, "iscrowd": 0} for i in (1, 2)
    ]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    (own / "photos.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    sets = "".join(f"{part}: {{images: photos, boxes: photos.json}}\n" for part in ("train", "val"))
    (own / "photos.yaml").write_text(sets)


def _coco(source: Path) -> None:
    """COCO 2017 with two images."""
    from clim.data.categories import COCO_CATEGORIES

    (source / "annotations").mkdir(parents=True)
    categories = [{"id": key, "name": name} for key, name in COCO_CATEGORIES]
    for part in ("train2017", "val2017"):
        (source / part).mkdir()
        images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 40, "width": 50} for i in (1, 2)]
        for image in images:
            picture(image["id"], (50, 40)).save(source / part / image["file_name"])
        boxes = [
            {"id": i, "image_id": 1 + i % 2, "category_id": key, "bbox": [3, 4, 20, 21], "area": 420, "iscrowd": 0}
            for i, key in enumerate((1, 5, 18, 2))
        ]
        captions = [{"id": i, "image_id": i, "caption": "a dog beside a person on a bicycle"} for i in (1, 2)]
        content = {"images": images, "annotations": boxes, "categories": categories}
        (source / f"annotations/instances_{part}.json").write_text(json.dumps(content))
        content = {"images": images, "annotations": captions}
        (source / f"annotations/captions_{part}.json").write_text(json.dumps(content))


def _words(words: Path) -> None:
    words.mkdir()
    (words / "words.txt").write_text("\n".join(CLASSES))
    (words / "words.csv").write_text("name,count\n" + "".join(f"{name},3\n" for name in CLASSES))
    (words / "words.json").write_text(json.dumps(list(CLASSES)))
    (words / "words.yaml").write_text("".join(f"- {name}\n" for name in CLASSES))


def _towers(folder: Path) -> None:
    """A CLIP of 12 dimensions, as a file of torch.save and of safetensors, and a BERT's folder; random weights."""
    import open_clip
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1}
    tiny = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}
    (folder / "tiny.json").write_text(json.dumps(tiny))
    torch.manual_seed(0)
    weights = open_clip.CLIP(**tiny).state_dict()
    torch.save(weights, folder / "weights.pt")
    save_file({name: value.clone() for name, value in weights.items()}, folder / "weights.safetensors")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "kites"]
    (folder / "bert").mkdir()
    (folder / "bert/vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "bert/vocab.txt")).save_pretrained(folder / "bert")
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(words), **size)).save_pretrained(folder / "bert")


def _run(folder: Path) -> None:
    """Train two steps."""
    import train_net

    os.environ["DETECTRON2_DATASETS"] = str(folder / "datasets")
    os.chdir(folder)
    opts = [*TINY, "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()", "OUTPUT_DIR", "run"]
    parser = argparse.ArgumentParser()
    train_net.add_train_options(parser)
    train_net.launch(parser.parse_args(["--config-file", str(CONFIGS / "mini/detic_clim.yaml"), *opts]))
