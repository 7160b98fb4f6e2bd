"""Small detectors and what they are trained on; short runs; sampled RoIs; files of a first stage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from clim.checkpoints import SafeCheckpointer
from clim.data.categories import BASE_IDS, COCO_CATEGORIES, NOVEL_IDS
from clim.data.tiles import Tiles
from clim.engine import load_config
from clim.modeling import open_vocab_rcnn
from clim.modeling.box_predictors import OpenVocabOutputLayers, OVRCNNOutputLayers
from clim.modeling.fvlm import FVLMOutputLayers

SMALL = [
    "MODEL.VOCABULARY.EMBEDDINGS", "", "MODEL.WEIGHTS", "",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 40, "MODEL.RPN.POST_NMS_TOPK_TEST", 15,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8,
]  # fmt: skip


ROOT = Path(__file__).parents[2]


class Run:
    """A shipped config with ``keys`` overridden: as a config, and from the command line."""

    def __init__(self, config, keys):
        self.file = str(ROOT / "configs" / config)
        self.overrides = [str(part) for item in keys.items() for part in item]

    def config(self, *more):
        cfg = load_config(self.file, [*self.overrides, *map(str, more)])
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        return cfg

    def command(self, *more, program=("train_net.py", "--config-file")):
        command = [sys.executable, *program, self.file, *self.overrides, *map(str, more)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """``make_run("FVLM_ViTB16_CLIM_COCO.yaml", data root, {key: value})``: a short :class:`Run` on a CPU."""

    def make(config, root, keys):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
        short = {
            "MODEL.DEVICE": "cpu", "SOLVER.REFERENCE_WORLD_SIZE": 0, "SOLVER.MAX_ITER": 2, "SOLVER.LOG_PERIOD": 1,
            "DATALOADER.NUM_WORKERS": 0, "OUTPUT_DIR": tmp_path / "output",
        }  # fmt: skip
        return Run(config, short | keys)

    return make


@pytest.fixture(scope="session")
def read_detections():
    """``read_detections(output folder, test set)``."""
    return lambda folder, name: json.loads((folder / f"inference/{name}/coco_instances_results.json").read_text())


@pytest.fixture(scope="module")
def tiny_coco(tmp_path_factory, make_photos):
    """A data root: six photos to train on, with base objects, and three to test on, one of them with unused objects."""
    root = tmp_path_factory.mktemp("coco_root")
    unused = next(i for i, _ in COCO_CATEGORIES if i not in {*BASE_IDS, *NOVEL_IDS})
    train = [(BASE_IDS[i % 3],) for i in range(6)]
    parts = {
        ("train2017", "zero-shot/instances_train2017_seen_2_oriorder"): train,
        ("val2017", "annotations/instances_val2017"): [(BASE_IDS[0], NOVEL_IDS[0]), (BASE_IDS[1],), (unused,)],
    }
    parts["val2017", "zero-shot/instances_val2017_all_2_oriorder"] = parts["val2017", "annotations/instances_val2017"]
    for (folder, name), classes in parts.items():
        (root / "coco" / folder).mkdir(parents=True, exist_ok=True)
        path = root / "coco" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        records = make_photos([(60, 90), (90, 60), (64, 64)] * (len(classes) // 3), ext="jpg")
        images = [
            {"id": r["image_id"], "file_name": r["file_name"], "height": r["height"], "width": r["width"]}
            for r in records
        ]
        objects = [(image["id"], k) for image, of_image in zip(images, classes, strict=True) for k in of_image]
        annotations = [
            {"id": n, "image_id": i, "category_id": k, "bbox": [8, 9, 40, 30], "area": 1200, "iscrowd": 0}
            for n, (i, k) in enumerate(objects, start=1)
        ]
        categories = [{"id": i, "name": name} for i, name in COCO_CATEGORIES]
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root


class GridEncoder(nn.Module):
    """Names of OV-RCNN's first stage on Detectron2's ResNet, conv1 to res5."""

    def __init__(self, cfg, dim):
        super().__init__()
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
        self.backbone = build_backbone(cfg, ShapeSpec(channels=3))
        self.backbone.stem.conv1.norm.weight *= 1e-4  # untrained residuals grow, and pixels are large already
        self.emb_pred = nn.Linear(2048, dim)

    def forward(self, images):
        return self.backbone(images)["res5"], self.emb_pred


class ImageTextFile(nn.Module):
    """An image-text model as far as its file goes: an encoder and the part of a method."""

    def __init__(self, encoder):
        super().__init__()
        self.image_encoder = encoder
        self.method = nn.Linear(3, 3)


@pytest.fixture(scope="session")
def shaken():
    """``shaken(module)``: in evaluation mode, with other weights than any that a package or a file brings."""

    def shake(module):
        generator = torch.Generator().manual_seed(1)
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.add_(0.02 * value.abs().mean() * torch.randn(value.shape, generator=generator))
        return module.eval()

    return shake


@pytest.fixture(scope="session")
def grid_encoder(load_cfg, shaken):
    """``grid_encoder(dim)``: random; it gives the map (B, 2048, h, w) of images, and the projection."""
    return lambda dim: shaken(GridEncoder(load_cfg("OVRCNN_C4.yaml"), dim))


@pytest.fixture(scope="session")
def save_stage1():
    """``save_stage1(encoder, folder)``: path of a checkpoint of a model around that encoder."""

    def save(encoder, folder):
        SafeCheckpointer(ImageTextFile(getattr(encoder, "encoder", encoder)), str(folder)).save("stage1")
        return str(folder / "stage1.pth")

    return save


@pytest.fixture(scope="session")
def sampled():
    """``sampled(boxes, classes, gt_boxes=None)``: sampled RoIs of one image, as the head's labelling leaves them."""

    def make(boxes, classes, gt_boxes=None):
        instances = Instances((64, 64), proposal_boxes=Boxes(torch.tensor(boxes).float().reshape(-1, 4)))
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        if gt_boxes is not None:
            instances.gt_boxes = Boxes(torch.tensor(gt_boxes).float())
        return instances

    return make


