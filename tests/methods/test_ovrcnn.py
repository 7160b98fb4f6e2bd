"""OV-RCNN: locations of tiles against looking at every one, contrast groups, hidden words, matching, configs."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from clim.data.mosaic import grid_cells
from clim.data.tiles import Tiles
from clim.errors import UserError
from clim.losses import choices
from clim.methods import Texts, build_method
from clim.methods.ovrcnn import FeatureGrid, Locations, drop_locations, locations_of_tiles, pad_by_tile
from clim.text import build_text_tower

DIM = 32
CAPTIONS = ["dog a", "b c d", "dogs", "e f", "g h i j", "k", "l m", "n o p"]
TERMS = ["loss_words_to_image", "loss_words_to_caption", "loss_cells_to_image", "loss_cells_to_caption"]


def tiles_on(*canvases):
    """Tiles with the given boxes, canvas by canvas, with CAPTIONS in turn."""
    counts = torch.tensor([len(boxes) for boxes in canvases])
    total = int(counts.sum())
    return Tiles(
        boxes=torch.tensor([box for boxes in canvases for box in boxes], dtype=torch.float32).view(-1, 4),
        canvas=torch.arange(len(canvases)).repeat_interleave(counts), image_ids=torch.arange(total),
        captions=[["x"]] * total, drawn=[CAPTIONS[i % 8] for i in range(total)], tags=[[]] * total,
    )  # fmt: skip


def square(side, *, stride=32):
    return FeatureGrid((side, side), padded=(side, side), map_size=(side // stride, side // stride))


def batch(*grids):
    """Tiles of canvases of n x n tiles, 64 px a tile and 32 px a location, and the canvases' feature grids."""
    return tiles_on(*(grid_cells(n, size=(64 * n, 64 * n)).tolist() for n in grids)), [square(64 * n) for n in grids]


def listed(locations):
    return list(zip(locations.tile.tolist(), locations.row.tolist(), locations.column.tolist(), strict=True))


# ---- locations of tiles


