"""Fixtures of many tests: photos on disk, text towers and tiny CLIPs with random weights, tiny configs."""

import hashlib
import io
import json
import string
import tarfile
from pathlib import Path

import cv2
import numpy as np
import open_clip
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes
from PIL import Image
from timm.models import Eva, VisionTransformer, register_model
from torch.nn import functional as F
from transformers import BertConfig, BertModel, BertTokenizerFast

from clim.config import add_clim_config
from clim.data.datasets import register_own_set
from clim.engine import load_config
from clim.files import write_json
from clim.text.clip import clip_config
from mini.concepts import CONCEPTS
from mini.generate import set_up_mini

CONFIGS = Path(__file__).parents[1] / "configs"
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION = {
    "vit": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 4},
    "resnet": {"image_size": 64, "width": 8, "layers": [1, 2, 1, 1]},
    "timm": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None, "image_size": 160},
}
# timm's towers in small, with the options of those in open_clip: class, arguments, open_clip's pool and projection.
SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
ROPE = {"use_rot_pos_emb": True, "ref_feat_shape": (4, 4)}
SUB_NORM = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True}
PE = {"attn_type": "rope", "use_pre_transformer_norm": True, "rope_grid_offset": 1.0, "rope_grid_indexing": "xy"}
TIMM = {
    "eva01": (Eva, {}, "token", None),
    "eva02": (Eva, ROPE | SUB_NORM, "token", None),
    "eva02e": (Eva, {"use_post_norm": True}, "token", None),
    "pe": (Eva, ROPE | PE | {"attn_pool_num_heads": 4}, "map", None),
    "siglip": (VisionTransformer, {"class_token": False}, "map", "none"),
    "gap": (VisionTransformer, {"class_token": False, "reg_tokens": 1, "init_values": 0.1}, "avg", "linear"),
    "mobileclip": (VisionTransformer, {"pre_norm": True, "drop_path_rate": 0.5}, "token", None),
}


def register_tiny(kind):
    make, arguments, pool, proj = TIMM[kind]

    def build(pretrained=False, num_classes=12, global_pool=pool, drop_path_rate=0.0, **_):
        given = {"num_classes": num_classes, "global_pool": global_pool, "drop_path_rate": drop_path_rate}
        trunk = make(**SIZE | arguments | given)
        trunk.default_cfg = {}
        return trunk

    build.__name__ = f"tiny_{kind}"
    register_model(build)
    VISION[kind] = {"timm_model_name": build.__name__, "timm_pool": pool, "timm_proj": proj, "image_size": 32}


for kind in TIMM:
    register_tiny(kind)