@pytest.fixture(scope="session")
def head_losses():
    """``head_losses(output layers, features, proposals)``: {loss name: scalar}."""

    def losses(head, x, proposals):
        with EventStorage():
            return head.losses(head(x), proposals)

    return losses


PREDICTORS = {
    "cosine": ("BoxSup_C4.yaml", OpenVocabOutputLayers),
    "words": ("OVRCNN_C4.yaml", OVRCNNOutputLayers),
    "fvlm": ("FVLM_ViTB16_CLIP_COCO.yaml", FVLMOutputLayers),
}


@pytest.fixture
def predictor(load_cfg, tmp_path):
    """``predictor("cosine", "words" or "fvlm", "KEY", value, …)``: of features 8 wide and 5 classes of width 6.

    Class embeddings have lengths 1 to 5 and come from a file; with ``vocabulary`` False they wait for a checkpoint.
    """

    def make(kind, *overrides, vocabulary=True, **kwargs):
        rows = torch.nn.functional.normalize(torch.arange(30.0).sin().view(5, 6), dim=1)
        np.save(tmp_path / "classes.npy", (rows * torch.arange(1.0, 6)[:, None]).numpy())
        config, cls = PREDICTORS[kind]
        cfg = load_cfg(
            config, "MODEL.TEXT.DIM", 6, "MODEL.ROI_HEADS.NUM_CLASSES", 5, "MODEL.OPEN_VOCAB.BASE_CLASSES", "",
            "MODEL.VOCABULARY.EMBEDDINGS", str(tmp_path / "classes.npy") if vocabulary else "",
            "MODEL.OVRCNN.TEST_CLASSES", "", *overrides,
        )  # fmt: skip
        torch.manual_seed(0)
        return cls(cfg, ShapeSpec(channels=8, height=1, width=1), text_encoder=None, **kwargs)

    return make


# ---- small detectors