def test_a_canvas_is_split_without_a_rest():
    for side, n, counts in (
        (768, 2, [12, 12]), (768, 3, [8, 8, 8]), (768, 4, [6, 6, 6, 6]),
        (800, 2, [12, 13]), (800, 3, [8, 9, 8]), (384, 4, [3, 3, 3, 3]),
    ):  # fmt: skip
        locations = locations_of_tiles(tiles_on(grid_cells(n, size=(side, side)).tolist()), [square(side)])
        expected = [down * across for down in counts for across in counts]
        assert torch.bincount(locations.tile).tolist() == expected and len(locations) == (side // 32) ** 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_locations_are_those_of_the_definition(data):
    """The visible part of every location, its centre, and the tile that holds it."""
    height, width, n = data.draw(st.integers(8, 96)), data.draw(st.integers(8, 96)), data.draw(st.integers(1, 3))
    size = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    h, w = math.ceil(height / 8), math.ceil(width / 8)
    boxes, expected = grid_cells(n, size=size).tolist(), []
    for tile, (x0, y0, x1, y1) in enumerate(boxes):
        for row, column in itertools.product(range(h), range(w)):
            top, left = row * height / h, column * width / w
            y = (top + min((row + 1) * height / h, size[0])) / 2
            x = (left + min((column + 1) * width / w, size[1])) / 2
            if top < size[0] and left < size[1] and x0 <= x < x1 and y0 <= y < y1:
                expected.append((tile, row, column))
    found = locations_of_tiles(tiles_on(boxes), [FeatureGrid(size, padded=(height, width), map_size=(h, w))])
    assert listed(found) == expected
    if n == 1:  # official OVR-CNN: ⌈H h / H'⌉ x ⌈W w / W'⌉
        assert len(found) == math.ceil(size[0] * h / height) * math.ceil(size[1] * w / width)


def test_several_canvases_gaps_and_places():
    plain, gappy = [[0, 0, 40, 64]], [[0, 0, 20, 20], [32, 32, 64, 64], [21, 0, 22, 1]]
    grids = [FeatureGrid((64, 40), padded=(64, 64), map_size=(4, 4)), square(64, stride=16)]
    locations = locations_of_tiles(tiles_on(plain, gappy), grids)
    assert torch.bincount(locations.tile, minlength=4).tolist() == [12, 1, 4, 0]  # 4 x 3; none between two centres
    assert locations.canvas.tolist() == [0] * 12 + [1] * 5
    first = torch.tensor([[1 / 6, 1 / 8], [3 / 6, 1 / 8], [5 / 6, 1 / 8], [1 / 6, 3 / 8]])
    torch.testing.assert_close(locations.place[:4], first)
    assert locations.place[12].tolist() == [1 / 8, 1 / 8]


def test_dropout_keeps_small_tiles_whole_and_draws_from_large_ones_uniformly():
    grids = [square(96, stride=16), square(32, stride=16)]
    locations = locations_of_tiles(tiles_on([[0, 0, 96, 96]], [[0, 0, 32, 32]]), grids)
    torch.manual_seed(0)
    drawn = torch.zeros(36)
    for _ in range(400):
        places = listed(drop_locations(locations, 9))
        assert [tile for tile, *_ in places] == [0] * 9 + [1] * 4
        assert places == sorted(set(places)) and places[9:] == listed(locations)[36:]
        drawn[[6 * row + column for tile, row, column in places if tile == 0]] += 1
    assert drawn.min() > 100 - 5 * 75**0.5 and drawn.max() < 100 + 5 * 75**0.5  # binomial(400, 1/4)
    assert listed(drop_locations(locations, 36)) == listed(locations)
    empty = torch.zeros(0, dtype=torch.int64)
    assert len(drop_locations(Locations(empty, empty, empty, empty, torch.zeros(0, 2)), 5)) == 0


def test_locations_are_dropped_in_training_only(make):
    for limit, training, kept in ((3, True, 3), (0, True, 4), (3, False, 4)):
        method = make("LAYERS", 0, "MAX_CELLS", limit).train(training)
        assert torch.bincount(method.select(*batch(1, 2))["location"].tile).tolist() == [kept] * 5


def test_rows_of_tiles_are_padded_in_their_order():
    tile, rows = torch.tensor([0, 2, 2, 0, 2]), torch.arange(10.0).view(5, 2).requires_grad_()
    out, real = pad_by_tile(rows, tile, count=4)
    assert real.tolist() == [[True, True, False], [False] * 3, [True] * 3, [False] * 3]
    assert torch.equal(out[0, :2], rows[[0, 3]]) and torch.equal(out[2], rows[[1, 2, 4]])
    assert out.shape == (4, 3, 2) and not out[~real].any()
    out.sum().backward()
    assert torch.equal(rows.grad, torch.ones(5, 2))
    out, real = pad_by_tile(torch.zeros(0, 3), tile[:0], count=2)
    assert out.shape == (2, 1, 3) and real.tolist() == [[False], [False]]


# ---- the method


@pytest.fixture
def make(load_cfg, tiny_bert):
    """``make("KEY", value, …)``: a Grounding with two layers on the tiny BERT; keys under MODEL.METHOD.GROUNDING."""

    def method(*overrides):
        keys = [f"MODEL.METHOD.GROUNDING.{o}" if i % 2 == 0 else o for i, o in enumerate(overrides)]
        cfg = load_cfg(
            "OVRCNN_pretrain.yaml", "MODEL.TEXT.NAME", str(tiny_bert), "MODEL.TEXT.DIM", DIM,
            "MODEL.METHOD.GROUNDING.LAYERS", 2, "MODEL.METHOD.GROUNDING.HEADS", 2,
            "MODEL.METHOD.GROUNDING.TEMPERATURE", 1.0, *keys,
        )  # fmt: skip
        torch.manual_seed(0)
        return build_method(cfg, pools="locations")

    return method


@pytest.fixture(scope="module")
def tower(tiny_bert):
    return build_text_tower(name=str(tiny_bert))


def run(method, tower, *grids, seed=0):
    tiles, feature_grids = batch(*grids)
    locations = method.select(tiles, feature_grids)
    rows = torch.randn(len(locations["location"]), DIM, generator=torch.Generator().manual_seed(5)) * 3
    rows.requires_grad_()
    texts = Texts(tiles, encoder=tower, class_embeddings=torch.zeros(0, DIM))
    torch.manual_seed(seed)
    return method.losses({"location": rows}, locations, texts), rows, tiles


def words_of(tower):
    return [tower.word_embeddings[ids[1:-1]] for ids in tower.tokenize(CAPTIONS)]


def slow_terms(tower, rows, members):
    """The four terms of the tiles ``members``, four locations each, from unpadded words."""
    words, count = words_of(tower), len(members)
    scores = torch.zeros(2, count, count)
    for i, caption in enumerate(members):
        for j, tile in enumerate(members):
            s = words[caption % 8] @ rows[4 * tile : 4 * tile + 4].T
            scores[0, i, j] = (s.softmax(1) * s).sum(1).mean()
            scores[1, i, j] = (s.softmax(0) * s).sum(0).mean()
    return torch.stack([loss for matrix in scores for loss in choices(matrix, torch.arange(count))])


@pytest.mark.parametrize("group, groups", [(0, [range(6)]), (6, [range(6)]), (4, [range(4), range(4, 6)])])
def test_tiles_are_contrasted_within_their_groups_which_count_by_their_tiles(make, tower, group, groups):
    found, rows, _ = run(make("LAYERS", 0, "CONTRAST_GROUP", group), tower, 1, 1, 2)
    assert list(found) == TERMS
    expected = sum(len(members) / 6 * slow_terms(tower, rows, list(members)) for members in groups)
    torch.testing.assert_close(torch.stack(list(found.values())), expected, rtol=1e-4, atol=1e-5)


def test_the_mean_of_cosines_has_two_terms(make, tower):
    method = make("LAYERS", 0, "GLOBAL_METRIC", "mean", "LOCAL_METRIC", "cosine", "TEMPERATURE", 0.01)
    found, rows, _ = run(method, tower, 1, 1)
    unit = F.normalize(rows, dim=1).view(2, 4, DIM).mean(1)
    scores = torch.stack([F.normalize(w, dim=1).mean(0) for w in words_of(tower)[:2]]) @ unit.T / 0.01
    image, caption = choices(scores, torch.arange(2))
    expected = {"loss_pairs_to_image": image, "loss_pairs_to_caption": caption}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def read_slowly(method, tower, ids, attention, rows):
    """The transformer's (scores, features) of two plain images with four locations each."""
    place = locations_of_tiles(*batch(1, 1)).place.view(2, 4, 2)
    images = rows[:8].view(2, 4, DIM), torch.ones(2, 4, dtype=torch.bool), place
    return method.transformer(tower.contextual(ids, attention), attention, *images)


def test_plain_images_alone_reach_the_transformer(make, tower):
    method = make("CONTRAST_GROUP", 0).eval()
    found, rows, tiles = run(method, tower, 1, 1, 2)
    tokens = tower.tokens(tiles.drawn)
    ids, attention, _ = tokens.of(torch.arange(2))  # the padding of plain captions, which is read
    assert ids.shape[1] == attention.sum(1).max() < tokens.ids.shape[1]
    scores, _ = read_slowly(method, tower, ids, attention, rows)
    torch.testing.assert_close(found["loss_matching"], sum(choices(scores, torch.arange(2))))
    assert found["loss_words"] == 0  # nothing is hidden in evaluation
    assert not {"loss_matching", "loss_words"} & run(method, tower, 2)[0].keys()


def test_hidden_words_are_predicted_beside_their_own_image(make, tower):
    method = make("MLM_PROBABILITY", 1.0, "MLM_HIDDEN", 1.0, "TEXT_DROPOUT", False, "DROPOUT", 0.0).train()
    found, rows, tiles = run(method, tower, 1, 1)
    tokens = tower.tokens(tiles.drawn)
    words = ~tokens.special
    ids = torch.where(words, tower.mask_id, tokens.ids)
    _, matched = read_slowly(method, tower, ids, tokens.attention, rows)
    logits = method.transformer.heads.predictions(matched[words], tower.word_embeddings)
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
    for one in (method.eval(), make("LAYERS", 0).train()):
        assert one.hide_words(tokens, tiles.alone, mask_id=tower.mask_id)[0] is tokens
    method = make("MLM_PROBABILITY", 0.0).train()  # without a hidden word, all parameters have gradients too
    found, rows, _ = run(method, tower, 1, 1)
    assert found["loss_words"] == 0
    sum(found.values()).backward()
    assert rows.grad.any() and all(p.grad is not None for p in method.parameters())


GROUNDING = "MODEL.METHOD.GROUNDING."


@pytest.mark.parametrize("overrides, named", [
    ([GROUNDING + "LOCAL_METRIC", "cosine", GROUNDING + "TEMPERATURE", 1.0], "TEMPERATURE"),
    (["DATALOADER.CAPTIONS_PER_GPU", 0], "CAPTIONS_PER_GPU"),
    ([GROUNDING + "JOINT", False, "DATALOADER.MOSAICS_PER_GPU", 1, "INPUT.MOSAIC.GRIDS", [1, 2]], "GRIDS has 1"),
    (["MODEL.TEXT.NAME", "ViT-B-32-quickgelu"], "MODEL.TEXT.NAME"),
    *((["DATALOADER.CAPTIONS_PER_GPU", images, GROUNDING + "CONTRAST_GROUP", group], "CONTRAST_GROUP")
      for images, group in ((1, 0), (1, 8), (9, 4), (5, 2))),
])  # fmt: skip
def test_settings_with_which_it_cannot_learn(load_cfg, tiny_bert, overrides, named):
    cfg = load_cfg("OVRCNN_pretrain.yaml", "MODEL.TEXT.NAME", str(tiny_bert), "MODEL.TEXT.DIM", DIM, *overrides)
    with pytest.raises(UserError, match=named):
        build_method(cfg, pools="locations")
    with pytest.raises(UserError, match="GridTextModel"):
        build_method(cfg)
