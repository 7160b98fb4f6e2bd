"""The library on a GPU that is not there (devices.py): runs and parts give what they give on the CPU, to the bit."""

import ast
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.env import seed_all_rng
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from clim.data.images import read_image
from clim.detector import Detector
from clim.engine import Trainer
from clim.modeling import shortlist
from mini.lvis import build_mini_lvis
from tests.devices import OnGPU, pretended_gpu

LIBRARY = Path(__file__).parents[1] / "projects/CLIM/clim"
SLOW = ("baron_clim", "vldet_clim", "ovrcnn_clim_pretrain", "ovrcnn_clim", "clip_clim", "clip_region_clip", "fvlm")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in (*SLOW, "lvis_vldet_clim", "lvis_fvlm")]
# Functions that make tensors on the CPU on purpose: before the model moves, draws from the random state that a resumed
# run restores, from lists, for SciPy, or single numbers. Where a GPU needs the result, it is moved there at the end.
ON_THE_CPU = {
    "vocabulary_embeddings", "class_mask", "_base_classes", "competing_classes", "generate_cell_anchors", "from_config",
    "composition_groups", "compose_groups", "draw_orders", "draw_bags", "drop_locations", "sample_classes", "detect",
    "all_caption_ids", "tag_targets", "centernet_targets", "labels", "set_vocabulary", "nouns_of_tiles", "match_tiles",
    "match_nouns", "match_softly", "logit_scale", "_random_states",
}  # fmt: skip
MAKERS = "arange as_tensor empty eye from_numpy full linspace ones rand randint randn randperm tensor zeros"


def on_both(make):
    """What ``make(device)`` gives on the CPU; the GPU gives the same."""
    found = []
    for device in ("cpu", "cuda"):
        with pretended_gpu() if device == "cuda" else nullcontext():
            seed_all_rng(1)
            found.append(tree_map_only(Tensor, lambda tensor: tensor.numpy(force=True), make(device)))
    np.testing.assert_equal(found[1], found[0])
    return found[0]


@pytest.mark.parametrize("wrong", [
    lambda gpu, cpu: gpu + cpu, lambda gpu, cpu: cpu[gpu.long()], lambda gpu, cpu: torch.cat([gpu, cpu]),
    lambda gpu, cpu: F.embedding(cpu.long(), gpu[:, None]), lambda gpu, cpu: gpu.index_put_((gpu.long(),), cpu),
    lambda gpu, cpu: torch.stack([gpu.sum(), cpu.sum()]), lambda gpu, cpu: gpu.cpu() * gpu.clone(),
    lambda gpu, cpu: torch.rand(3, device=gpu.device, generator=torch.Generator()), lambda gpu, cpu: np.asarray(gpu),
    lambda gpu, cpu: gpu.uniform_(generator=torch.Generator()), lambda gpu, cpu: torch.autocast("cpu"),
])  # fmt: skip
def test_what_a_gpu_refuses(wrong):
    with pretended_gpu(), pytest.raises((RuntimeError, TypeError, KeyError), match="device|cpu"):
        wrong(torch.arange(3.0, device="cuda"), torch.arange(3.0))


@pytest.fixture(scope="module")
def root(tiny_mini, tmp_path_factory):
    """A data root of both mini benchmarks, with pseudo-labels."""
    root = shutil.copytree(tiny_mini, tmp_path_factory.mktemp("root"), dirs_exist_ok=True)
    build_mini_lvis(root, seed=7, num_train=8, num_val=2, num_pairs=16, workers=1)
    files = enumerate(sorted((root / "mini/pairs").glob("*.jpg")), start=1)
    images = [{"id": i, "file_name": path.name, "height": 256, "width": 256} for i, path in files]
    box = {"category_id": 5, "bbox": [9, 8, 90, 80]}
    labels = {"images": images, "annotations": [box | {"id": i["id"], "image_id": i["id"]} for i in images]}
    labels["categories"] = [{"id": k, "name": str(k)} for k in range(1, 9)]
    (root / "mini/annotations/pseudo_regions.json").write_text(json.dumps(labels))
    return root


@pytest.mark.parametrize("config", ["detic_clim", "lvis_detic_clim", *SLOW])
def test_runs_that_resume(config, tiny_cfg, root, monkeypatch):
    keys = ["SOLVER.MAX_ITER", 2, "SOLVER.EPOCHS", 0.0, "SOLVER.EMA", 0.9, "MODEL.IMAGE_ENCODER.PRETRAINED", ""]
    keys += ["MODEL.METHOD.VLDET.EMBEDDINGS", "mini/metadata/nouns_minilm.npy"]
    keys += ["DATASETS.CAPTIONS", "('mini_ov_captions_nouns',)"] if "vldet" in config else []
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    metrics, results, weights = on_both(lambda device: run(tiny_cfg(*keys, config=f"mini/{config}.yaml"), device, 1, 2))
    assert len(metrics) > 10 and len(weights) > 10 and (results or "pretrain" in config)


