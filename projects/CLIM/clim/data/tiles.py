"""Tiles: the boxes, images and texts of a canvas or of a batch of canvases."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass
class Tiles:
    """The T tiles (pseudo regions) of one canvas, or of all canvases of a batch."""

    boxes: Tensor  # (T, 4) float32 xyxy in canvas pixels: the pasted images, not their cells
    canvas: Tensor  # (T,) int64, index of the canvas in the batch
    image_ids: Tensor  # (T,) int64, id of the source image
    captions: list[list[str]]  # all captions of each tile
    drawn: list[str]  # one caption of each tile, drawn anew for every sample
    tags: list[list[int]]  # 0-based class indices

    def __len__(self) -> int:
        return len(self.captions)

    @cached_property
    def counts(self) -> list[int]:
        """The number of tiles of each canvas."""
        return torch.bincount(self.canvas).tolist()

    @property
    def rows_of_canvases(self) -> tuple[Tensor, ...]:
        """The rows (t,) of each canvas's tiles."""
        return self.canvas.argsort(stable=True).split(self.counts)

    @property
    def alone(self) -> Tensor:
        """(T,) bool: the tile is the only one of its canvas, so the canvas is a plain image."""
        return (self.canvas[:, None] == self.canvas).sum(1) == 1

    def to(self, device) -> "Tiles":
        """The same tiles with their tensors on ``device``; the host keeps ``counts``, so that it need not wait."""
        moved = replace(self, **{name: getattr(self, name).to(device) for name in ("boxes", "canvas", "image_ids")})
        moved.counts = self.counts
        return moved

    def with_rolled_texts(self, by: int) -> "Tiles":
        """Tiles of one canvas; ids, captions and tags of tile i move to tile (i + ``by``) mod T, boxes stay."""
        rows = {name: getattr(self, name) for name in ("captions", "drawn", "tags")}
        texts = {name: row[-by:] + row[:-by] for name, row in rows.items()}
        return replace(self, image_ids=self.image_ids.roll(by), **texts)

    def redrawn(self) -> "Tiles":
        """The same tiles, with one caption of each drawn anew from torch's random state on the CPU."""
        return replace(self, drawn=[captions[torch.randint(len(captions), ()).item()] for captions in self.captions])

    @classmethod
    def cat(cls, tiles: list["Tiles"]) -> "Tiles":
        """Tiles of several canvases as one batch."""
        boxes, image_ids = torch.cat([t.boxes for t in tiles]), torch.cat([t.image_ids for t in tiles])
        canvas = torch.cat([torch.full((len(t),), i) for i, t in enumerate(tiles)])
        texts = {name: sum((getattr(t, name) for t in tiles), []) for name in ("captions", "drawn", "tags")}
        return cls(boxes, canvas, image_ids, **texts)


def tiles_of(records: Sequence[dict], boxes: np.ndarray, *, rng) -> Tiles:
    """Tiles of one canvas: T records at ``boxes`` (T, 4); ``rng`` draws one caption of each, "" without any."""
    canvas, image_ids = torch.zeros(len(boxes), dtype=torch.int64), torch.tensor([r["image_id"] for r in records])
    captions, tags = [list(r["captions"]) for r in records], [list(r.get("tags", ())) for r in records]
    drawn = [own[rng.integers(len(own))] if own else "" for own in captions]
    return Tiles(torch.from_numpy(boxes).float(), canvas, image_ids, captions, drawn, tags)
