"""Embeddings of every location: against the head's own pooling at one location, shapes, other kinds of models."""

import copy

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from torch import nn
from torch.nn import functional as F

from clim.data.images import resize
from clim.errors import UserError
from clim.modeling.box_predictors import TextOutputLayers
from clim_commands.responder import Responder, dense_embeddings, dense_stride, head_embeddings, responses


@pytest.fixture
def model(tiny_cfg):
    torch.manual_seed(0)
    return build_model(tiny_cfg()).eval()


@torch.no_grad()
def test_a_location_is_what_the_head_makes_of_its_cell_alone(model):
    """By hand at one location: res5 on the whole map, one column of channels, linear, divided by its length."""
    features = {"res4": torch.randn(2, 112, 6, 10, generator=torch.Generator().manual_seed(1))}
    embeddings = head_embeddings(model.roi_heads, features)
    assert embeddings.shape == (2, 384, 3, 5)
    linear = model.roi_heads.box_predictor.cls_score.linear
    cells = model.roi_heads.res5(features["res4"])
    for image, row, column in [(0, 0, 0), (1, 2, 3)]:
        by_hand = linear.weight @ cells[image, :, row, column] + linear.bias
        torch.testing.assert_close(embeddings[image, :, row, column], by_hand / by_hand.norm())


@torch.no_grad()
def test_the_mean_of_a_map_of_one_cell_is_the_region_of_the_whole_image(model):
    """The pooled path and the dense path are one network: on a constant map, all locations are the region."""
    head = model.roi_heads
    one = torch.randn(1, 112, 1, 1, generator=torch.Generator().manual_seed(2))
    features = {"res4": one.expand(1, 112, 12, 12).contiguous()}
    # Zero padding of the convolutions reaches inwards; where it does not, a constant stays constant.
    head.res5 = nn.Sequential(nn.Conv2d(112, 320, 1, stride=2), nn.ReLU())
    (region,) = head.embed_stages(features, [Boxes(torch.tensor([[0.0, 0, 192, 192]]))])
    embeddings = head_embeddings(head, features)[0].flatten(1).T
    torch.testing.assert_close(embeddings, F.normalize(region, dim=1).expand(36, -1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_batch_equals_its_images_one_by_one_and_the_map_covers_the_image(model):
    assert dense_stride(model) == 32
    images = torch.randn(2, 3, 64, 160, generator=torch.Generator().manual_seed(3))
    together = dense_embeddings(model, images)
    assert together.shape == (2, 384, 2, 5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2, 2, 5))
    for i in range(2):
        torch.testing.assert_close(together[i], dense_embeddings(model, images[i : i + 1])[0], rtol=1e-4, atol=1e-5)


def test_responses_are_cosines():
    generator = torch.Generator().manual_seed(4)
    embeddings = F.normalize(torch.randn(2, 7, 3, 4, generator=generator), dim=1)
    texts = 5 * torch.randn(3, 7, generator=generator)
    found = responses(embeddings, texts)
    assert found.shape == (2, 3, 3, 4) and found.abs().max() <= 1 + 1e-6
    for b, q, y, x in [(0, 0, 0, 0), (1, 2, 2, 3)]:
        expected = F.cosine_similarity(embeddings[b, :, y, x], texts[q], dim=0)
        torch.testing.assert_close(found[b, q, y, x], expected)
    assert responses(embeddings, texts[:0]).shape == (2, 0, 3, 4)


SMALL_FVLM = [
    "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.CONV_DIM", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
    "INPUT.LSJ.SIZE", 64, "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 64,
]  # fmt: skip


def test_clip_and_f_vlm_answer_with_the_dense_map_of_their_encoder(load_cfg, tiny_json):
    """The encoder's map of the normalised image, against each text; a random CLIP of 16 px patches."""
    tower = tiny_json("vit", vision={"patch_size": 16, "layers": 6})
    keys = (
        "MODEL.IMAGE_ENCODER.ARCHITECTURE", tower, "MODEL.IMAGE_ENCODER.PRETRAINED", "", "MODEL.TEXT.NAME", tower,
        "MODEL.TEXT.PRETRAINED", "", "MODEL.TEXT.DIM", 12, "MODEL.VOCABULARY.EMBEDDINGS", "", "MODEL.WEIGHTS", "",
    )  # fmt: skip
    image = np.random.default_rng(0).integers(0, 255, (48, 32, 3), dtype=np.uint8)
    for config in ("CLIP_CLIM_ViTB16_COCO.yaml", "FVLM_ViTB16_CLIM_COCO.yaml"):
        cfg = load_cfg(config, *keys)
        if config.startswith("FVLM"):
            cfg.merge_from_list(SMALL_FVLM)
        responder = Responder(cfg, prompt="name")
        texts = responder.embed(["dog", "a red car"])
        maps = responder(image, texts, long_side=48)
        encoder = responder.model.image_encoder if not responder.detects else responder.model.backbone.encoder
        pixels = torch.tensor(image).permute(2, 0, 1).float()
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
        pixels = (pixels - mean) / std
        with torch.no_grad():
            dense = encoder.features(pixels[None])["dense"][0]
        expected = torch.einsum("dhw,qd->qhw", dense, texts)
        torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)
        assert maps.shape == (2, 3, 2)
        if responder.detects:
            assert responder.best_box(image, texts[0]).shape == (4,)
        else:
            with pytest.raises(UserError, match="ImageTextModel draws response maps but no boxes"):
                responder.best_box(image, texts[0])


