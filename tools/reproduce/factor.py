"""When do mosaics win? Pairs whose objects are 1, 1.6, 2.5 or 4 times as large as those of scenes.

All rows learn from captions alone, for 200 iterations from the seed's base stage. Scenes, test images and class
embeddings are those of mini OV-COCO. What was fixed beforehand is in docs/mosaics_win.md.
"""

import pkgutil
from functools import partial

from experiments import rows
from experiments.tables import AP50, Entry, Table
from mini.factor import FACTORS, set_name, set_up_factor

from .ov_coco import BASE, CONTROL, PERMUTED_TEXTS, STACKED

CLIM = ("DATALOADER.CAPTIONS_PER_GPU", 2, "DATALOADER.MOSAICS_PER_GPU", 2)
ONE_MOSAIC = ("DATALOADER.CAPTIONS_PER_GPU", 0, "DATALOADER.MOSAICS_PER_GPU", 1, "INPUT.MOSAIC.GRIDS", "[2]")
CONTROLLED = max(FACTORS)
# {row: (config, overrides)}; each has 4 or, on average, about 21 captions a step.
ROWS = {
    "4 captions": ("factor", ()),
    "21 captions, stacked": ("factor", STACKED),
    "CLIM": ("factor", CLIM),
    "21 captions, scaled down as tiles": ("factor_scaled", ()),
    "CLIM, 4 captions": ("factor", ONE_MOSAIC),
}
tuned = partial(rows.tuned, start=BASE)


def entry(name: str, factor: float, *overrides) -> Entry:
    """The row ``name`` on the pairs of a factor."""
    config, own = ROWS[name]
    pairs = ("DATASETS.CAPTIONS", f"('mini_factor_{set_name(factor)}',)")
    return Entry(name, tuned(f"mini/{config}.yaml", *own, *pairs, *overrides))


def entries(factor: float) -> tuple[Entry, ...]:
    rows = tuple(entry(name, factor) for name in ROWS)
    if factor != CONTROLLED:
        return rows
    control = entry("CLIM", factor, *PERMUTED_TEXTS)
    return *rows, control._replace(name=CONTROL)


def report(function: str):
    """A function of :mod:`reports.factor`, which imports torch and matplotlib when it is called: this takes seconds."""
    return lambda *arguments: pkgutil.resolve_name(f"reports.factor:{function}")(*arguments)


table = partial(Table, "factor", metrics=AP50, set_up=set_up_factor)
TABLES = (
    *(table(f"objects in pairs {f:g} x as large as in scenes", entries(f)) for f in FACTORS[:-1]),
    table(
        f"objects in pairs {CONTROLLED:g} x as large as in scenes", entries(CONTROLLED),
        drawings={"mosaics_win.png": report("draw"), "mosaics_win.md": report("explain")},
    ),
)  # fmt: skip
