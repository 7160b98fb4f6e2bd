"""Image-text models: what forms one contrast, canvases of both kinds, CLIP's keys, scores of regions; OV-RCNN's."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, interpolate, normalize
from torch.utils._python_dispatch import TorchDispatchMode

from clim.config import add_clim_config
from clim.data.tiles import Tiles
from clim.engine import Trainer
from clim.errors import UserError
from clim.methods.ovrcnn import Locations
from clim.modeling.fvlm import FVLM
from clim.modeling.image_text import Canvases, GridTextModel, ImageTextModel, compose_groups, read_locations
from clim.modeling.open_vocab_rcnn import OpenVocabRCNN

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 70.0, 80.0]


@pytest.fixture
def make(tiny_json):
    def model(*overrides, kind="vit"):
        cfg, path = get_cfg(), tiny_json(kind)
        add_clim_config(cfg)
        cfg.merge_from_list(
            [
                "MODEL.META_ARCHITECTURE", "ImageTextModel", "MODEL.DEVICE", "cpu", "MODEL.TEXT.NAME", path,
                "MODEL.TEXT.PRETRAINED", "", "MODEL.TEXT.DIM", 12, "MODEL.METHOD.NAME", "ClipContrast",
                "MODEL.IMAGE_ENCODER.NAME", "ClipViT" if kind == "vit" else "ClipResNet",
                "MODEL.IMAGE_ENCODER.ARCHITECTURE", path, "MODEL.IMAGE_ENCODER.PRETRAINED", "",
                "MODEL.IMAGE_ENCODER.UNLOCKED_BLOCKS", 1, "MODEL.VOCABULARY.NAMES", ["cat", "dog", "cow"],
                "MODEL.VOCABULARY.PROMPT", "a", "MODEL.PIXEL_MEAN", MEAN, "MODEL.PIXEL_STD", STD,
                "INPUT.MOSAIC.SIZE", 64, *overrides,
            ]
        )  # fmt: skip
        torch.manual_seed(0)
        return build_model(cfg)

    return model


def joint(captions=(), mosaics=(), regions=()):
    return {"detection": [], "captions": list(captions), "mosaics": list(mosaics), "regions": list(regions)}


QUARTERS = [[0, 0, 32, 32], [32, 0, 64, 32], [0, 32, 32, 64], [32, 32, 64, 64]]


def pixels(image):
    return (image.float() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class Copies(TorchDispatchMode):
    """The types of all tensors that are copied to another device."""

    def __init__(self):
        super().__init__()
        self.types: list = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and result.device != args[0].device:
            self.types += [(args[0].dtype, result.dtype)]
        return result


@pytest.mark.parametrize("prepare", [
    lambda model, images: ImageTextModel.normalised(model, images),
    lambda model, images: GridTextModel.padded(model, images).tensor,
    lambda model, images: FVLM.preprocess_image(model, [{"image": image} for image in images]).tensor,
])  # fmt: skip
def test_pixels_travel_as_bytes(prepare):
    colours = dict.fromkeys(("pixel_mean", "pixel_std", "pad_pixel"), torch.ones(3, 1, 1, device="meta"))
    backbone = SimpleNamespace(size_divisibility=4)
    model = SimpleNamespace(device=torch.device("meta"), square=8, backbone=backbone, **colours)
    model._move_to_current_device = partial(OpenVocabRCNN._move_to_current_device, model)
    with Copies() as copies:
        pixels = prepare(model, [torch.zeros(3, 8, 8, dtype=torch.uint8) for _ in range(2)])
    assert (pixels.shape, pixels.dtype, pixels.device.type) == ((2, 3, 8, 8), torch.float32, "meta")
    assert copies.types == [(torch.uint8, torch.uint8)] * 2


@pytest.mark.parametrize("kind, side", [("vit", 32), ("resnet", 64)])
def test_images_and_tiles_form_one_contrast(make, canvas, kind, side):
    model = make(kind=kind).train()
    singles, mosaic = [canvas(1, [i], (side, side)) for i in (1, 2)], canvas(2, [3, 4, 5, 6])
    (loss,) = model(joint(captions=singles, mosaics=[mosaic])).values()
    encoder = model.image_encoder
    rows = [encoder.embed_images(pixels(s["image"])[None]) for s in singles]
    features = encoder.features(pixels(mosaic["image"])[None])
    rows += [next(encoder.embed_stages(features, [Boxes(torch.tensor([box]).float())])) for box in QUARTERS]
    texts = model.text_encoder.encode([f"caption {i}" for i in range(1, 7)])
    logits = model.method.logit_scale.exp() * normalize(torch.cat(rows), dim=1) @ texts.T
    target = torch.arange(6)
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_canvases_of_the_loader_and_of_the_device_are_the_same_model(make, canvas):
    singles, mosaic = [canvas(1, [i], (32, 32)) for i in range(5)], canvas(2, [0, 1, 2, 3])
    on_device = ("INPUT.MOSAIC.COMPOSE", "device", "INPUT.MOSAIC.GRIDS", [2])
    (device,) = make(*on_device).train()(joint(captions=singles)).values()
    rows = [torch.cat([singles[2 * r + c]["image"] for c in (0, 1)], dim=2) for r in (0, 1)]
    mosaic["image"] = torch.cat(rows, dim=1)
    (loader,) = make().train()(joint(captions=singles[4:], mosaics=[mosaic])).values()
    torch.testing.assert_close(device, loader, rtol=1e-4, atol=1e-5)

    model, seen = make(*on_device, "INPUT.MOSAIC.PERMUTE_TEXTS", True).train(), []
    model.align = lambda tiles, *_: seen.extend(tiles)
    model(joint(captions=singles))
    assert seen[0].drawn == ["caption 4"]
    first = seen[1].drawn.index("caption 0")
    assert first != 0 and seen[1].drawn == [f"caption {(i - first) % 4}" for i in range(4)]


@pytest.mark.parametrize("regions, idle", [("v1", True), ("v2", False)])
def test_whole_images_alone_reach_the_queries_of_a_pool_that_regions_do_not_use(make, canvas, regions, idle):
    model = make("MODEL.IMAGE_ENCODER.REGIONS", regions, kind="resnet").train()
    assert model.has_unused_parameters(None) == idle
    sum(model(joint(mosaics=[canvas(2, [1, 2, 3, 4])])).values()).backward()
    assert any(p.requires_grad and p.grad is None for p in model.parameters()) == idle


def test_a_method_may_ask_for_classes_and_tags(make, canvas):
    """Rows of the classes and one of zeros, which is no class."""
    model, tiles = make(), canvas(2, [1, 2, 3, 4])["tiles"]
    tiles.tags = [[0], [2, 1], [], [1]]
    texts = model.texts(tiles)
    assert torch.equal(texts.class_embeddings[:-1], model.class_embeddings) and len(model.class_embeddings) == 3
    assert not texts.class_embeddings[-1].any()
    assert texts.tag_targets(torch.eye(4)).tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 1, 0]]


def test_only_the_last_block_and_the_temperature_learn(make, canvas):
    model = make().train()
    (loss,) = model(joint(captions=[canvas(1, [1], (32, 32))], mosaics=[canvas(2, [2, 3, 4, 5])])).values()
    loss.backward()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {name for name, p in model.named_parameters() if p.grad is not None}
    assert {n.split(".")[4] for n in learning if "resblocks" in n} == {"3"}
    assert {n for n in learning if "resblocks" not in n} == {"method.logit_scale"}
    assert not any("text" in name for name in model.state_dict())
    (loss,) = model(joint(regions=[canvas(2, [2, 3, 4, 5])])).values()
    assert loss.isfinite()


def test_scores_are_cosines_to_the_classes_and_each_image_stands_alone(make, make_image):
    model, image, boxes = make().eval(), make_image(64, 64), Boxes(torch.tensor(QUARTERS).float())
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :32], masks[1, :, 40:] = True, True
    crops = torch.stack([make_image(32, 32, seed=s) for s in (5, 6)])
    both = model(
        [{"image": image, "boxes": boxes, "masks": masks, "crops": crops}, {"image": image, "boxes": boxes[:0]}]
    )
    scores = both[0]["region_scores"]
    assert {k: tuple(v.shape) for k, v in scores.items()} == {"boxes": (4, 3), "masks": (2, 3), "crops": (2, 3)}
    assert both[1]["region_scores"]["boxes"].shape == (0, 3)
    classes = model.text_encoder.encode(["a cat", "a dog", "a cow"])
    expected = normalize(model.image_encoder.embed_images(pixels(crops)), dim=1) @ classes.T
    torch.testing.assert_close(scores["crops"], expected)
    assert scores["boxes"].abs().max() <= 1 + 1e-5
    torch.testing.assert_close(model([{"image": image, "boxes": boxes}])[0]["region_scores"]["boxes"], scores["boxes"])


def test_weights_named_as_clips_are_taken(make, random_clip, tiny_json):
    model, clip = make(), random_clip(tiny_json("vit"), seed=5)
    state = clip.state_dict()
    result = model.load_state_dict(dict(state), strict=False)
    assert not result.unexpected_keys and not result.missing_keys
    assert torch.equal(model.method.logit_scale, clip.logit_scale)
    for name, value in model.image_encoder.state_dict().items():
        assert torch.equal(value, state[name]), name
    own = {k: v + 1 for k, v in model.state_dict().items()}
    model.load_state_dict(own)
    assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("overrides, message", [
    (("MODEL.TEXT.DIM", 16, "MODEL.VOCABULARY.NAMES", []), r"12 dimensions, but MODEL\.TEXT\.DIM is 16"),
    (("MODEL.METHOD.NAME", "Baron"), 'needs MODEL.OPEN_VOCAB.CLASSIFIER "pseudo_words"'),
    (("MODEL.METHOD.NAME", "Detic"), "METHOD.NAME Detic needs proposals, but .* ImageTextModel has none"),
    (("MODEL.VOCABULARY.NAMES", []), "set MODEL.VOCABULARY.NAMES"),
])  # fmt: skip
def test_errors(make, overrides, message):
    with pytest.raises(UserError, match=message):
        make(*overrides).eval()([{"image": torch.zeros(3, 64, 64), "boxes": Boxes(torch.zeros(0, 4))}])


# ---- canvases composed in the step: CLIM's counts and order, exact cells, pixels resized as a whole


def singles(count, side=6):
    pixels = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))
    tiles = [
        Tiles(
            boxes=torch.tensor([[0.0, 0, side, side]]), canvas=torch.zeros(1, dtype=torch.int64),
            image_ids=torch.tensor([i]), captions=[[f"caption {i}"]], drawn=[f"caption {i}"], tags=[[i]],
        )
        for i in range(count)
    ]  # fmt: skip
    return Canvases(pixels, tiles)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(29, 130))
@example(32)
def test_every_single_is_used_once_in_order_and_canvases_of_a_grid_are_as_many(count):
    left, canvases = compose_groups(singles(count, side=2), grids=(2, 3, 4), size=8)
    assert len(left.pixels) == len(left.tiles) and canvases.pixels.shape == (count // 29 * 3, 3, 8, 8)
    ids = sum((t.image_ids.tolist() for t in [*canvases.tiles, *left.tiles]), [])
    assert ids == list(range(count))
    lengths = [len(t) for t in canvases.tiles]
    assert lengths == [n * n for n in (2, 3, 4) for _ in range(count // 29)] and len(left.tiles) == count % 29


def test_cells_are_exact_and_row_major_where_the_canvas_is_no_multiple():
    _, canvases = compose_groups(singles(9), grids=(3,), size=1024)
    third = 1024 / 3
    expected = [[x * third, y * third, (x + 1) * third, (y + 1) * third] for y in range(3) for x in range(3)]
    np.testing.assert_allclose(canvases.tiles[0].boxes.numpy(), expected, rtol=1e-6)
    assert canvases.tiles[0].drawn == [f"caption {i}" for i in range(9)]
    assert canvases.tiles[0].tags == [[i] for i in range(9)] and canvases.tiles[0].canvas.tolist() == [0] * 9


def test_pixels_are_laid_out_and_then_resized_as_one_image():
    given_ = singles(4)
    _, canvases = compose_groups(given_, grids=(2,), size=30)
    a, b, c, d = given_.pixels
    whole = torch.cat([torch.cat([a, b], dim=2), torch.cat([c, d], dim=2)], dim=1)
    expected = interpolate(whole[None], size=(30, 30), mode="bicubic", align_corners=False, antialias=False)
    assert torch.equal(canvases.pixels, expected)
    _, untouched = compose_groups(given_, grids=(2,), size=12)
    torch.testing.assert_close(untouched.pixels[0], whole)
    with pytest.raises(UserError, match=r"from 29 single crops, but CAPTIONS_PER_GPU is 28"):
        compose_groups(singles(28), grids=(2, 3, 4), size=8)


def test_permuted_texts_are_those_of_another_tile_of_the_canvas():
    torch.manual_seed(3)
    by = [int(torch.randint(1, n * n, ())) for n in (2, 3, 4)]
    _, true = compose_groups(singles(32), grids=(2, 3, 4), size=20)
    torch.manual_seed(3)
    left, found = compose_groups(singles(32), grids=(2, 3, 4), size=20, permute_texts=True)
    for tiles, before, k in zip(found.tiles, true.tiles, by, strict=True):
        assert tiles.image_ids.tolist() == before.image_ids.roll(k).tolist()
        assert tiles.drawn == [f"caption {i}" for i in tiles.image_ids.tolist()]
        assert torch.equal(tiles.boxes, before.boxes)
    assert torch.equal(found.pixels, true.pixels)
    assert [t.image_ids.tolist() for t in left.tiles] == [[29], [30], [31]]


# ---- locations of feature maps as regions: OV-RCNN's pre-training

SMALL = ["MODEL.METHOD.GROUNDING.LAYERS", 1, "MODEL.METHOD.GROUNDING.HEADS", 2, "MODEL.TEXT.DIM", 32]


@pytest.fixture(scope="module")
def make_grid(load_cfg, tiny_bert):
    """``make_grid("KEY", value, …)``: the mini model with the tiny BERT, in training."""

    def model(*overrides):
        cfg = load_cfg(
            "mini/ovrcnn_clim_pretrain.yaml", *SMALL, "MODEL.TEXT.NAME", str(tiny_bert),
            "MODEL.PIXEL_MEAN", MEAN, "MODEL.PIXEL_STD", STD, *overrides,
        )  # fmt: skip
        torch.manual_seed(0)
        return build_model(cfg).train()

    return model


@pytest.fixture
def pairs(canvas):
    """Two plain images, and a list of one mosaic."""
    return [canvas(1, [i], (64, 64)) for i in (1, 2)], [canvas(2, [3, 4, 5, 6], (128, 128))]


def test_images_are_padded_among_themselves_and_padding_is_no_location(make_grid, canvas, monkeypatch):
    model, found = make_grid(), []
    plain, mosaic = [canvas(1, [1], (64, 96)), canvas(1, [2], (96, 64))], canvas(2, [3, 4, 5, 6], (128, 128))
    monkeypatch.setattr(model.method, "losses", lambda embeddings, at, _: found.append((embeddings, at)) or {})
    model(joint(captions=plain, mosaics=[mosaic]))
    ((embeddings, regions),) = found
    locations = regions["location"]
    assert torch.bincount(locations.tile).tolist() == [2 * 3, 3 * 2, 4, 4, 4, 4]
    assert locations.canvas.tolist() == [0] * 6 + [1] * 6 + [2] * 16

    encoder, batch = model.image_encoder, torch.zeros(2, 3, 96, 96)
    batch[0, :, :64, :], batch[1, :, :, :64] = pixels(plain[0]["image"]), pixels(plain[1]["image"])
    maps = encoder.feature_map(batch)
    alone = encoder.feature_map(pixels(mosaic["image"])[None])[0]
    places = zip(locations.canvas.tolist(), locations.row.tolist(), locations.column.tolist(), strict=True)
    expected = encoder.project(torch.stack([(alone if c == 2 else maps[c])[:, y, x] for c, y, x in places]))
    torch.testing.assert_close(embeddings["location"], expected, rtol=1e-4, atol=1e-5)


def test_locations_of_several_maps_are_read_in_order():
    maps = [torch.arange(16.0).view(2, 2, 2, 2), 100 + torch.arange(6.0).view(1, 2, 1, 3)]
    canvas, row, column = torch.tensor([[0, 1, 1, 2], [0, 1, 0, 0], [1, 1, 0, 2]])
    locations = Locations(canvas, row, column, torch.arange(4), torch.zeros(4, 2))
    assert read_locations(maps, locations).tolist() == [[1, 5], [11, 15], [8, 12], [102, 105]]


def test_one_contrast_or_one_of_each_source(make_grid, pairs):
    plain, mosaics = pairs
    grounding = {"loss_words_to_image", "loss_words_to_caption", "loss_cells_to_image", "loss_cells_to_caption"}
    extra = {"loss_matching", "loss_words"}
    assert make_grid()(joint(plain, mosaics)).keys() == grounding | extra
    still = ["MODEL.METHOD.GROUNDING.MLM_PROBABILITY", 0.0, "MODEL.METHOD.GROUNDING.DROPOUT", 0.0,
             "MODEL.METHOD.GROUNDING.TEXT_DROPOUT", False]  # fmt: skip
    apart = make_grid("MODEL.METHOD.GROUNDING.JOINT", False, *still)
    losses = apart(joint(plain, mosaics))
    assert losses.keys() == grounding | extra | {f"{name}_mosaic" for name in grounding}
    together = make_grid(*still)
    of_plain, of_mosaics = together(joint(plain)), together(joint(mosaics=mosaics))
    expected = of_plain | {f"{name}_mosaic": loss for name, loss in of_mosaics.items()}
    torch.testing.assert_close(losses, expected)
    assert apart(joint(mosaics=mosaics)).keys() == {f"{name}_mosaic" for name in grounding}


def test_everything_that_learns_gets_a_gradient_and_the_text_tower_is_in_no_file(make_grid, pairs):
    model = make_grid()
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
def test_settings_that_do_not_go_together(make_grid, overrides, message):
    make_grid("INPUT.MOSAIC.SIZE", 128)
    with pytest.raises(UserError, match=message):
        make_grid(*overrides)


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
