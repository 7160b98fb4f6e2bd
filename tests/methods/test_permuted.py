"""Controls: the method that they are of, on exchanged tiles, and nothing else drawn or changed."""

import pytest
import torch

from clim.data.mosaic import grid_cells
from clim.data.tiles import Tiles
from clim.methods import permuted
from clim.methods.base import METHOD_REGISTRY
from clim.methods.permuted import Exchanged, PermutedClip, exchanged

CONTROLS = {
    "PermutedDetic": "Detic",
    "PermutedBaron": "Baron",
    "PermutedClip": "ClipContrast",
    "PermutedGrounding": "Grounding",
}


def tiles_of(*grids):
    """Canvases of n x n tiles, 32 px each."""
    boxes = [torch.from_numpy(grid_cells(n, size=(32 * n, 32 * n))).float() for n in grids]
    count = sum(len(b) for b in boxes)
    return Tiles(
        boxes=torch.cat(boxes),
        canvas=torch.arange(len(grids)).repeat_interleave(torch.tensor([len(b) for b in boxes])),
        image_ids=torch.arange(count), captions=[[f"caption {i}"] for i in range(count)],
        drawn=[f"caption {i}" for i in range(count)], tags=[[i] for i in range(count)],
        groups=torch.zeros(2, 0, count, dtype=torch.bool),
    )  # fmt: skip


def test_every_tile_of_a_mosaic_moves_to_another_place_of_its_canvas():
    tiles = tiles_of(2, 1, 3)
    before = tiles.boxes.clone()
    torch.manual_seed(0)
    found = exchanged(tiles)
    for canvas in range(3):
        own = tiles.canvas == canvas
        assert sorted(found.boxes[own].tolist()) == sorted(before[own].tolist())
    moved = (found.boxes != before).any(dim=1)
    assert moved.tolist() == [True] * 4 + [False] + [True] * 9  # a picture alone stays
    assert torch.equal(tiles.boxes, before)
    for name in ("canvas", "image_ids", "captions", "drawn", "tags", "groups"):
        assert getattr(found, name) is getattr(tiles, name)


def test_one_number_is_drawn_a_mosaic():
    """The rotation by torch's own random state: what follows a control's selection is as repeatable as ours."""
    tiles = tiles_of(2, 1, 3)
    torch.manual_seed(3)
    by = [int(torch.randint(1, count, ())) for count in (4, 9)]
    after = torch.rand(1)
    torch.manual_seed(3)
    found = exchanged(tiles)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(found.boxes[:4], tiles.boxes[:4].roll(by[0], 0))
    assert torch.equal(found.boxes[5:], tiles.boxes[5:].roll(by[1], 0))


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_differs_from_its_method_in_the_selection_alone(name, monkeypatch):
    control, method = METHOD_REGISTRY.get(name), METHOD_REGISTRY.get(CONTROLS[name])
    assert control.__mro__[:3] == (control, Exchanged, method)
    assert not {"select", "losses", "commit", "__init__"} & set(vars(control))
    seen = []
    monkeypatch.setattr(permuted, "exchanged", lambda tiles: f"exchanged {tiles}")
    monkeypatch.setattr(method, "select", lambda self, *given: seen.append(given) or "regions")
    assert control.select(control.__new__(control), "tiles", "proposals") == "regions"
    assert seen == [("exchanged tiles", "proposals")]


def test_the_control_changes_which_text_belongs_to_which_tile_and_nothing_else():
    boxes = torch.arange(20.0).view(5, 4)
    tiles = Tiles(
        boxes=boxes, canvas=torch.tensor([0, 1, 1, 1, 1]), image_ids=torch.arange(5), captions=[["x"]] * 5,
        drawn=list("abcde"), tags=[[]] * 5, groups=torch.zeros(2, 0, 5, dtype=torch.bool),
    )  # fmt: skip
    torch.manual_seed(0)
    regions = PermutedClip(scale=1.0, max_scale=100.0).select(tiles, None)["tile"]
    assert torch.equal(regions.boxes[0], boxes[0])  # a whole picture keeps its text
    assert torch.equal(regions.boxes.sort(0).values, boxes)
    assert (regions.boxes[1:] != boxes[1:]).any(1).all()
    assert torch.equal(regions.canvas, tiles.canvas) and torch.equal(tiles.boxes, boxes)