class HashTower:
    """A text tower without weights: every text has its own direction; ``asked`` lists the calls."""

    fingerprint = "hash"

    def __init__(self, dim):
        self.dim = dim
        self.asked = []

    def encode(self, texts):
        self.asked.append(list(texts))
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") for text in texts]
        rows = [torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return F.normalize(torch.stack(rows), dim=1) if rows else torch.zeros(0, self.dim)


@pytest.fixture(scope="session")
def hash_tower():
    """``hash_tower(dim)``."""
    return HashTower


class ShiftingCascade:
    """RoI heads with one stage more than ``shifts``: stage k embeds a box as box · weights[k], and then adds shifts[k].

    ``pooled`` lists the boxes of each image in each stage.
    """

    def __init__(self, dim, *shifts):
        self.shifts = shifts
        self.weights = torch.randn(len(shifts) + 1, 4, dim, generator=torch.Generator().manual_seed(3))
        self.pooled = []

    def embed_stages(self, features, boxes, *, image_sizes=None, refine=None):
        for weight, shift in zip(self.weights, [*self.shifts, None], strict=True):
            self.pooled.append([of_image.tensor.tolist() for of_image in boxes])
            yield Boxes.cat(boxes).tensor @ weight
            if shift is not None:
                moved = [Boxes(of_image.tensor + torch.tensor(shift)) for of_image in boxes]
                for of_image, size in zip(moved, image_sizes, strict=True):
                    of_image.clip(size)
                boxes = refine(moved)


@pytest.fixture(scope="session")
def cascade():
    """``cascade(dim, shift of x0, y0, x1, y1 in px, …)``."""
    return ShiftingCascade


@pytest.fixture(scope="session")
def tiny_json(tmp_path_factory):
    """``tiny_json("vit", "resnet" or one of TIMM, key=value, …)``: path of a json in open_clip's format, D = 12."""

    def write(kind, *, vision=(), text=(), **changes):
        config = {
            "embed_dim": 12,
            "quick_gelu": True,
            "vision_cfg": VISION[kind] | dict(vision),
            "text_cfg": TEXT | dict(text),
        }
        path = tmp_path_factory.mktemp("clip") / f"tiny-{kind}.json"
        path.write_text(json.dumps(config | changes))
        return str(path)

    return write


@pytest.fixture(scope="session")
def random_clip():
    """``random_clip(name or json path, seed)``: an open_clip model whose every weight matters."""

    def make(name, seed=0):
        torch.manual_seed(seed)
        config = clip_config(name, key="name")
        if not name.endswith(".json"):
            config["text_cfg"] = TEXT  # a full text half would take longer than the test
        model = open_clip.CLIP(
            embed_dim=config["embed_dim"],
            vision_cfg=config["vision_cfg"],
            text_cfg=config["text_cfg"],
            quick_gelu=config.get("quick_gelu", False),
        )
        for module in model.modules():  # open_clip starts norms as identities and biases at zero
            for weight in module.parameters(recurse=False):
                if weight.ndim == 1:
                    weight.data += 0.1 * torch.randn_like(weight)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.data.uniform_(0.3, 0.6)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """Folder of a random two-layer BERT, 32 wide, whose words are "dog", "##s" and single letters."""
    folder = tmp_path_factory.mktemp("bert")
    letters = string.ascii_lowercase
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, "dog", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(words), **size)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_photos(tmp_path_factory):
    """``make_photos([(height, width), …], ext="png")`` writes images and gives their records.

    Every image has its own colours. A record has the fields of detection and of captions.
    """

    def make(sizes, *, ext="png", first_id=100):
        folder, records = tmp_path_factory.mktemp("photos"), []
        for i, (height, width) in enumerate(sizes):
            rng = np.random.default_rng([i, height, width])
            coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
            image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
            path = folder / f"{i}.{ext}"
            assert cv2.imwrite(str(path), image)
            records.append(
                {
                    "file_name": str(path),
                    "height": height,
                    "width": width,
                    "image_id": first_id + i,
                    "captions": [f"picture {i}, caption {j}" for j in range(3)],
                    "tags": [i % 5, 5 + i % 3],
                }
            )
        return records

    return make


@pytest.fixture(scope="session")
def load_cfg(tmp_path_factory):
    """``load_cfg("Detic_C4.yaml", "KEY", value, …)``: one of our configs, with overrides, on the CPU."""
    mini_classes = tmp_path_factory.mktemp("mini_classes") / "cat_info.json"
    info = [{"id": i, "image_count": int(not concept.novel)} for i, concept in enumerate(CONCEPTS)]
    mini_classes.write_text(json.dumps(info))

    def load(name, *overrides):
        cfg = get_cfg()
        add_clim_config(cfg)
        cfg.merge_from_file(str(CONFIGS / name))
        if name.startswith("mini/"):  # the split from a file, so that no mini set has to be there
            cfg.MODEL.OPEN_VOCAB.BASE_CLASSES = str(mini_classes)
        cfg.merge_from_list(["MODEL.DEVICE", "cpu", *overrides])
        return cfg

    return load


@pytest.fixture(scope="session")
def tiny_mini(tmp_path_factory):
    """A data root with a mini benchmark of 12 scenes, 4 of them to test on, and 16 image-text pairs."""
    root = tmp_path_factory.mktemp("tiny_mini")
    set_up_mini(root, seed=7, num_train=12, num_val=4, num_pairs=16, num_cluttered=4, workers=1)
    return root


