"""Controls for experiments: CLIM whose texts are permuted within each canvas.

The model sees the same canvases, boxes and captions, and only which belongs to which is wrong. A gain that
survives this does not come from aligning regions with texts. Single images keep their texts.
"""

from dataclasses import replace

import torch

from clim.data.tiles import Tiles

from .baron import Baron
from .base import METHOD_REGISTRY
from .clip import ClipContrast
from .detic import Detic
from .grounding import Grounding


class Exchanged:
    """Before a :class:`Method` among a class's bases: that method on tiles that have exchanged their texts."""

    def select(self, tiles, candidates):
        return super().select(exchanged(tiles), candidates)


@METHOD_REGISTRY.register()
class PermutedDetic(Exchanged, Detic):
    """The control of Detic."""


@METHOD_REGISTRY.register()
class PermutedBaron(Exchanged, Baron):
    """The control of BARON."""


@METHOD_REGISTRY.register()
class PermutedClip(Exchanged, ClipContrast):
    """The control of CLIP's contrast."""


@METHOD_REGISTRY.register()
class PermutedGrounding(Exchanged, Grounding):
    """The control of OV-RCNN's pre-training."""


def exchanged(tiles: Tiles) -> Tiles:
    """The same tiles, each at the place of another of its canvas; a single tile stays."""
    boxes = tiles.boxes.clone()
    for canvas in tiles.canvas.unique():
        rows = (tiles.canvas == canvas).nonzero().squeeze(1)
        if len(rows) > 1:
            # A rotation moves every text: a random permutation would leave some in place.
            boxes[rows] = tiles.boxes[rows.roll(int(torch.randint(1, len(rows), ())))]
    return replace(tiles, boxes=boxes)
