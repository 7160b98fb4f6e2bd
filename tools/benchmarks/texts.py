"""Caption embeddings per second: the tower's, and those of the warm cache on disk."""

import os
from collections.abc import Sequence

from clim.text import CaptionCache, build_text_tower

from .mosaics import GRIDS
from .settings import Settings
from .stopwatch import Spread, interleaved, measure, paired_ratio

TOWERS = {"MiniLM": "minilm", "ViT-B/32 (random weights)": "ViT-B-32-quickgelu"}
CAPTIONS_A_STEP = 2 + 2 * sum(n * n for n in GRIDS) // len(GRIDS)  # 2 single pairs and 2 mosaics


def measure_text(settings: Settings, records: Sequence[dict]) -> list[dict]:
    """The captions of joint steps, read by the tower or from the warm cache on disk."""
    synchronise = settings.start()
    captions = [c for r in records for c in r["captions"]]
    batches = [
        [captions[(i * CAPTIONS_A_STEP + j) % len(captions)] for j in range(CAPTIONS_A_STEP)]
        for i in range(settings.canvases)
    ]
    rows = []
    for title, name in TOWERS.items():
        tower = build_text_tower(name=name, pretrained="", device=settings.device)
        cache = CaptionCache(tower, os.path.join(settings.folder, "cached", name))
        cache.prefill(captions)

        def arm(encoder):
            def run():
                for batch in batches:
                    encoder.encode(batch).to(settings.device)

            return lambda: measure(run, synchronise=synchronise)

        arms = {"live": arm(tower), "cached": arm(cache)}
        runs = interleaved(arms, repeats=settings.repeats, title=title)
        rates = {
            way: [CAPTIONS_A_STEP * len(batches) / getattr(r, settings.seconds) for r in runs[way]] for way in arms
        }
        for way in arms:
            rows.append(
                {
                    "tower": title,
                    "way": way,
                    "captions / s": Spread.of(rates[way]),
                    "ratio": paired_ratio(rates[way], rates["live"]),
                    "wall ms a joint step": Spread.of([1000 * r.wall / len(batches) for r in runs[way]]),
                    "CPU ms a joint step": Spread.of([1000 * r.cpu / len(batches) for r in runs[way]]),
                }
            )
    return rows
