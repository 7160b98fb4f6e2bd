"""Grid cells of canvases as regions: which cells show something, and which tile each belongs to.

Shape legend: R cells of all canvases, T tiles; a feature map has h x w cells, of which a padded picture fills fewer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clim.data.tiles import Tiles


class Grid(NamedTuple):
    """The cells of one canvas that show some of it; padding is on the right and below."""

    size: tuple[int, int]  # (H, W) px of the canvas itself
    shape: tuple[int, int]  # cells that show some of it, down and across
    pitch: tuple[float, float]  # px from one cell to the next, down and across

    @classmethod
    def of(cls, size, *, padded, cells) -> "Grid":
        """``size`` (H, W) px, in a network input of ``padded`` px whose map has ``cells``: ⌈H · h / padded H⌉ rows."""
        shape = tuple(-(-s * c // p) for s, c, p in zip(size, cells, padded, strict=True))
        return cls(tuple(size), shape, tuple(p / c for c, p in zip(cells, padded, strict=True)))

    def centres(self, device) -> tuple[Tensor, Tensor]:
        """Rows' y and columns' x (px), each in the middle of what its cell shows of the canvas."""
        starts = [torch.arange(n, device=device) * pitch for n, pitch in zip(self.shape, self.pitch, strict=True)]
        ends = [(s + p).clamp(max=extent) for s, p, extent in zip(starts, self.pitch, self.size, strict=True)]
        y, x = ((start + end) / 2 for start, end in zip(starts, ends, strict=True))
        return y, x


@dataclass
class Cells:
    """Cells to be embedded, tile by tile."""

    canvas: Tensor  # (R,) int64
    row: Tensor  # (R,) int64
    column: Tensor  # (R,) int64
    tile: Tensor  # (R,) int64, ascending where the canvases' tiles are
    place: Tensor  # (R, 2) x and y of its middle, as parts of its canvas's columns and rows

    def __len__(self) -> int:
        return len(self.tile)

    def __getitem__(self, which: Tensor) -> "Cells":
        return Cells(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


def cells_of_tiles(tiles: Tiles, grids: Sequence[Grid]) -> Cells:
    """Each canvas's cells, given to the tile that holds the centre of what the cell shows; gaps have no cells.

    So a plain picture has all cells that show any of it (official OVR-CNN), and a canvas whose tiles end between two
    cells is parted without a rest: 24 x 24 cells into 12, 8 or 6 a side, 25 into 12 and 13 (ovrcnn §3).
    """
    parts = []
    for canvas, grid in enumerate(grids):
        here = (tiles.canvas == canvas).nonzero()[:, 0]
        x0, y0, x1, y1 = tiles.boxes[here].T[..., None]
        y, x = grid.centres(tiles.boxes.device)
        in_row, in_column = (y0 <= y) & (y < y1), (x0 <= x) & (x < x1)
        tile, row, column = (in_row[:, :, None] & in_column[:, None, :]).nonzero(as_tuple=True)
        place = torch.stack([(column + 0.5) / grid.shape[1], (row + 0.5) / grid.shape[0]], dim=1)
        parts.append((torch.full_like(tile, canvas), row, column, here[tile], place))
    return Cells(*(torch.cat(field) for field in zip(*parts, strict=True)))


def drop_cells(cells: Cells, limit: int) -> Cells:
    """At most ``limit`` cells a tile, drawn uniformly without replacement (official OVR-CNN: 100; ovrcnn §1.1); 0: all.

    Drawn from torch's own random state on the CPU, which resuming restores.
    """
    if limit == 0:
        return cells
    tile = cells.tile.cpu()
    shuffled = torch.randperm(len(tile))
    order = shuffled[torch.argsort(tile[shuffled], stable=True)]  # tile by tile, each in random order
    counts = torch.bincount(tile)
    rank = torch.arange(len(tile)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return cells[order[rank < limit].sort().values.to(cells.tile.device)]


def padded(rows: Tensor, tile: Tensor, *, count: int) -> tuple[Tensor, Tensor]:
    """Rows (R, D) of cells by ``count`` tiles: (T, N, D), zeros at the end, and (T, N) bool, True for cells.

    N is that of the tile with most, at least 1.
    """
    counts = torch.bincount(tile, minlength=count)
    real = torch.arange(max([1, *counts.tolist()]), device=tile.device) < counts[:, None]
    out = rows.new_zeros(*real.shape, rows.shape[1])
    out[real] = rows[torch.argsort(tile, stable=True)]
    return out, real
