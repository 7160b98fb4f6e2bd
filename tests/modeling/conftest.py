"""Small detectors and their training data; short runs; encoders and files of a first stage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from clim.checkpoints import SafeCheckpointer
from clim.data.categories import BASE_IDS, COCO_CATEGORIES, NOVEL_IDS
from clim.data.mosaic import grid_cells
from clim.data.tiles import Tiles
from clim.engine import load_config
from clim.modeling import build_image_encoder, open_vocab_rcnn

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
        photos = make_photos([(60, 90), (90, 60), (64, 64)] * (len(classes) // 3), ext="jpg")
        images = [{k: r[k] for k in ("file_name", "height", "width")} | {"id": r["image_id"]} for r in photos]
        objects = [(image["id"], k) for image, of_image in zip(images, classes, strict=True) for k in of_image]
        annotations = [
            {"id": n, "image_id": i, "category_id": k, "bbox": [8, 9, 40, 30], "area": 1200, "iscrowd": 0}
            for n, (i, k) in enumerate(objects, start=1)
        ]
        categories = [{"id": i, "name": name} for i, name in COCO_CATEGORIES]
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root


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
def make_encoder(load_cfg, shaken):
    """``make_encoder("resnet" or "efficientnet", dim)``: a random encoder that grounds words in locations."""

    def make(trunk, dim):
        config = {"resnet": "OVRCNN_pretrain.yaml", "efficientnet": "mini/ovrcnn_pretrain.yaml"}[trunk]
        encoder = build_image_encoder(load_cfg(config, "MODEL.TEXT.DIM", dim))
        if trunk == "resnet":  # untrained residuals grow, and pixels are large already
            encoder.backbone.stem.conv1.norm.weight *= 1e-4
        return shaken(encoder)

    return make


@pytest.fixture(scope="session")
def save_stage1():
    """``save_stage1(encoder, folder)``: path of a checkpoint of an image-text model with that encoder."""

    def save(encoder, folder):
        model = nn.ModuleDict({"image_encoder": encoder, "method": nn.Linear(3, 3)})
        SafeCheckpointer(model, str(folder)).save("stage1")
        return str(folder / "stage1.pth")

    return save


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
    """``canvas(n, image ids, size=(64, 64))``: n x n tiles on a canvas of that height and width."""

    def make(n, ids, size=(64, 64)):
        tiles = Tiles(
            boxes=torch.from_numpy(grid_cells(n, size=size)).float(), canvas=torch.zeros(n * n, dtype=torch.int64),
            image_ids=torch.tensor(ids), captions=[[f"caption {i}"] for i in ids],
            drawn=[f"caption {i}" for i in ids], tags=[[i % 65, (i + 1) % 65] for i in ids],
        )  # fmt: skip
        return {"image": make_image(*size, seed=sum(ids)), "height": size[0], "width": size[1], "tiles": tiles}

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
