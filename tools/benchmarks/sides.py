"""How mosaics and training steps grow with the side of the canvas."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from clim.data.mappers import CanvasMapper

from .inputs import Settings
from .mosaics import GRIDS
from .steps import STEPS, prefill_captions, step_config, timed_steps
from .stopwatch import Spread, compared, fresh

MINI = str(Path(__file__).parents[2] / "configs/mini/detic_clim.yaml")
SIDES, SCALES = (200, 400, 800, 1600), (0.5, 1.0, 2.0)  # px of mosaics; of MINI, whose canvases have 256 px


def measure_sides(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """Mosaics from files and steps of the mini benchmark, by the side of a canvas."""
    settings.start()
    shared = {"grids": GRIDS, "flip": 0.5, "seed": 0, "stream": 0}

    def draw(mapper):
        for i in range(settings.canvases):
            mapper(index=i % len(records), epoch=i // len(records))

    ways = {side: partial(draw, CanvasMapper(records, short=side, long=side, **shared)) for side in SIDES}
    seconds, _ = compared(ways, repeats=settings.repeats, title="mosaics")
    rows = [("mosaic", side, [s / settings.canvases for s in taken]) for side, taken in seconds.items()]
    mini = replace(settings, config_file=MINI, overrides=())
    fresh(prefill_captions, mini, records)
    configs = [step_config(replace(mini, scale=scale), STEPS["CLIM 2+2+2"]) for scale in SCALES]
    runs = timed_steps(mini, records, {cfg.INPUT.MOSAIC.SIZE: cfg for cfg in configs})
    rows += [("step", side, [getattr(run, settings.seconds) for run in taken]) for side, taken in runs.items()]
    return [{"work": work, "px": side, "cpu s": Spread.of(taken)} for work, side, taken in rows]
