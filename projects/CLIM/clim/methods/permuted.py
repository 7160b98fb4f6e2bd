"""A control for experiments: CLIM whose texts are permuted within each canvas."""

from dataclasses import replace

import torch

from .base import METHOD_REGISTRY
from .detic import Detic


@METHOD_REGISTRY.register()
class PermutedDetic(Detic):
    """Detic on mosaics whose tiles have exchanged their texts; single images keep theirs.

    The model sees the same canvases, boxes and captions, and only which belongs to which is wrong. A gain that
    survives this does not come from aligning regions with texts.
    """

    def select(self, tiles, proposals):
        boxes = tiles.boxes.clone()
        for canvas in tiles.canvas.unique():
            rows = (tiles.canvas == canvas).nonzero().squeeze(1)
            if len(rows) > 1:
                # A rotation moves every text: a random permutation would leave some in place.
                boxes[rows] = tiles.boxes[rows.roll(int(torch.randint(1, len(rows), ())))]
        return super().select(replace(tiles, boxes=boxes), proposals)
