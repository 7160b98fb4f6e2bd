"""RegionCLIP's loss against a loop, its class subset, training and resuming, and wrong settings."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils.env import seed_all_rng
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from clim.engine import Trainer
from clim.errors import UserError
from clim.methods import Texts, build_method
from clim.methods.region_clip import RegionClip, sample_classes


@settings(max_examples=100, deadline=None)
@given(num_classes=st.integers(1, 60), count=st.integers(0, 70), boxes=st.integers(0, 30), seed=st.integers(0, 99))
def test_class_subset(num_classes, count, boxes, seed):
    """Labels come first, all are different, their number is right, and the same state draws the same classes."""
    torch.manual_seed(seed)
    labels = torch.randint(num_classes, (boxes,))
    state = torch.get_rng_state()
    sampled = sample_classes(labels, num_classes=num_classes, count=count)
    present = labels.unique()
    assert torch.equal(sampled[: len(present)], present)
    assert len(set(sampled.tolist())) == len(sampled) == max(len(present), min(count, num_classes))
    assert sampled.dtype == torch.int64 and bool(((sampled >= 0) & (sampled < num_classes)).all())
    torch.set_rng_state(state)
    assert torch.equal(sample_classes(labels, num_classes=num_classes, count=count), sampled)


def test_the_other_classes_are_drawn_uniformly():
    torch.manual_seed(0)
    seen = torch.zeros(10)
    for _ in range(2000):
        seen[sample_classes(torch.tensor([2, 2, 5]), num_classes=10, count=4)] += 1
    assert seen[2] == seen[5] == 2000
    assert float((seen[[0, 1, 3, 4, 6, 7, 8, 9]] - 500).abs().max()) < 100  # 5 standard deviations


def test_the_method_is_the_loss_on_a_drawn_class_subset(tiles_of):
    """Boxes are the tiles'; rows of the nouns are units, the embeddings' are not."""
    nouns = F.normalize(torch.randn(9, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    method = RegionClip(nouns=nouns, scale=20.0, classes=5)
    tiles = tiles_of(torch.arange(12).view(3, 4), canvas=[0, 0, 1], tags=[[4], [0], [4]])
    labels = torch.tensor([4, 0, 4])
    regions = method.select(tiles, None)
    assert list(regions) == ["region"] and torch.equal(regions["region"].boxes, tiles.boxes)
    assert torch.equal(regions["region"].canvas, tiles.canvas)

    embeddings = torch.randn(3, 6, generator=torch.Generator().manual_seed(2)).requires_grad_()
    state = torch.get_rng_state()
    losses = method.losses({"region": embeddings}, regions, Texts(tiles, encoder=None, class_embeddings=nouns))
    torch.set_rng_state(state)
    sampled = sample_classes(labels, num_classes=9, count=5)
    assert list(losses) == ["loss_region_clip"] and len(sampled) == 5
    expected = 0.0
    for region, label in zip(embeddings.detach(), labels, strict=True):
        for k in sampled:
            p = 1 / (1 + math.exp(-20 * region @ nouns[k] / region.norm()))
            expected -= math.log(p if k == label else 1 - p) / 3
    assert float(losses["loss_region_clip"]) == pytest.approx(expected, rel=1e-5)
    losses["loss_region_clip"].backward()
    assert embeddings.grad.abs().sum() > 0
    assert not list(method.parameters()) and not method.state_dict()
    assert method.labels([[2], [0]]).tolist() == [2, 0] and method.labels([]).shape == (0,)
    with pytest.raises(UserError, match="EMBEDDINGS has 9 rows"):
        method.labels([[0], [9]])


def test_from_config(load_cfg, tmp_path):
    np.save(tmp_path / "nouns.npy", np.random.default_rng(0).normal(size=(7, 16)).astype(np.float16))
    key = "MODEL.METHOD.REGION_CLIP.EMBEDDINGS"

    def build(path, dim=16):
        overrides = ("MODEL.METHOD.NAME", "RegionClip", key, path, "MODEL.TEXT.DIM", dim)
        return build_method(load_cfg("mini/detic.yaml", *overrides))

    method = build(str(tmp_path / "nouns.npy"))
    assert method.nouns.shape == (7, 16) and (method.scale, method.classes) == (100.0, 100)
    torch.testing.assert_close(method.nouns.norm(dim=1), torch.ones(7))
    with pytest.raises(UserError, match="16 dimensions, but MODEL.TEXT.DIM is 8"):
        build(str(tmp_path / "nouns.npy"), dim=8)
    for missing in ("", str(tmp_path / "gone.npy")):
        with pytest.raises(UserError, match=key):
            build(missing)


@pytest.fixture
def training(tiny_cfg, region_overrides):
    keys = ("MODEL.METHOD.NAME", "RegionClip", "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, "DATASETS.TEST", ())
    return tiny_cfg(*region_overrides, *keys, config="mini/clip_start.yaml")


def train(cfg, seed, *, resume):
    """The encoder's projection before and after training, and {iteration: loss}."""
    seed_all_rng(seed)
    trainer = Trainer(cfg)
    projection = trainer.raw_model.image_encoder.projection.weight
    before = projection.clone()
    trainer.resume_or_load(resume=resume)
    trainer.train()
    lines = map(json.loads, (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines())
    return before, projection, {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}


def test_training_and_resuming(training):
    """The same losses to the last bit, the drawn classes included; the encoder learns."""
    before, after, straight = train(training, 1, resume=False)
    assert sorted(straight) == [0, 1, 2, 3] and all(map(math.isfinite, straight.values()))
    assert not torch.equal(after, before)
    (Path(training.OUTPUT_DIR) / "last_checkpoint").write_text("model_0000001.pth")
    assert train(training, 2, resume=True)[2] == straight
