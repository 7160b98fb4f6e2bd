"""The grounding method: words of captions, contrast groups, hidden words, matching, what a config may say."""

import pytest
import torch
from torch.nn import functional as F

from clim.data.mosaic import grid_cells
from clim.data.tiles import Tiles
from clim.errors import UserError
from clim.losses import choices
from clim.methods import Texts, build_method
from clim.methods.cells import Grid, cells_of_tiles
from clim.text import build_text_tower

DIM = 32
CAPTIONS = ["dog a", "b c d", "dogs", "e f", "g h i j", "k", "l m", "n o p"]


@pytest.fixture
def make(load_cfg, tiny_bert):
    """``make("KEY", value, …)``: a Grounding with two layers on the tiny BERT; keys under MODEL.METHOD.GROUNDING."""

    def method(*overrides):
        keys = [f"MODEL.METHOD.GROUNDING.{o}" if i % 2 == 0 else o for i, o in enumerate(overrides)]
        cfg = load_cfg(
            "OVRCNN_pretrain.yaml", "MODEL.TEXT.NAME", str(tiny_bert), "MODEL.TEXT.DIM", DIM,
            "MODEL.METHOD.NAME", "Grounding", "MODEL.METHOD.GROUNDING.LAYERS", 2, "MODEL.METHOD.GROUNDING.HEADS", 2,
            "MODEL.METHOD.GROUNDING.TEMPERATURE", 1.0, *keys,
        )  # fmt: skip
        torch.manual_seed(0)
        return build_method(cfg, pools="cells")

    return method


@pytest.fixture(scope="module")
def tower(tiny_bert):
    return build_text_tower(name=str(tiny_bert))


def batch(*grids):
    """Tiles of canvases of n x n tiles, 64 px a tile and 32 px a cell, with CAPTIONS in turn."""
    boxes = [torch.from_numpy(grid_cells(n, size=(64 * n, 64 * n))).float() for n in grids]
    count = sum(len(b) for b in boxes)
    tiles = Tiles(
        boxes=torch.cat(boxes),
        canvas=torch.arange(len(grids)).repeat_interleave(torch.tensor([len(b) for b in boxes])),
        image_ids=torch.arange(count), captions=[["x"]] * count,
        drawn=[CAPTIONS[i % len(CAPTIONS)] for i in range(count)], tags=[[]] * count,
    )  # fmt: skip
    return tiles, [Grid.of((64 * n, 64 * n), padded=(64 * n, 64 * n), cells=(2 * n, 2 * n)) for n in grids]


def run(method, tower, *grids, seed=0):
    tiles, proposals = batch(*grids)
    cells = method.select(tiles, proposals)
    rows = torch.randn(len(cells["cell"]), DIM, generator=torch.Generator().manual_seed(5)) * 3
    rows.requires_grad_()
    texts = Texts(tiles, encoder=tower, class_embeddings=torch.zeros(0, DIM))
    torch.manual_seed(seed)
    return method.losses({"cell": rows}, cells, texts), rows, tiles


TERMS = ["loss_words_to_image", "loss_words_to_caption", "loss_cells_to_image", "loss_cells_to_caption"]


def slow_terms(tower, rows, members, temperature=1.0):
    """The four terms of the tiles ``members``, four cells each, from unpadded words."""
    words = [tower.word_embeddings[tower.tokenize([CAPTIONS[i % 8]])[0][1:-1]] for i in members]
    scores = {"words": torch.zeros(len(members), len(members)), "cells": torch.zeros(len(members), len(members))}
    for i, caption in enumerate(words):
        for j, tile in enumerate(members):
            s = caption @ rows[4 * tile : 4 * tile + 4].T / temperature
            scores["words"][i, j] = (s.softmax(1) * s).sum(1).mean()
            scores["cells"][i, j] = (s.softmax(0) * s).sum(0).mean()
    return [loss for matrix in scores.values() for loss in choices(matrix, torch.arange(len(members)))]


def test_all_tiles_are_contrasted_with_all_captions(make, tower):
    found, rows, _ = run(make("LAYERS", 0, "CONTRAST_GROUP", 0), tower, 1, 1, 2)
    assert list(found) == TERMS
    expected = slow_terms(tower, rows, range(6))
    torch.testing.assert_close(list(found.values()), expected, rtol=1e-4, atol=1e-5)


