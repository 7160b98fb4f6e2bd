"""The shipped CLIP + CLIM config on a few images: trained, published, evaluated from files; two processes as one."""

import importlib.util
import json
from pathlib import Path

import open_clip
import pytest
import torch

from clim.engine import Trainer
from clim.text.clip import clip_config
from mini.concepts import NAMES

CLIP_PARTS = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
PROGRAM = Path(__file__).parent / "image_text_ranks.py"
spec = importlib.util.spec_from_file_location("image_text_ranks", PROGRAM)
image_text_ranks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(image_text_ranks)


@pytest.fixture
def clip_file(tiny_json, random_clip, tmp_path):
    """(json of a tiny CLIP, its weights in a file of open_clip's training)."""
    architecture, path = tiny_json("vit"), tmp_path / "published.pt"
    state = {f"module.{name}": value for name, value in random_clip(architecture).state_dict().items()}
    torch.save({"epoch": 6, "name": "clim", "state_dict": state}, path)
    return architecture, str(path)


@pytest.fixture
def run(make_run, tiny_mini, clip_file):
    architecture, path = clip_file
    keys = {
        "MODEL.IMAGE_ENCODER.ARCHITECTURE": architecture, "MODEL.IMAGE_ENCODER.PRETRAINED": path,
        "MODEL.IMAGE_ENCODER.UNLOCKED_BLOCKS": 2, "MODEL.TEXT.NAME": architecture, "MODEL.TEXT.PRETRAINED": path,
        "MODEL.TEXT.DIM": 12, "MODEL.VOCABULARY.NAMES": list(NAMES), "MODEL.VOCABULARY.PROMPT": "name",
        "DATASETS.CAPTIONS": "('mini_ov_captions',)", "DATASETS.TEST": "('mini_val_regions',)",
        "INPUT.CAPTION.CROP": 32, "INPUT.MOSAIC.SIZE": 64, "INPUT.MOSAIC.GRIDS": [2], "INPUT.REGIONS.SIZE": 64,
        "DATALOADER.CAPTIONS_PER_GPU": 5, "TEST.EVAL_PERIOD": 0, "SOLVER.EPOCHS": 0.0, "SOLVER.MAX_ITER": 3,
        "SOLVER.BASE_LR": 0.01, "SOLVER.WARMUP_ITERS": 0,
    }  # fmt: skip
    return make_run("CLIP_CLIM_ViTB16_COCO.yaml", tiny_mini, keys)


def test_train_publish_and_evaluate_the_file(run, clip_file, tmp_path):
    trainer = Trainer(run.config())
    trainer.resume_or_load(resume=False)
    start = {name: p.detach().clone() for name, p in trainer.raw_model.image_encoder.named_parameters()}
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "output/metrics.json").read_text().splitlines()]
    assert all(lines[i]["total_loss"] > 0 for i in range(3))

    # clip.pt: .7 of what was trained and .3 of the start, for open_clip, whose text half it holds too.
    clip = open_clip.CLIP(**{k: v for k, v in clip_config(clip_file[0], key="name").items() if k in CLIP_PARTS})
    state = torch.load(tmp_path / "output/clip.pt", weights_only=True)["state_dict"]
    clip.load_state_dict(state, strict=True)
    moved = 0
    for name, weight in trainer.raw_model.image_encoder.named_parameters():
        torch.testing.assert_close(state[name], 0.7 * weight.detach() + 0.3 * start[name])
        moved += not torch.equal(weight, start[name])
    assert 0 < moved < len(start)
    published = torch.load(clip_file[1], weights_only=True)["state_dict"]
    torch.testing.assert_close(state["text_projection"], published["module.text_projection"])

    # What the run has evaluated at its end is what the command finds in the file.
    changes = ("MODEL.IMAGE_ENCODER.PRETRAINED", tmp_path / "output/clip.pt", "OUTPUT_DIR", tmp_path / "again")
    run.command(*changes, program=("train_net.py", "--eval-only", "--config-file"))
    first, again = (
        json.loads((tmp_path / folder / "inference/mini_val_regions/region_results.json").read_text())
        for folder in ("output", "again")
    )
    assert first["summary"] == again["summary"] and first["per_class"] == again["per_class"]
    assert 0 <= first["summary"]["Top1_micro"] <= first["summary"]["Top5_micro"] <= 100


def test_two_processes_equal_one_gradients_included(run, tmp_path):
    run.command(program=(str(PROGRAM), str(tmp_path)))
    ranks = [torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in (0, 1)]
    # One process gets the same canvases: those of both ranks, then what both have left over.
    order = [0, 1, 2, 3, 5, 6, 7, 8, 4, 9]
    loss, gradients = image_text_ranks.step(run.file, run.overrides, order)
    torch.testing.assert_close((ranks[0]["loss"] + ranks[1]["loss"]) / 2, loss)
    assert set(gradients) == set(ranks[0]["gradients"]) and "method.logit_scale" in gradients
    for name, gradient in gradients.items():
        for rank in ranks:
            torch.testing.assert_close(rank["gradients"][name], gradient, rtol=1e-4, atol=1e-6)