@pytest.fixture
def tiny_overrides(tmp_path):
    """KEY, VALUE, … that make a run of configs/mini on ``tiny_mini`` a matter of seconds."""
    return [
        "MODEL.WEIGHTS", "",
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "3",
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8",
        "INPUT.MIN_SIZE_TRAIN", "(96,)",
        "INPUT.MIN_SIZE_TEST", "96",
        "INPUT.MOSAIC.SIZE", "128",
        "INPUT.CAPTION.SHORT_SIDE", "64",
        "INPUT.CAPTION.LONG_SIDE", "64",
        "SOLVER.WARMUP_ITERS", "2",
        "SOLVER.STEPS", "()",
        "SOLVER.LOG_PERIOD", "1",
        "SOLVER.CHECKPOINT_PERIOD", "0",
        "OUTPUT_DIR", str(tmp_path / "output"),
    ]  # fmt: skip


@pytest.fixture(scope="session")
def mask_overrides():
    """KEY, VALUE, … that give a tiny C4 detector a cascade of three stages with masks."""
    return [
        "MODEL.ROI_HEADS.NAME", "OpenVocabCascadeROIHeads", "MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.6]",
        "MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "(0.6, 0.7, 0.8)",
        "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", "2",
        "MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.MASK_ON", "True",
        "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "True",
        "MODEL.ROI_MASK_HEAD.NUM_CONV", "1", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8",
    ]  # fmt: skip


@pytest.fixture
def region_overrides(make_photos, tmp_path):
    """KEY, VALUE, … for RegionClip on 4 images with 2 boxes each, of 7 nouns of which a loss sees 3."""
    images, boxes = [], []
    for record in make_photos([(40, 60), (60, 40), (48, 48), (30, 64)]):
        path, number = Path(record["file_name"]), record["image_id"]
        images.append({"id": number, "file_name": path.name, "height": record["height"], "width": record["width"]})
        for n in range(2):
            box = {"category_id": 1 + (number + n) % 7, "bbox": [1 + n, 2, 20, 20]}
            boxes.append({"id": len(boxes), "image_id": number} | box)
    categories = [{"id": k, "name": f"noun {k}"} for k in range(1, 8)]
    write_json(tmp_path / "labels.json", {"images": images, "annotations": boxes, "categories": categories})
    np.save(tmp_path / "nouns.npy", np.random.default_rng(0).normal(size=(7, 384)))
    register_own_set("test_region_clip", "pseudo_labels", str(tmp_path / "labels.json"), str(path.parent))
    yield [
        "MODEL.METHOD.REGION_CLIP.CLASSES", 3, "MODEL.METHOD.REGION_CLIP.EMBEDDINGS", str(tmp_path / "nouns.npy"),
        "DATASETS.REGIONS", ("test_region_clip",), "DATALOADER.REGIONS_PER_GPU", 2, "INPUT.REGIONS.SIZE", 64,
        "DATALOADER.CAPTIONS_PER_GPU", 0,
    ]  # fmt: skip
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.remove("test_region_clip")


@pytest.fixture
def tiny_cfg(tiny_mini, tiny_overrides, monkeypatch):
    """``tiny_cfg("KEY", value, …)``: the frozen config of a tiny Detic + CLIM run."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_mini))

    def load(*overrides, config="mini/detic_clim.yaml"):
        cfg = load_config(str(CONFIGS / config), [*tiny_overrides, *overrides])
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        return cfg

    return load


@pytest.fixture(scope="session")
def encoded():
    """``encoded((width, height), mode="L", fmt="PNG", orientation=6)``: the bytes of an image."""

    def encode(size=(40, 30), *, mode="RGB", fmt="JPEG", orientation=1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels = np.arange(size[0] * size[1] * 3).astype(np.uint8).reshape(size[1], size[0], 3)
        Image.fromarray(pixels).convert(mode).save(file := io.BytesIO(), fmt, exif=exif)
        return file.getvalue()

    return encode


@pytest.fixture(scope="session")
def pair(encoded):
    """``pair(key, caption, ext="png", …)``: the members of an image-text pair, options as for ``encoded``."""

    def members(key, caption="a dog", *, ext="jpg", **image):
        fmt = {"jpg": "JPEG", "jpeg": "JPEG"}.get(ext, ext.upper())
        return [(f"{key}.{ext}", encoded(fmt=fmt, **image)), (f"{key}.txt", caption.encode())]

    return members


@pytest.fixture(scope="session")
def write_shard():
    """``write_shard(path, (name, bytes), …)``: a tar of these members."""

    def write(path, *members):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    return write