def test_contrast_groups_stand_alone_and_count_by_their_tiles(make, tower):
    found, rows, _ = run(make("LAYERS", 0, "CONTRAST_GROUP", 4), tower, 1, 1, 2)
    parts = [slow_terms(tower, rows, range(4)), slow_terms(tower, rows, range(4, 6))]
    expected = [4 / 6 * first + 2 / 6 * second for first, second in zip(*parts, strict=True)]
    torch.testing.assert_close(list(found.values()), expected, rtol=1e-4, atol=1e-5)
    whole, _, _ = run(make("LAYERS", 0, "CONTRAST_GROUP", 0), tower, 1, 1, 2)
    large, _, _ = run(make("LAYERS", 0, "CONTRAST_GROUP", 6), tower, 1, 1, 2)
    assert whole == large


def test_the_mean_of_cosines_has_two_terms(make, tower):
    method = make("LAYERS", 0, "GLOBAL_METRIC", "mean", "LOCAL_METRIC", "cosine", "TEMPERATURE", 0.01)
    found, rows, _ = run(method, tower, 1, 1)
    unit = F.normalize(rows, dim=1).view(2, 4, DIM).mean(1)
    words = [tower.word_embeddings[tower.tokenize([c])[0][1:-1]] for c in CAPTIONS[:2]]
    scores = torch.stack([F.normalize(w, dim=1).mean(0) for w in words]) @ unit.T / 0.01
    expected = dict(
        zip(["loss_pairs_to_image", "loss_pairs_to_caption"], choices(scores, torch.arange(2)), strict=True)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_plain_pictures_alone_reach_the_transformer(make, tower):
    method = make("CONTRAST_GROUP", 0).eval()
    found, rows, tiles = run(method, tower, 1, 1, 2)
    tokens = tower.tokens(tiles.drawn)
    ids, attention, _ = tokens.of(torch.arange(2))  # padding is read, and is that of plain captions alone
    assert ids.shape[1] == attention.sum(1).max() < tokens.ids.shape[1]
    context = tower.contextual(ids, attention)
    place = cells_of_tiles(*batch(1, 1)).place.view(2, 4, 2)
    scores, _ = method.transformer(
        context, attention, rows[:8].view(2, 4, DIM), torch.ones(2, 4, dtype=torch.bool), place
    )
    torch.testing.assert_close(found["loss_matching"], sum(choices(scores, torch.arange(2))))
    assert found["loss_words"] == 0  # nothing is hidden in evaluation
    assert not {"loss_matching", "loss_words"} & run(method, tower, 2)[0].keys()


def test_hidden_words_are_predicted_beside_their_own_picture(make, tower):
    method = make("MLM_PROBABILITY", 1.0, "MLM_HIDDEN", 1.0, "TEXT_DROPOUT", False, "DROPOUT", 0.0).train()
    found, rows, tiles = run(method, tower, 1, 1)
    tokens = tower.tokens(tiles.drawn)
    ids = torch.where(tokens.special, tokens.ids, tower.mask_id)
    context = tower.contextual(ids, tokens.attention)
    place = cells_of_tiles(*batch(1, 1)).place.view(2, 4, 2)
    _, matched = method.transformer(
        context, tokens.attention, rows.view(2, 4, DIM), torch.ones(2, 4, dtype=torch.bool), place
    )
    words = ~tokens.special
    logits = method.transformer.word_logits(matched[words], tower.word_embeddings)
    torch.testing.assert_close(found["loss_words"], F.cross_entropy(logits, tokens.ids[words]))
    # all words are hidden, so that captions have none for grounding: every choice is a guess
    torch.testing.assert_close(torch.stack([found[t] for t in TERMS]), torch.full((4,), 2.0).log())


def test_captions_of_tiles_are_never_hidden(make, tower):
    method = make("MLM_PROBABILITY", 1.0, "MLM_HIDDEN", 1.0, "CONTRAST_GROUP", 0)
    tiles, _ = batch(1, 2)
    tokens = tower.tokens(tiles.drawn)
    read, chosen = method.train().hide_words(tokens, tiles.alone, mask_id=tower.mask_id)
    assert torch.equal(read.ids[1:], tokens.ids[1:]) and torch.equal(read.special[1:], tokens.special[1:])
    assert torch.equal(chosen[0], ~tokens.special[0]) and not chosen[1:].any()
    assert method.eval().hide_words(tokens, tiles.alone, mask_id=tower.mask_id)[0] is tokens
    without = make("LAYERS", 0).train()
    assert without.hide_words(tokens, tiles.alone, mask_id=tower.mask_id)[0] is tokens


def test_a_batch_without_a_hidden_word_still_has_all_gradients(make, tower):
    method = make("MLM_PROBABILITY", 0.0).train()
    found, rows, _ = run(method, tower, 1, 1)
    assert found["loss_words"] == 0
    sum(found.values()).backward()
    assert rows.grad.any() and all(p.grad is not None for p in method.parameters())


def test_cells_are_dropped_in_training_only(make):
    method = make("LAYERS", 0, "MAX_CELLS", 3)
    tiles, grids = batch(1, 2)
    assert torch.bincount(method.train().select(tiles, grids)["cell"].tile).tolist() == [3] * 5
    assert torch.bincount(make("MAX_CELLS", 0).train().select(tiles, grids)["cell"].tile).tolist() == [4] * 5
    assert torch.bincount(method.eval().select(tiles, grids)["cell"].tile).tolist() == [4] * 5


def test_wrong_words_are_told(make, load_cfg, tiny_bert):
    with pytest.raises(UserError, match=r'GROUNDING\.GLOBAL_METRIC is "max": choose one of aligned_local, mean'):
        make("GLOBAL_METRIC", "max")
    with pytest.raises(UserError, match=r'GROUNDING\.LOCAL_METRIC is "l2": choose one of dot, cosine'):
        make("LOCAL_METRIC", "l2")
    with pytest.raises(UserError, match=r"HEADS 5 does not divide MODEL\.TEXT\.DIM 32"):
        make("HEADS", 5)
    with pytest.raises(UserError, match=r"TEMPERATURE 1.0 divides cosines, which differ by 2 at most"):
        make("LOCAL_METRIC", "cosine")
    bert = ["MODEL.TEXT.NAME", str(tiny_bert), "MODEL.TEXT.DIM", DIM]
    for pictures, group in ((1, 0), (1, 8), (9, 4), (5, 2)):
        keys = ["DATALOADER.CAPTIONS_PER_GPU", pictures, "MODEL.METHOD.GROUNDING.CONTRAST_GROUP", group]
        with pytest.raises(UserError, match=f"CONTRAST_GROUP {group} leaves one of .* {pictures} pictures alone"):
            build_method(load_cfg("OVRCNN_pretrain.yaml", *bert, *keys), pools="cells")
    with pytest.raises(UserError, match=r"CAPTIONS_PER_GPU is 0: raise it, or set LAYERS 0"):
        build_method(load_cfg("OVRCNN_pretrain.yaml", *bert, "DATALOADER.CAPTIONS_PER_GPU", 0), pools="cells")
    with pytest.raises(UserError, match=r"ViT-B-32-quickgelu is a CLIP"):
        build_method(load_cfg("OVRCNN_pretrain.yaml", "MODEL.TEXT.NAME", "ViT-B-32-quickgelu"), pools="cells")
    with pytest.raises(UserError, match=r"Grounding pools cells, but .* GridTextModel boxes"):
        build_method(load_cfg("OVRCNN_pretrain.yaml", *bert))


def test_presets_of_the_configs(load_cfg):
    """Official mmss_v07.yaml (ovrcnn §1), and + CLIM as ovrcnn §3 has it."""
    keys = load_cfg("OVRCNN_pretrain.yaml").MODEL.METHOD.GROUNDING
    assert (keys.GLOBAL_METRIC, keys.LOCAL_METRIC, keys.TEMPERATURE) == ("aligned_local", "dot", 10)
    assert (keys.CONTRAST_GROUP, keys.MAX_CELLS, keys.LAYERS, keys.HEADS) == (8, 100, 6, 8)
    assert (keys.DROPOUT, keys.MASK_PADDING, keys.TEXT_DROPOUT) == (0.1, False, True)
    assert (keys.MLM_PROBABILITY, keys.MLM_HIDDEN) == (0.15, 0.9)
    clim = load_cfg("OVRCNN_CLIM_pretrain.yaml").MODEL.METHOD.GROUNDING
    assert (clim.CONTRAST_GROUP, clim.JOINT) == (0, True)
    assert {k: v for k, v in clim.items() if k != "CONTRAST_GROUP"} == {
        k: v for k, v in keys.items() if k != "CONTRAST_GROUP"
    }
