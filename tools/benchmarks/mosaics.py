"""Mosaics per second and core, with tiles that are decoded anew, come from small copies or are kept in memory."""

import copy
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

    It decodes each image whole, fits it into 400 px, resizes and pastes it into a row of cells, joins the rows, pastes
    them into a canvas of n x n cells (its shift, which is 0), and resizes that. ``partners`` gives the fitted image of
    a record with its box and texts; the release takes deep copies from a memory of 1,024 images, which each new image
    enters as a copy. MMDetection's own bookkeeping is left out, so the release itself is slower.
    """

    def __init__(self, records: Sequence[dict], *, n: int, partners: Callable[[int], dict] | None = None):
        self.records, self.n, self.partners = records, n, partners

    def fitted(self, index: int) -> dict:
        record = self.records[index]
        image = mappers.read_image(record["file_name"]).image
        height, width = fit_cell(*image.shape[:2], cell=(RELEASED_CELL, RELEASED_CELL))
        image = images.resize(image, (height, width))
        image = image[:, ::-1] if index % 2 else image
        return record | {"annotations": [], "image": image, "box": torch.tensor([[0.0, 0.0, width, height]])}

    def __call__(self, *, index: int, epoch: int) -> torch.Tensor:
        rng = np.random.default_rng([epoch, index])
        others = rng.choice(len(self.records), self.n**2 - 1, replace=len(self.records) < self.n**2)
        tiles = [self.fitted(index)]
        if self.partners is None:
            tiles += [self.fitted(int(i)) for i in others]
        else:
            self.newest = copy.deepcopy(tiles[0])
            tiles += [copy.deepcopy(self.partners(int(i))) for i in others]
        n, cell = self.n, RELEASED_CELL
        cells = grid_cells(n, size=(n * cell, n * cell))
        boxes = place(np.array([tile["image"].shape[:2] for tile in tiles]), cells, inward_anchors(n, rng))
        rows = [np.full((cell, n * cell, 3), 114, dtype=np.uint8) for _ in range(n)]
        for k, (tile, (x0, y0, x1, y1)) in enumerate(zip(tiles, boxes.tolist(), strict=True)):
            top = k // n * cell
            rows[k // n][y0 - top : y1 - top, x0:x1] = images.resize(tile["image"], (y1 - y0, x1 - x0))
            tile["box"] = tile["box"] * torch.ones(4) + torch.tensor([x0, y0, x0, y0])
        canvas = np.full((n * cell, n * cell, 3), 114, dtype=np.uint8)
        canvas[:] = np.concatenate(rows)
        canvas = images.resize(canvas, (CANVAS, CANVAS))
        self.boxes = torch.cat([tile["box"] for tile in tiles]).clamp(0, n * cell) * (CANVAS / (n * cell))
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
    memory = functools.cache(lambda index: copy.deepcopy(released.fitted(index)))
    remembering = ReleasedOrder(records, n=n, partners=memory)
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
    """Mosaics of 800 px."""
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
