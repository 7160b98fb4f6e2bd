"""Image-caption records → canvases of one picture or of mosaics, with their tiles (CLIM paper §3.2)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from clim.errors import UserError

from .images import resize
from .mosaic import compose, fit_cell, fit_size, grid_cells, inward_anchors, place, resized_crop, shortest_crop
from .record_mapper import RecordMapper
from .tiles import tiles_of


class Layout(NamedTuple):
    """What goes where on a canvas of T tiles."""

    records: Sequence[dict]  # T
    pictures: Sequence[np.ndarray]  # T of (h, w, 3) uint8
    boxes: np.ndarray  # (T, 4) xyxy in px
    size: tuple[int, int]  # height, width of the canvas in px


class CanvasMapper(RecordMapper):
    """Image-caption records → canvases of n x n tiles; n = 1 is the resized picture, unpadded.

    Args:
        records: dicts with ``file_name, image_id, captions, tags``.
        grids: n is drawn uniformly from it for every canvas.
        short, long: sides in px. For n = 1 Detectron2's ResizeShortestEdge rule; for n > 1 the canvas is
            ``long`` x ``long``.
        filling: "fit" keeps the ratio, pads and packs inwards (CLIM release); "crop" fills each cell by a
            random crop (CLIM paper §3.2). The box of a tile is what was pasted.
        partners: (N, K) indices of each record's neighbours, or None: partners are drawn from all records.
        permute_texts: every tile of a mosaic gets the texts of another tile (a control for experiments).
        seed, stream: two sources with different ``stream`` draw independently.
    """

    def __init__(
        self,
        records,
        *,
        grids: Sequence[int],
        short: int,
        long: int,
        flip: float,
        filling: str = "fit",
        crop_scale: tuple[float, float] = (0.9, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        pad_value: float = 114,
        partners: np.ndarray | None = None,
        permute_texts: bool = False,
        seed: int,
        stream: int,
        image_format: str = "BGR",
    ):
        super().__init__(records, seed=seed, stream=stream, image_format=image_format)
        if filling not in ("fit", "crop"):
            raise UserError(f'INPUT.MOSAIC.FILLING is "{filling}": choose "fit" or "crop".')
        if not grids or min(grids) < 1:
            raise UserError(f"INPUT.MOSAIC.GRIDS is {list(grids)}: give one or more n >= 1, such as [2, 3, 4].")
        self.grids, self.short, self.long, self.flip = tuple(grids), short, long, flip
        self.filling, self.crop_scale, self.crop_ratio = filling, crop_scale, crop_ratio
        self.pad_value = pad_value
        self.partners, self.permute_texts = partners, permute_texts
        self.square = min(grids) > 1

    @classmethod
    def captions(cls, cfg, records, *, seed, stream):
        """The caption branch: 1 x 1 canvases."""
        caption = cfg.INPUT.CAPTION
        return cls(
            records, grids=[1], short=caption.SHORT_SIDE, long=caption.LONG_SIDE, flip=caption.FLIP,
            seed=seed, stream=stream, image_format=cfg.INPUT.FORMAT,
        )  # fmt: skip

    @classmethod
    def mosaics(cls, cfg, records, *, seed, stream, partners=None):
        """Canvases of INPUT.MOSAIC; ``partners``: (N, P) indices of records to draw from, None: all."""
        mosaic = cfg.INPUT.MOSAIC
        return cls(
            records, grids=mosaic.GRIDS, short=mosaic.SIZE, long=mosaic.SIZE, flip=mosaic.FLIP,
            filling=mosaic.FILLING, crop_scale=tuple(mosaic.CROP_SCALE),
            crop_ratio=tuple(mosaic.CROP_RATIO), pad_value=mosaic.PAD_VALUE,
            partners=partners, permute_texts=mosaic.PERMUTE_TEXTS, seed=seed, stream=stream,
            image_format=cfg.INPUT.FORMAT,
        )  # fmt: skip

    def map(self, index, rng, skipped):
        n = int(rng.choice(self.grids))
        indices = self.draw_partners(index, n * n, rng)
        laid = self.mosaic(n, indices, rng, skipped) if n > 1 else self.single(index, rng, skipped)
        pictures = [p[:, ::-1] if rng.random() < self.flip else p for p in laid.pictures]
        canvas = compose([p.transpose(2, 0, 1) for p in pictures], laid.boxes, size=laid.size, pad_value=self.pad_value)
        tiles = tiles_of(laid.records, laid.boxes, rng=rng)
        if self.permute_texts and len(tiles) > 1:
            # Drawn last, so that the canvas is that of a run without; a rotation leaves no text in place.
            tiles = tiles.with_rolled_texts(int(rng.integers(1, len(tiles))))
        return {
            "image": torch.from_numpy(np.ascontiguousarray(canvas)),
            "height": laid.size[0],
            "width": laid.size[1],
            "tiles": tiles,
        }

    def single(self, index: int, rng, skipped) -> Layout:
        """One picture, resized to the caption size, is the whole canvas."""

        def at_least(record):
            return fit_size(record["height"], record["width"], short=self.short, long=self.long)

        record, decoded = self.read(index, rng, skipped, self.any_record(rng), at_least)
        size = fit_size(decoded.height, decoded.width, short=self.short, long=self.long)
        box = np.array([[0, 0, size[1], size[0]]])
        return Layout([record], [resize(decoded.image, size)], box, size)

    def mosaic(self, n: int, indices: Sequence[int], rng, skipped) -> Layout:
        """n x n pictures, each inside its cell of a square canvas."""
        size = (self.long, self.long)
        cells = grid_cells(n, size=size)
        tiles = [self.read_tile(i, cell, rng, skipped) for i, cell in zip(indices, cells, strict=True)]
        records, pictures = zip(*tiles, strict=True)
        extents = np.array([p.shape[:2] for p in pictures])
        return Layout(records, pictures, place(extents, cells, inward_anchors(n, rng)), size)

    def draw_partners(self, index: int, count: int, rng) -> list[int]:
        """``index`` and ``count`` - 1 others, distinct where there are enough of them."""
        pool = self.partners[index] if self.partners is not None else None
        size = len(pool) if pool is not None else len(self.records) - 1
        if size == 0:
            return [index] * count
        drawn = rng.choice(size, count - 1, replace=size < count - 1)
        if pool is not None:
            return [index, *(int(pool[i]) for i in drawn)]
        return [index, *(int(i) + (i >= index) for i in drawn)]  # all records but ``index``

    def read_tile(self, index, cell, rng, skipped):
        """A picture for ``cell`` (x0, y0, x1, y1), fitted or cropped to it."""
        height, width = int(cell[3] - cell[1]), int(cell[2] - cell[0])
        # A crop keeps a part of each side, so the whole picture must be decoded that much larger.
        crop = {"scale": self.crop_scale, "ratio": self.crop_ratio}
        margin = 1.0 if self.filling == "fit" else 1 / shortest_crop(**crop)

        def at_least(record):
            h, w = record["height"], record["width"]
            scale = (min if self.filling == "fit" else max)(height / h, width / w) * margin
            return min(int(np.ceil(h * scale)), h), min(int(np.ceil(w * scale)), w)

        record, decoded = self.read(index, rng, skipped, self.any_record(rng), at_least)
        if self.filling == "fit":
            return record, resize(decoded.image, fit_cell(decoded.height, decoded.width, cell=(height, width)))
        x0, y0, x1, y1 = resized_crop(*decoded.image.shape[:2], **crop, rng=rng)
        return record, resize(decoded.image[y0:y1, x0:x1], (height, width))