@pytest.fixture(scope="session")
def build_detector(load_cfg, hash_tower):
    """``build_detector("Detic_C4.yaml", "KEY", value, …)``: a model whose text tower needs no weights."""

    def make(name, *overrides):
        torch.manual_seed(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(open_vocab_rcnn, "build_text_encoder", lambda cfg: hash_tower(cfg.MODEL.TEXT.DIM))
            model = build_model(load_cfg(name, *SMALL, *overrides))
        # As built, objectness and deltas are near 0; spread them, so that boxes and their order matter.
        torch.nn.init.normal_(model.proposal_generator.rpn_head.objectness_logits.weight, std=0.05)
        torch.nn.init.normal_(model.roi_heads.box_predictor.bbox_pred[2].weight, std=0.01)
        return model

    return make


@pytest.fixture(scope="session")
def damp():
    """``damp(an R50-C4 detector)``: itself. Untrained, its frozen batch norms are identities and features explode."""

    def scale(model):
        model.backbone.stem.conv1.norm.weight.fill_(0.02)
        for block in [*model.backbone.res2, *model.backbone.res3, *model.backbone.res4, *model.roi_heads.res5]:
            block.conv3.norm.weight.fill_(0.2)
        return model

    return scale


@pytest.fixture(scope="session")
def make_image():
    """``make_image(height, width, seed=0)``: smooth, uint8 (3, H, W)."""

    def make(height, width, seed=0):
        rows = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(seed))
        smooth = torch.nn.functional.interpolate(rows[None], (height, width), mode="bicubic")[0]
        return (smooth.clamp(0, 1) * 255).to(torch.uint8)

    return make


@pytest.fixture(scope="session")
def detection(make_image):
    """``detection(height, width, boxes=…, seed=0)``: an image with boxes of classes 0, 1, …"""

    def make(height=64, width=96, *, boxes=((8.0, 8, 40, 50), (30.0, 10, 90, 60)), seed=0):
        truth = Instances((height, width), gt_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))
        truth.gt_classes = torch.arange(len(boxes))
        sizes = {"height": height, "width": width}
        return {"image": make_image(height, width, seed), **sizes, "instances": truth, "image_id": 1}

    return make


@pytest.fixture(scope="session")
def canvas(make_image):
    """``canvas(n, image ids)``: n x n tiles on 64 x 64 px."""

    def make(n, ids):
        cell = 64 // n
        boxes = [[c % n * cell, c // n * cell, (c % n + 1) * cell, (c // n + 1) * cell] for c in range(n * n)]
        tiles = Tiles(
            boxes=torch.tensor(boxes, dtype=torch.float32), canvas=torch.zeros(n * n, dtype=torch.int64),
            image_ids=torch.tensor(ids), captions=[[f"caption {i}"] for i in ids],
            drawn=[f"caption {i}" for i in ids], tags=[[i % 65, (i + 1) % 65] for i in ids],
        )  # fmt: skip
        return {"image": make_image(64, 64, seed=sum(ids)), "height": 64, "width": 64, "tiles": tiles}

    return make


@pytest.fixture(scope="session")
def joint_batch(detection, canvas):
    """``joint_batch(mosaics=False, …)``: two images with boxes, two single pairs and a mosaic, but for those."""

    def make(detections=True, captions=True, mosaics=True):
        return {
            "detection": [detection(), detection(80, 64, seed=1)] if detections else [],
            "captions": [canvas(1, [11]), canvas(1, [12])] if captions else [],
            "mosaics": [canvas(2, [11, 13, 14, 15])] if mosaics else [],
        }

    return make


@pytest.fixture(scope="session")
def train_step():
    """``train_step(model, batch)``: {loss name: scalar}."""

    def losses(model, batch):
        torch.manual_seed(0)  # the heads sample their RoIs
        model.train()
        with EventStorage():
            return model(batch)

    return losses


@pytest.fixture(scope="session")
def detect():
    """``detect(model, image, height=…, width=…)``: [Instances] in that size, or the image's."""

    @torch.no_grad()
    def instances(model, image, **size):
        sizes = {"height": image.shape[1], "width": image.shape[2]} | size
        return [model.eval()([{"image": image, **sizes}])[0]["instances"]]

    return instances
