"""The demo's report: mosaics as the mapper makes them."""

import pytest
import torch

from clim.data.tiles import Tiles
from clim.drawing import class_colours
from reports.demo_report import draw_canvas


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_canvas_shows_the_tiles_of_the_mapper(order):
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    image[0 if order == "RGB" else 2] = 200  # red
    tiles = Tiles(
        boxes=torch.tensor([[0.0, 0, 50, 50], [50, 0, 100, 40]]),
        canvas=torch.zeros(2, dtype=torch.int64),
        image_ids=torch.tensor([1, 2]),
        captions=[["a cat"], ["a dog"]],
        drawn=["a cat", "a dog that is far too long to fit into its tile, whatever the font"],
        tags=[[], []],
    )
    drawn = draw_canvas({"image": image, "tiles": tiles}, image_format=order, side=500)
    assert drawn.shape == (500, 500, 3)
    assert (drawn[450, 250] == (200, 0, 0)).all()
    first, second = class_colours(2)
    assert (drawn[200, 0] == first).all() and (drawn[150, 250] == second).all()
    label = (drawn[:, 251:499] == second).all(axis=2).any(axis=0)
    assert not (drawn[:, :250] == second).all(axis=2).any()  # a label stays in its own tile
    assert label.any()
