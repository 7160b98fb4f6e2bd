"""Mosaics with their tiles and captions, as the network gets them."""

import numpy as np

from clim.data.loader import build_mappers

from .drawing import class_colours, draw_boxes, enlarge, ordered
from .page import Example


def mosaic_of_each_grid(cfg, *, seed: int) -> list[Example]:
    """A canvas of every grid of INPUT.MOSAIC.GRIDS with its captions, from the mapper of the training."""
    mapper = build_mappers(cfg, ["mosaics"], seed=seed)["mosaics"]
    grids = set(cfg.INPUT.MOSAIC.GRIDS)
    found: dict[int, dict] = {}
    for epoch in range(50):  # a grid is drawn anew for every canvas
        canvas = mapper(index=epoch % len(mapper.records), epoch=epoch)
        found.setdefault(len(canvas["tiles"]), canvas)
        if len(found) == len(grids):
            break
    return [
        Example(
            f"A mosaic as the network saw it, {tiles} tiles with their captions",
            [("", draw_canvas(canvas, image_format=cfg.INPUT.FORMAT))],
            lines=canvas["tiles"].drawn,
        )
        for tiles, canvas in sorted(found.items())
    ]


def draw_canvas(canvas: dict, *, image_format: str, side: int = 768) -> np.ndarray:
    """Draw the tiles of a canvas with their numbers, from 1: ``image`` (3, H, W) uint8 and ``tiles``."""
    tiles = canvas["tiles"]
    image, scale = enlarge(ordered(canvas["image"].permute(1, 2, 0).numpy(), image_format), side=side)
    numbers = [str(i) for i in range(1, len(tiles) + 1)]
    options = {"colours": class_colours(len(tiles)), "labels_inside": True, "side": side, "letters": side // 22}
    return draw_boxes(image, tiles.boxes.numpy() * scale, numbers, **options)
