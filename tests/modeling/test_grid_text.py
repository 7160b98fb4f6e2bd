"""GridTextModel: plain images and mosaics, their locations, one contrast or two; runs of both mini configs."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from clim.engine import Trainer
from clim.errors import UserError
from clim.methods.ovrcnn import Locations
from clim.modeling.grid_text import read_locations

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 70.0, 80.0]
SMALL = ["MODEL.METHOD.GROUNDING.LAYERS", 1, "MODEL.METHOD.GROUNDING.HEADS", 2, "MODEL.TEXT.DIM", 32]


@pytest.fixture(scope="module")
def make(load_cfg, tiny_bert):
    """``make("KEY", value, …)``: the mini model with the tiny BERT, in training."""

    def model(*overrides):
        cfg = load_cfg(
            "mini/ovrcnn_clim_pretrain.yaml", *SMALL, "MODEL.TEXT.NAME", str(tiny_bert),
            "MODEL.PIXEL_MEAN", MEAN, "MODEL.PIXEL_STD", STD, *overrides,
        )  # fmt: skip
        torch.manual_seed(0)
        return build_model(cfg).train()

    return model


def joint(captions=(), mosaics=()):
    return {"detection": [], "captions": list(captions), "mosaics": list(mosaics), "regions": []}


@pytest.fixture
def pairs(canvas):
    """Two plain images, and a list of one mosaic."""
    return [canvas(1, [i], (64, 64)) for i in (1, 2)], [canvas(2, [3, 4, 5, 6], (128, 128))]


def test_images_are_padded_among_themselves_and_padding_is_no_location(make, canvas, monkeypatch):
    model, found = make(), []
    plain, mosaic = [canvas(1, [1], (64, 96)), canvas(1, [2], (96, 64))], canvas(2, [3, 4, 5, 6], (128, 128))
    monkeypatch.setattr(model.method, "losses", lambda embeddings, at, _: found.append((embeddings, at)) or {})
    model(joint(captions=plain, mosaics=[mosaic]))
    ((embeddings, regions),) = found
    locations = regions["location"]
    assert torch.bincount(locations.tile).tolist() == [2 * 3, 3 * 2, 4, 4, 4, 4]
    assert locations.canvas.tolist() == [0] * 6 + [1] * 6 + [2] * 16

    def normalised(image):
        return (image.float() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)

    encoder, batch = model.image_encoder, torch.zeros(2, 3, 96, 96)
    batch[0, :, :64, :], batch[1, :, :, :64] = normalised(plain[0]["image"]), normalised(plain[1]["image"])
    maps = encoder.feature_map(batch)
    alone = encoder.feature_map(normalised(mosaic["image"])[None])[0]
    places = zip(locations.canvas.tolist(), locations.row.tolist(), locations.column.tolist(), strict=True)
    expected = encoder.project(torch.stack([(alone if c == 2 else maps[c])[:, y, x] for c, y, x in places]))
    torch.testing.assert_close(embeddings["location"], expected, rtol=1e-4, atol=1e-5)


def test_locations_of_several_maps_are_read_in_order():
    maps = [torch.arange(16.0).view(2, 2, 2, 2), 100 + torch.arange(6.0).view(1, 2, 1, 3)]
    canvas, row, column = torch.tensor([[0, 1, 1, 2], [0, 1, 0, 0], [1, 1, 0, 2]])
    locations = Locations(canvas, row, column, torch.arange(4), torch.zeros(4, 2))
    assert read_locations(maps, locations).tolist() == [[1, 5], [11, 15], [8, 12], [102, 105]]


def test_one_contrast_or_one_of_each_source(make, pairs):
    plain, mosaics = pairs
    grounding = {"loss_words_to_image", "loss_words_to_caption", "loss_cells_to_image", "loss_cells_to_caption"}
    extra = {"loss_matching", "loss_words"}
    assert make()(joint(plain, mosaics)).keys() == grounding | extra
    still = ["MODEL.METHOD.GROUNDING.MLM_PROBABILITY", 0.0, "MODEL.METHOD.GROUNDING.DROPOUT", 0.0,
             "MODEL.METHOD.GROUNDING.TEXT_DROPOUT", False]  # fmt: skip
    apart = make("MODEL.METHOD.GROUNDING.JOINT", False, *still)
    losses = apart(joint(plain, mosaics))
    assert losses.keys() == grounding | extra | {f"{name}_mosaic" for name in grounding}
    together = make(*still)
    of_plain, of_mosaics = together(joint(plain)), together(joint(mosaics=mosaics))
    expected = of_plain | {f"{name}_mosaic": loss for name, loss in of_mosaics.items()}
    torch.testing.assert_close(losses, expected)
    assert apart(joint(mosaics=mosaics)).keys() == {f"{name}_mosaic" for name in grounding}


def test_everything_that_learns_gets_a_gradient_and_the_text_tower_is_in_no_file(make, pairs):
    model = make()
    sum(model(joint(*pairs)).values()).backward()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {name for name, p in model.named_parameters() if p.grad is not None}
    assert {name.split(".")[0] for name in model.state_dict()} == {"image_encoder", "method"}
    assert {n.split(".")[1] for n in model.state_dict() if n.startswith("method")} == {"transformer"}
    assert not any(module.training for module in model.text_encoder.live.modules())


CLIP = ["MODEL.IMAGE_ENCODER.NAME", "ClipViT", "MODEL.IMAGE_ENCODER.PRETRAINED", "", "MODEL.TEXT.DIM", 512,
        "MODEL.IMAGE_ENCODER.ARCHITECTURE", "ViT-B-32", "MODEL.METHOD.GROUNDING.LAYERS", 0]  # fmt: skip


@pytest.mark.parametrize("overrides, message", [
    (CLIP, "MODEL.IMAGE_ENCODER.NAME ClipViT"),
    (["INPUT.MOSAIC.SIZE", 96], "INPUT.MOSAIC.SIZE 96 .* at least 128"),  # 4 x 4 tiles, a location of 32 px for each
    (["MODEL.METHOD.NAME", "Detic"], "Detic pools boxes, but .* GridTextModel pools locations"),
    (["MODEL.META_ARCHITECTURE", "ImageTextModel"], "Grounding pools locations, but .* ImageTextModel pools boxes"),
])  # fmt: skip
def test_settings_that_do_not_go_together(make, overrides, message):
    make("INPUT.MOSAIC.SIZE", 128)
    with pytest.raises(UserError, match=message):
        make(*overrides)


@pytest.mark.parametrize("row", ["ovrcnn_pretrain", "ovrcnn_clim_pretrain"])
def test_a_run_without_evaluation_leaves_the_trunk(tiny_cfg, tiny_bert, row):
    cfg = tiny_cfg(*SMALL, "MODEL.TEXT.NAME", str(tiny_bert), "SOLVER.MAX_ITER", 2, config=f"mini/{row}.yaml")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    before = trainer.raw_model.image_encoder.projection.weight.clone()
    trainer.train()
    lines = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    entries = [entry for entry in map(json.loads, lines) if "total_loss" in entry]
    assert len(entries) == 2 and all("loss_matching" in e and "loss_cells_to_image" in e for e in entries)
    state = torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)["model"]
    assert not torch.equal(state["image_encoder.projection.weight"], before)
    assert not (Path(cfg.OUTPUT_DIR) / "clip.pt").exists()