def run(cfg, device, *ends):
    """Figures, files of results and weights of a run that stops and resumes at ``ends``."""
    cfg, output = cfg.clone(), Path(cfg.OUTPUT_DIR) / device
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = device, str(output)
    output.mkdir()
    for end in ends:
        trainer = Trainer(cfg)
        for group in trainer.optimizer.param_groups:  # AdamW's kernel on CUDA, which rounds in another order
            group["fused"] = True
        trainer.resume_or_load(resume=end > ends[0])
        trainer.max_iter = end
        trainer.train()
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    metrics = {f"{line['iteration']} {k}": v for line in lines for k, v in line.items() if "time" not in k}
    weights = trainer.raw_model.state_dict()
    assert {isinstance(weight, OnGPU) for weight in weights.values()} == {device == "cuda"}
    return metrics, {path.name: path.read_text() for path in output.rglob("*_results.json")}, weights


@pytest.mark.parametrize("backbone_only", [False, True])
def test_float16(backbone_only, tiny_cfg):
    keys = ("SOLVER.MAX_ITER", 1, "SOLVER.AMP.ENABLED", True, "MODEL.OPEN_VOCAB.FP32_HEADS", backbone_only)
    cfg, losses = tiny_cfg("DATASETS.TEST", "()", *keys), []
    for device in ("cpu", "cuda"):  # the CPU trains in float32
        with pretended_gpu() if device == "cuda" else nullcontext():
            seed_all_rng(1)
            losses.append({k: v for k, v in run(cfg, device, 1)[0].items() if "loss" in k})
    assert losses[1] == pytest.approx(losses[0], rel=0.1) and losses[1] != losses[0]


@pytest.mark.parametrize("masks", [False, True])
def test_detectors(masks, tiny_cfg, mask_overrides, tiny_mini, tmp_path):
    cfg, path = tiny_cfg(*(mask_overrides if masks else ())), sorted((tiny_mini / "mini/val").glob("*.jpg"))[0]

    def find(device):
        detector = Detector(cfg, device=device)
        image = read_image(str(path), fmt=detector.input_format).image
        found = detector.detect([image], threshold=0.0)
        detector.set_classes({"dog": ["puppy"], "car": [], "unicorn": ["horse", "pony"]})
        found += detector.detect([image, image[:50]], threshold=0.0)
        detector.freeze(tmp_path / "frozen.pth")
        found += Detector(tmp_path / "frozen.pth", device=device).detect([image], threshold=0.0)
        return [{k: getattr(v, "tensor", v) for k, v in of.get_fields().items()} for of in found]

    assert all(len(of["scores"]) > 0 and ("pred_masks" in of) == masks for of in on_both(find))


@pytest.mark.parametrize("kind", ["vit", "resnet", "eva02", "pe", "gap"])
def test_image_encoders_and_clips_text_tower(kind, load_cfg, tiny_json):
    keys = ["ARCHITECTURE", tiny_json(kind), "NAME", "ClipResNet" if kind == "resnet" else "ClipViT"]
    keys += ["PRETRAINED", "", "UNLOCKED_BLOCKS", 1]
    keys = [f"MODEL.IMAGE_ENCODER.{of}" if i % 2 == 0 else of for i, of in enumerate(keys)]
    keys += ["MODEL.TEXT.NAME", tiny_json("vit"), "MODEL.TEXT.PRETRAINED", "", "MODEL.TEXT.DIM", 12]
    cfg = load_cfg("CLIP_CLIM_ViTB16_COCO.yaml", *keys, "MODEL.VOCABULARY.NAMES", ["dog", "cat"])
    boxes, pixels = torch.tensor([[3.0, 4, 60, 50], [30, 10, 45, 64]]), torch.arange(3 * 64 * 64).view(3, 64, 64)
    sample = {"image": pixels % 251, "boxes": Boxes(boxes), "crops": pixels[None, :, :32, :32] % 249}
    sample["masks"] = pixels[:2] % 3 > 0

    @torch.no_grad()
    def score(device):
        cfg.MODEL.DEVICE = device
        return build_model(cfg).eval()([sample])[0]["region_scores"]

    assert on_both(score).keys() == {"boxes", "masks", "crops"}


@pytest.mark.parametrize("together", [0, 50, shortlist.TOGETHER])
@pytest.mark.parametrize("count", [0, 1, 40, 200])
def test_suppression(together, count, monkeypatch):
    """Of all classes at once or, where there are too many pairs for that, class by class."""
    monkeypatch.setattr(shortlist, "TOGETHER", together)
    corner, side, scores = torch.rand(count, 2) * 50, torch.rand(count, 2) * 30, torch.randn(count)
    given = torch.cat([corner, corner + 5 + side], dim=1), scores, torch.randint(5, (count,))
    assert len(on_both(lambda device: shortlist.nms_by_class(*(of.to(device) for of in given), 0.4))) >= min(count, 5)


def test_tensors_are_made_on_a_device():
    found, makers = set(), {f"torch.{name}" for name in MAKERS.split()}
    for file in [*(f for room in ("modeling", "methods", "engine") for f in (LIBRARY / room).rglob("*.py"))]:
        functions = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
        for function in (f for f in functions if f.name != "__init__"):
            calls = [c for c in ast.walk(function) if isinstance(c, ast.Call) and ast.unparse(c.func) in makers]
            found |= {function.name for c in calls if "device" not in {k.arg for k in c.keywords}}
    assert found == ON_THE_CPU
