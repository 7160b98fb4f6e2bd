"""Mosaics with their tiles and captions, as the network gets them."""

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from clim.data.loader import build_mappers

from .drawing import BLACK, WHITE, font, ordered
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
    image, boxes = ordered(canvas["image"].permute(1, 2, 0).numpy(), image_format), canvas["tiles"].boxes.numpy()
    scale = side / max(image.shape[:2])
    page = ImageOps.scale(Image.fromarray(image), scale)
    pen, letters = ImageDraw.Draw(page), font(side // 20)
    for number, (x0, y0, x1, y1) in enumerate((boxes * scale).tolist(), start=1):
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=WHITE, width=3)
        pen.text((x0 + 8, y0 + 4), str(number), WHITE, letters, stroke_width=3, stroke_fill=BLACK)
    return np.asarray(page)
