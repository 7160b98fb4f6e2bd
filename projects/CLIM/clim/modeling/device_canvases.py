"""Canvases made inside the training step, from the single crops of a batch (CLIM release, clip_fvlm §2)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from clim.data.mosaic import compose, grid_cells
from clim.data.tiles import Tiles
from clim.errors import UserError


class Canvases(NamedTuple):
    """Network inputs of one size, and what lies on each."""

    pixels: Tensor  # (B, 3, H, W), normalised
    tiles: list[Tiles]  # one a canvas


def compose_groups(
    singles: Canvases, *, grids: Sequence[int], size: int, permute_texts: bool = False
) -> tuple[Canvases, Canvases]:
    """Single crops → (those left over, canvases).

    Every Σ n² crops (29 for 2, 3 and 4) make one canvas of each grid. The first crops of the batch fill all
    canvases of the first grid row by row, the next those of the second, and so on. Crops are laid side by
    side at their own size, and the canvas is then resized to ``size`` x ``size`` px (bicubic, not
    anti-aliased); the boxes are the exact cells, between pixels where ``size`` is no multiple of n.

    ``permute_texts``: every tile of a mosaic gets the texts of another tile, by a rotation drawn from torch's own
    random state on the CPU, which resuming restores.

    Raises:
        UserError: the batch is too small for one group.
    """
    count, needed = len(singles.tiles), sum(n * n for n in grids)
    groups = count // needed
    if groups == 0:
        raise UserError(
            f"INPUT.MOSAIC.COMPOSE device makes canvases of {list(grids)} from {needed} single crops, but a process "
            f"has {count}: raise DATALOADER.CAPTIONS_PER_GPU, or lower INPUT.MOSAIC.GRIDS."
        )
    pixels, tiles, start = [], [], 0
    for n in grids:
        for _ in range(groups):
            members = range(start, start + n * n)
            pixels.append(_canvas(singles.pixels[start : start + n * n], n=n, size=size))
            joined = _joined([singles.tiles[i] for i in members], n=n, size=size)
            if permute_texts and len(joined) > 1:
                joined = joined.with_rolled_texts(int(torch.randint(1, len(joined), ())))
            tiles.append(joined)
            start += n * n
    return Canvases(singles.pixels[start:], singles.tiles[start:]), Canvases(torch.stack(pixels), tiles)


def _canvas(crops: Tensor, *, n: int, size: int) -> Tensor:
    side = crops.shape[-1] * n
    canvas = compose(list(crops), grid_cells(n, size=(side, side)), size=(side, side))
    return F.interpolate(canvas[None], size=(size, size), mode="bicubic", align_corners=False)[0]


def _joined(singles: list[Tiles], *, n: int, size: int) -> Tiles:
    """Tiles of 1 x 1 canvases as the cells of one n x n canvas."""
    tiles = Tiles.cat(singles)
    # the cells of an n x n px canvas are whole numbers; scaled, they are exact
    tiles.boxes = torch.from_numpy(grid_cells(n, size=(n, n))).float() * (size / n)
    tiles.canvas = torch.zeros_like(tiles.canvas)
    return tiles
