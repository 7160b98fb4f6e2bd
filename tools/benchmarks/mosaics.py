"""Mosaics per second and core, with tiles that are decoded anew, come from small copies or are kept in memory."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from clim.data import images, mappers
from clim.data.images import read_image, resize
from clim.data.mosaic import fit_cell, grid_cells, inward_anchors, place
from clim_commands.shrink import make_copy

from .inputs import Settings
from .stopwatch import REST, Run, Spread, Stages, interleaved, measure, paired_ratio, shares

GRIDS = (2, 3, 4)
CANVAS = 800  # px
RELEASED_CELL = 400  # px, to which the CLIM release resizes every image before it lays it on a canvas


class ReleasedOrder:
    """The baseline, which works in the order of the CLIM release.

    It decodes each image whole, fits it into 400 px, makes a canvas of n x n cells, and resizes the canvas.
    ``partners`` gives the fitted image of a record; the release keeps 1,024 of them in memory.
    """

    def __init__(self, records: Sequence[dict], *, n: int, partners: Callable[[int], np.ndarray] | None = None):
        self.records, self.n = records, n
        self.partner = partners or self.fitted

    def fitted(self, index: int) -> np.ndarray:
        image = mappers.read_image(self.records[index]["file_name"]).image
        size = fit_cell(*image.shape[:2], cell=(RELEASED_CELL, RELEASED_CELL))
        return images.resize(image, size)

    def __call__(self, *, index: int, epoch: int) -> torch.Tensor:
        rng = np.random.default_rng([epoch, index])
        others = rng.choice(len(self.records), self.n**2 - 1, replace=len(self.records) < self.n**2)
        tiles = [self.fitted(index), *(self.partner(int(i)) for i in others)]
        side = self.n * RELEASED_CELL
        cells = grid_cells(self.n, size=(side, side))
        boxes = place(np.array([p.shape[:2] for p in tiles]), cells, inward_anchors(self.n, rng))
        canvas = np.full((side, side, 3), 114, dtype=np.uint8)
        for image, (x0, y0, x1, y1) in zip(tiles, boxes.tolist(), strict=True):
            canvas[y0:y1, x0:x1] = image if rng.random() < 0.5 else image[:, ::-1]
        canvas = images.resize(canvas, (CANVAS, CANVAS))
        return torch.from_numpy(np.ascontiguousarray(canvas.transpose(2, 0, 1)))


def full_decode(file_name, *, at_least=None, **options):
    """The photo at its full size; ``at_least`` changes nothing."""
    return read_image(file_name, **options)


def mosaic_arms(settings: Settings, records: Sequence[dict], n: int) -> dict[str, Callable[[], Run]]:
    """Functions that make the same ``settings.canvases`` canvases of n x n tiles, each in its own way."""
    options = {"grids": [n], "short": CANVAS, "long": CANVAS, "flip": 0.5, "seed": 0, "stream": 0}
    clim = mappers.CanvasMapper(records, **options)
    root, folder = Path(os.sep), Path(settings.folder, "copies")
    for record in records:
        make_copy(os.path.abspath(record["file_name"])[1:], images=root, copies=folder)
    shrunk = mappers.CanvasMapper(records, copies=[(root, folder)], **options)
    released = ReleasedOrder(records, n=n)
    remembering = ReleasedOrder(records, n=n, partners=functools.cache(released.fitted))
    stages = Stages()

    def arm(make, read):
        def run():
            for i in range(settings.canvases):
                make(index=i % len(records), epoch=i // len(records))

        def timed():
            with (
                mock.patch.object(mappers, "read_image", stages.timed("decode", read)),
                mock.patch.object(images, "resize", stages.timed("resize", resize)),
            ):
                return measure(run, stages=stages)

        return timed

    return {
        "CLIM, decoded afresh": arm(clim, read_image),
        "CLIM, shrunk copies": arm(shrunk, read_image),
        "CLIM, full-size decode": arm(clim, full_decode),
        "CLIM, tiles in memory": arm(clim, functools.cache(read_image)),
        "released order, decoded afresh": arm(released, read_image),
        "released order, partners in memory": arm(remembering, read_image),
    }


def measure_mosaics(settings: Settings, records: Sequence[dict]) -> list[dict]:
    settings.start()
    rows, by_grid = [], []
    for n in GRIDS:
        arms = mosaic_arms(settings, records, n)
        by_grid.append(interleaved(arms, repeats=settings.repeats, title=f"mosaics {n} x {n}"))
        rows += mosaic_rows(f"{n} x {n}", by_grid[-1], canvases=settings.canvases)
    everything = {name: [joined(runs) for runs in zip(*(g[name] for g in by_grid), strict=True)] for name in by_grid[0]}
    return rows + mosaic_rows("2, 3, 4", everything, canvases=settings.canvases * len(GRIDS))


def joined(runs: Sequence[Run]) -> Run:
    """Several runs as one long run."""
    stages = {name: sum(r.stages.get(name, 0.0) for r in runs) for name in runs[0].stages}
    return Run(sum(r.wall for r in runs), sum(r.cpu for r in runs), stages)


def mosaic_rows(grid: str, arms: dict[str, list[Run]], *, canvases: int) -> list[dict]:
    rates = {name: [canvases / run.cpu for run in runs] for name, runs in arms.items()}
    reference = next(iter(rates.values()))
    return [
        {
            "grid": grid,
            "way": name,
            "mosaics / s and core": Spread.of(rates[name]),
            "ratio": paired_ratio(rates[name], reference),
            "wall ms": Spread.of([1000 * run.wall / canvases for run in runs]),
            **shares(runs, ("decode", "resize", REST)),
        }
        for name, runs in arms.items()
    ]