def test_models_without_a_map_are_errors():
    with pytest.raises(UserError, match="Linear has neither a C4 head .* nor an image encoder"):
        dense_stride(nn.Linear(2, 2))


@pytest.fixture
def responder(tiny_cfg):
    torch.manual_seed(0)
    return Responder(tiny_cfg("MODEL.TEXT.CACHE", ""), prompt="name")


def test_maps_follow_the_image_and_texts_of_one_meaning_agree(responder):
    texts = responder.embed(["dog", "dog", "teapot"])
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    maps = responder(image, texts, long_side=192)
    assert texts.shape == (3, 384) and maps.shape == (3, 4, 6) and maps.abs().max() <= 1 + 1e-5
    assert torch.equal(maps[0], maps[1]) and not torch.equal(maps[0], maps[2])
    # Resized by hand to the network's size, the image gives the same maps.
    assert torch.equal(maps, responder(resize(image, (128, 192)), texts, long_side=192))
    # Odd sizes become whole locations; an image smaller than a location has one.
    assert responder(image[:37, :51], texts, long_side=100).shape == (3, 2, 3)
    assert responder(image[:10, :90], texts, long_side=40).shape == (3, 1, 1)
    box = responder.best_box(image, texts[0])
    assert (box >= 0).all() and box[2] <= 96 and box[3] <= 64 and (box[2:] >= box[:2]).all()


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)


def test_the_model_s_own_tower_reads_the_texts(responder):
    """A class embedding is the mean of its prompts' unit rows at length 1: one prompt is normalised twice."""
    with torch.no_grad():
        expected = F.normalize(responder.model.text_encoder.encode(["dog", "teapot"]), dim=-1)
    assert torch.equal(responder.embed(["dog", "teapot"]), expected)


class Stages(nn.ModuleList):
    """Predictors of which the last one detects, as a C4 head calls it."""

    def forward(self, x):
        return self[-1](x)

    def inference(self, *arguments):
        return self[-1].inference(*arguments)


def make_cascade(heads):
    heads.box_predictor = Stages(copy.deepcopy(heads.box_predictor) for _ in range(3))


@pytest.mark.parametrize("stages, fails", [(1, False), (1, True), (3, False)])
def test_the_best_box_leaves_the_vocabulary_as_it_was(responder, monkeypatch, stages, fails):
    heads = responder.model.roi_heads
    if stages > 1:
        make_cascade(heads)
    before = {name: buffer.clone() for name, buffer in heads.box_predictor.named_buffers()}
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    texts = responder.embed(["dog", "teapot"])
    with torch.no_grad():  # the model's own tower reads the texts
        torch.testing.assert_close(texts, responder.model.text_encoder.encode(["dog", "teapot"]), rtol=0, atol=1e-6)
    first = responder.best_box(image, texts[0])
    inference = TextOutputLayers.inference

    def watched(*arguments):
        assert [p.num_classes for p in heads.predictors] == [1] * stages
        assert [p.freq_weight.shape for p in heads.predictors] == [(1,)] * stages
        if fails:
            raise RuntimeError("out of memory")
        return inference(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TextOutputLayers, "inference", watched)
        if fails:
            with pytest.raises(RuntimeError, match="out of memory"):
                responder.best_box(image, texts[1])
        else:
            responder.best_box(image, texts[1])
    assert [p.num_classes for p in heads.predictors] == [65] * stages
    after = dict(heads.box_predictor.named_buffers())
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    np.testing.assert_array_equal(responder.best_box(image, texts[0]), first)


@torch.no_grad()
def test_response_maps_of_a_cascade_are_the_last_stages(model):
    heads = model.roi_heads
    make_cascade(heads)
    features = {"res4": torch.randn(1, 112, 4, 6, generator=torch.Generator().manual_seed(0))}
    maps = head_embeddings(heads, features)
    nn.init.zeros_(heads.predictors[0].cls_score.linear.weight)
    assert torch.equal(head_embeddings(heads, features), maps)
    nn.init.normal_(heads.predictors[2].cls_score.linear.weight)
    assert not torch.allclose(head_embeddings(heads, features), maps)
